//! What an approval is for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Everything that a plan follows from. Kept with the plan, so that what moved can be said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestInputs {
    /// The cluster's name.
    pub cluster: String,
    /// The commit.
    pub commit: String,
    /// The version of kops.
    pub kops_version: String,
    /// The SHA-256 of its binary.
    pub kops_sha256: String,
    /// The SHA-256 of each object of the live registry, by its key.
    pub registry: BTreeMap<String, String>,
    /// The SHA-256 of the dry run's normal form, made before anything was redacted.
    pub dry_run: String,
}

/// The digest of a plan: SHA-256 in hexadecimal digits.
pub fn digest(inputs: &DigestInputs) -> String {
    // A struct of strings and sorted maps always has a JSON form, and always the same.
    hex::encode(Sha256::digest(serde_json::to_vec(inputs).unwrap_or_default()))
}

impl DigestInputs {
    /// The SHA-256 of bytes, as used here.
    pub fn hash(bytes: impl AsRef<[u8]>) -> String {
        hex::encode(Sha256::digest(bytes))
    }

    /// What differs in `now`, in sentences; empty when nothing does.
    pub fn moved(&self, now: &Self) -> Vec<String> {
        let mut moved = Vec::new();
        if self.commit != now.commit {
            moved.push(format!("the commit is {} and was {}", now.commit, self.commit));
        }
        if self.kops_version != now.kops_version {
            moved.push(format!("kops is {} and was {}", now.kops_version, self.kops_version));
        } else if self.kops_sha256 != now.kops_sha256 {
            moved.push(format!("the binary of kops {} is another one", now.kops_version));
        }
        for (key, hash) in &now.registry {
            match self.registry.get(key) {
                None => moved.push(format!("{key} was added to the state store")),
                Some(before) if before != hash => moved.push(format!("{key} in the state store changed")),
                Some(_) => {}
            }
        }
        moved.extend(
            self.registry
                .keys()
                .filter(|key| !now.registry.contains_key(*key))
                .map(|key| format!("{key} was removed from the state store")),
        );
        if self.dry_run != now.dry_run {
            moved.push("the dry run differs: the cloud or a file that kops manages changed".to_owned());
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut DigestInputs);

    fn inputs() -> DigestInputs {
        DigestInputs {
            cluster: "demo.k8s.local".into(),
            commit: "1".repeat(40),
            kops_version: "1.36.2".into(),
            kops_sha256: "aa".into(),
            registry: [("config".to_owned(), "1".to_owned()), ("instancegroup/nodes".to_owned(), "2".to_owned())].into(),
            dry_run: "x".into(),
        }
    }

    #[test]
    fn every_input_counts_and_is_named() {
        let before = inputs();
        assert!(before.moved(&before).is_empty());
        let changes: [(Change, &str); 6] = [
            (|i| i.commit = "2".repeat(40), "commit"),
            (|i| i.kops_version = "1.36.3".into(), "1.36.3"),
            (|i| i.kops_sha256 = "bb".into(), "another one"),
            (|i| drop(i.registry.insert("config".into(), "9".into())), "config in the state store changed"),
            (|i| drop(i.registry.remove("instancegroup/nodes")), "instancegroup/nodes was removed"),
            (|i| i.dry_run = "y".into(), "dry run differs"),
        ];
        for (change, says) in changes {
            let mut after = inputs();
            change(&mut after);
            assert_ne!(digest(&before), digest(&after), "{says}");
            let moved = before.moved(&after);
            assert!(moved.len() == 1 && moved[0].contains(says), "{moved:?}");
        }
    }
}
