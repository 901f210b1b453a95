//! Names that are checked once, where they enter, and trusted afterwards.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A name that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {remedy}")]
pub struct InvalidId {
    /// Which name it is, in the field's words.
    pub what: &'static str,
    /// The value as given, shortened.
    pub value: String,
    /// What would be accepted.
    pub remedy: &'static str,
}

impl crate::failure::Classify for InvalidId {
    fn kind(&self) -> crate::FailureKind {
        crate::FailureKind::BadInput
    }
}

fn invalid(what: &'static str, value: &str, remedy: &'static str) -> InvalidId {
    InvalidId { what, value: value.chars().take(80).collect(), remedy }
}

macro_rules! checked_string {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::new(&text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

/// A kOps cluster's name: a DNS name of at least two labels, as kOps requires.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);
checked_string!(ClusterName);

impl ClusterName {
    /// Checks a cluster's name.
    pub fn new(name: &str) -> Result<Self, InvalidId> {
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() <= 253 && name.contains('.') && name.split('.').all(label) {
            Ok(Self(name.to_owned()))
        } else {
            Err(invalid("cluster name", name, "use a DNS name such as \"prod.example.com\""))
        }
    }

    /// The name for places that allow no dots, at most 40 characters.
    fn slug(&self) -> String {
        let slug: String = self.0.chars().map(|c| if c == '.' { '-' } else { c }).take(40).collect();
        slug.trim_end_matches('-').to_owned()
    }
}

/// A full commit id: 40 (SHA-1) or 64 (SHA-256) lower-case hexadecimal digits. Abbreviations are refused: they can change meaning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId(String);
checked_string!(CommitId);

impl CommitId {
    /// Checks a commit id.
    pub fn new(sha: &str) -> Result<Self, InvalidId> {
        let hex = sha.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && matches!(sha.len(), 40 | 64) {
            Ok(Self(sha.to_owned()))
        } else {
            Err(invalid("commit", sha, "use the full id, 40 or 64 hexadecimal digits"))
        }
    }

    /// The first twelve digits, for people.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }

    /// Whether this is git's null id, which GitLab sends as `before` of a new branch and `after` of a deleted one.
    pub fn is_null(&self) -> bool {
        self.0.bytes().all(|b| b == b'0')
    }
}

/// A run's id, which is also the name of its Step Functions execution (at most 80 characters, unique for 90 days).
///
/// It follows from cluster, commit and attempt, so that the same merge delivered twice starts the same execution twice,
/// which Step Functions answers with the running one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);
checked_string!(RunId);

impl RunId {
    /// Checks a run's id as it comes back from outside.
    pub fn new(id: &str) -> Result<Self, InvalidId> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !id.is_empty() && id.len() <= 72 && id.bytes().all(allowed) && !id.starts_with('-') {
            Ok(Self(id.to_owned()))
        } else {
            Err(invalid("run id", id, "use an id that `kopsline status` shows"))
        }
    }

    /// The id of the `attempt`th run (1 is the first) of a commit on a cluster. Clusters of one name in two state stores
    /// are two clusters.
    pub fn of(store: &StateStoreUri, cluster: &ClusterName, commit: &CommitId, attempt: u32) -> Self {
        let digest = Sha256::digest(format!("{store}\n{cluster}\n{commit}\n{attempt}"));
        let digest = hex::encode(digest);
        Self(format!("{}-{}-{}", cluster.slug(), commit.short(), digest.get(..8).unwrap_or(&digest)))
    }
}

/// Where a cluster's kOps registry lives: `s3://bucket[/prefix]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StateStoreUri(String);
checked_string!(StateStoreUri);

impl StateStoreUri {
    /// As one part of a key or one name of a file.
    pub fn as_one_name(&self) -> String {
        self.as_str().trim_start_matches("s3://").replace('/', "~")
    }

    /// Checks a state store's address; a trailing slash is dropped.
    pub fn new(uri: &str) -> Result<Self, InvalidId> {
        let wrong = || invalid("state store", uri, "use \"s3://bucket\" or \"s3://bucket/prefix\"");
        let trimmed = uri.trim_end_matches('/');
        let rest = trimmed.strip_prefix("s3://").ok_or_else(wrong)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let bucket_ok = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'));
        let prefix_ok = prefix.is_empty()
            || prefix.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.chars().all(|c| c.is_ascii_graphic()));
        if bucket_ok && prefix_ok { Ok(Self(trimmed.to_owned())) } else { Err(wrong()) }
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        let rest = self.0.strip_prefix("s3://").unwrap_or(&self.0);
        rest.split_once('/').map_or(rest, |(bucket, _)| bucket)
    }

    /// The prefix inside the bucket, without slashes at its ends; empty for the bucket's root.
    pub fn prefix(&self) -> &str {
        let rest = self.0.strip_prefix("s3://").unwrap_or(&self.0);
        rest.split_once('/').map_or("", |(_, prefix)| prefix)
    }

    /// Whether this store is `outer` itself or lies under it.
    pub fn is_within(&self, outer: &Self) -> bool {
        self.0 == outer.0 || self.0.strip_prefix(&outer.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cluster_names() {
        for good in ["demo.k8s.local", "a.b", "prod-1.eu.example.com"] {
            assert!(ClusterName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "demo", "../x.y", "a..b", "A.b", "-a.b", "a-.b", "a.b/c", "a.b\n"] {
            assert!(ClusterName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn state_stores() {
        let uri = StateStoreUri::new("s3://state/team/a/").unwrap();
        assert_eq!((uri.bucket(), uri.prefix()), ("state", "team/a"));
        assert!(uri.is_within(&StateStoreUri::new("s3://state/team").unwrap()));
        assert!(!uri.is_within(&StateStoreUri::new("s3://state/te").unwrap()));
        for bad in ["state", "s3://", "s3://Bucket", "s3://state/../x", "s3://state//x", "gs://state", "s3://ab"] {
            assert!(StateStoreUri::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn run_ids_are_valid_execution_names(name in "[a-z]([a-z0-9]{0,40})\\.[a-z0-9]{1,60}(\\.[a-z]{2,20})?", sha in "[0-9a-f]{40}", attempt in 1u32..9) {
            let (cluster, commit) = (ClusterName::new(&name).unwrap(), CommitId::new(&sha).unwrap());
            let (store, other) = (StateStoreUri::new("s3://state").unwrap(), StateStoreUri::new("s3://state/b").unwrap());
            let id = RunId::of(&store, &cluster, &commit, attempt);
            prop_assert!(id.as_str().len() <= 64);
            prop_assert_eq!(RunId::new(id.as_str()).unwrap(), id.clone());
            prop_assert_ne!(&RunId::of(&store, &cluster, &commit, attempt + 1), &id);
            prop_assert_ne!(RunId::of(&other, &cluster, &commit, attempt), id);
        }

        #[test]
        fn ids_never_panic(text in ".{0,100}") {
            let _ = (ClusterName::new(&text), CommitId::new(&text), RunId::new(&text), StateStoreUri::new(&text));
        }
    }
}
