//! What a delivery says, parsed after its sender was verified.
//!
//! Only pushes to branches matter: a push to the default branch follows every way of merging and carries the new commit. Its
//! list of commits holds at most 20 and is no list of what changed; that is asked of the [`Source`](crate::Source).

use kopsline_core::CommitId;
use serde::Deserialize;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Commits on a branch.
    Push(Box<Push>),
    /// Anything else, to be answered with success: GitLab disables a webhook after repeated errors.
    Ignored {
        /// What it was, at most 64 characters.
        event: String,
    },
}

/// A branch that has a new head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The branch, without `refs/heads/`.
    pub branch: String,
    /// The head before; none for a new branch.
    pub before: Option<CommitId>,
    /// The head now.
    pub after: CommitId,
    /// What GitLab would check out; the same as `after` as far as is known.
    pub checkout_sha: Option<CommitId>,
    /// The project.
    pub project: Project,
    /// Who pushed: the login name, empty where GitLab does not say.
    pub user_username: String,
    /// Who pushed: the name for people, empty where GitLab does not say.
    pub user_name: String,
    /// The new head's title, empty where GitLab does not list that commit.
    pub title: String,
    /// How many commits the delivery lists (GitLab lists at most 20).
    pub listed_commits: usize,
    /// How many commits were pushed.
    pub total_commits: u64,
}

impl Push {
    /// Whether this is a push to the watched branch, which is the project's default branch unless `configured`.
    pub fn is_to(&self, configured: Option<&str>) -> bool {
        configured.or(self.project.default_branch.as_deref()) == Some(self.branch.as_str())
    }
}

/// A GitLab project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its number, which stays when it is renamed.
    pub id: u64,
    /// Its full path, such as `platform/clusters`.
    pub path_with_namespace: String,
    /// Its default branch; none while the repository is empty.
    pub default_branch: Option<String>,
    /// Its page.
    pub web_url: String,
}

/// A body that is no event of GitLab's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the delivery's body is no GitLab event: {0}")]
pub struct BadEvent(String);

impl BadEvent {
    fn new(what: &dyn std::fmt::Display) -> Self {
        // A parser's message may quote the input, which may be megabytes.
        Self(what.to_string().chars().take(200).collect())
    }
}

#[derive(Deserialize)]
struct Kind {
    object_kind: Option<String>,
    event_name: Option<String>,
}

#[derive(Deserialize)]
struct RawPush {
    r#ref: String,
    before: CommitId,
    after: CommitId,
    checkout_sha: Option<CommitId>,
    user_username: Option<String>,
    user_name: Option<String>,
    project_id: Option<u64>,
    project: RawProject,
    commits: Option<Vec<RawCommit>>,
    total_commits_count: Option<u64>,
}

#[derive(Deserialize)]
struct RawCommit {
    #[serde(default)]
    id: String,
    #[serde(default)]
    title: String,
}

#[derive(Deserialize)]
struct RawProject {
    id: Option<u64>,
    path_with_namespace: String,
    default_branch: Option<String>,
    web_url: String,
}

impl Event {
    /// Parses a delivery's body: project, group and system hooks alike. Its size is the caller's to limit.
    pub fn parse(body: &[u8]) -> Result<Self, BadEvent> {
        let kind: Kind = serde_json::from_slice(body).map_err(|error| BadEvent::new(&error))?;
        let name = kind.object_kind.or(kind.event_name).ok_or_else(|| BadEvent::new(&"it has neither object_kind nor event_name"))?;
        if name != "push" {
            return Ok(Self::ignored(&name));
        }
        let raw: RawPush = serde_json::from_slice(body).map_err(|error| BadEvent::new(&error))?;
        let Some(branch) = raw.r#ref.strip_prefix("refs/heads/") else {
            return Ok(Self::ignored("push to something that is no branch"));
        };
        if raw.after.is_null() {
            return Ok(Self::ignored("deletion of a branch"));
        }
        let commits = raw.commits.unwrap_or_default();
        let listed_commits = commits.len();
        let head = commits.into_iter().find(|commit| commit.id == raw.after.as_str());
        let id = raw.project.id.or(raw.project_id).ok_or_else(|| BadEvent::new(&"it has no project id"))?;
        Ok(Self::Push(Box::new(Push {
            branch: branch.to_owned(),
            before: Some(raw.before).filter(|before| !before.is_null()),
            after: raw.after,
            checkout_sha: raw.checkout_sha,
            project: Project {
                id,
                path_with_namespace: raw.project.path_with_namespace,
                default_branch: raw.project.default_branch,
                web_url: raw.project.web_url,
            },
            user_username: raw.user_username.unwrap_or_default(),
            user_name: raw.user_name.unwrap_or_default(),
            title: head.map(|commit| commit.title).unwrap_or_default(),
            listed_commits,
            total_commits: raw.total_commits_count.unwrap_or(u64::try_from(listed_commits).unwrap_or(u64::MAX)),
        })))
    }

    fn ignored(event: &str) -> Self {
        Self::Ignored { event: event.chars().filter(|c| !c.is_control()).take(64).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// The shape of GitLab's documented push event, shortened.
    fn push() -> Value {
        json!({
            "object_kind": "push",
            "event_name": "push",
            "before": "95790bf891e76fee5e1747ab589903a6a1f80f22",
            "after": "da1560886d4f094c3e6c9ef40349f7d38b5d27d7",
            "ref": "refs/heads/release/1.36",
            "ref_protected": true,
            "checkout_sha": "da1560886d4f094c3e6c9ef40349f7d38b5d27d7",
            "message": null,
            "user_id": 4,
            "user_name": "Jane Doe",
            "user_username": "jdoe",
            "project_id": 15,
            "project": {
                "id": 15,
                "name": "clusters",
                "web_url": "https://gitlab.example.com/platform/clusters",
                "path_with_namespace": "platform/clusters",
                "default_branch": "master"
            },
            "commits": [{"id": "da1560886d4f094c3e6c9ef40349f7d38b5d27d7", "title": "More nodes", "added": [], "modified": ["cluster.yml"], "removed": []}],
            "total_commits_count": 41
        })
    }

    fn parse(value: &Value) -> Result<Event, BadEvent> {
        Event::parse(&serde_json::to_vec(value).unwrap())
    }

    fn parsed(value: &Value) -> Push {
        match parse(value).unwrap() {
            Event::Push(push) => *push,
            Event::Ignored { event } => panic!("ignored: {event}"),
        }
    }

    fn with(changes: &Value) -> Value {
        let mut event = push();
        for (key, value) in changes.as_object().unwrap() {
            event[key] = value.clone();
        }
        event
    }

    #[test]
    fn a_push() {
        let push = parsed(&push());
        assert_eq!(push.branch, "release/1.36");
        assert_eq!(push.before.as_ref().unwrap().as_str(), "95790bf891e76fee5e1747ab589903a6a1f80f22");
        assert_eq!(push.after.as_str(), "da1560886d4f094c3e6c9ef40349f7d38b5d27d7");
        assert_eq!(push.checkout_sha.as_ref(), Some(&push.after));
        assert_eq!((push.project.id, push.project.path_with_namespace.as_str()), (15, "platform/clusters"));
        assert_eq!(push.project.web_url, "https://gitlab.example.com/platform/clusters");
        assert_eq!((push.user_username.as_str(), push.user_name.as_str()), ("jdoe", "Jane Doe"));
        assert_eq!((push.listed_commits, push.total_commits), (1, 41));
    }

    #[test]
    fn the_watched_branch() {
        let push = parsed(&push());
        assert!(push.is_to(Some("release/1.36")));
        assert!(!push.is_to(None));
        let to_master = parsed(&with(&json!({"ref": "refs/heads/master"})));
        assert!(to_master.is_to(None));
        assert!(!to_master.is_to(Some("release/1.36")));
        let mut empty = to_master;
        empty.project.default_branch = None;
        assert!(!empty.is_to(None));
    }

    #[test]
    fn a_new_branch_has_no_before() {
        let event = with(&json!({"before": "0".repeat(40)}));
        assert_eq!(parsed(&event).before, None);
    }

    #[test]
    fn system_hooks_name_the_event_only() {
        let mut event = push();
        event.as_object_mut().unwrap().remove("object_kind");
        event["project"].as_object_mut().unwrap().remove("id");
        event.as_object_mut().unwrap().remove("total_commits_count");
        let push = parsed(&event);
        assert_eq!((push.project.id, push.total_commits), (15, 1));
    }

    #[test]
    fn sha_256_repositories() {
        let event = with(&json!({"before": "0".repeat(64), "after": "a".repeat(64), "checkout_sha": "a".repeat(64)}));
        let push = parsed(&event);
        assert_eq!((push.before, push.after.as_str().len()), (None, 64));
    }

    #[test]
    fn everything_else_is_ignored() {
        let zeros = "0".repeat(40);
        for (event, name) in [
            (json!({"object_kind": "merge_request"}), "merge_request"),
            (with(&json!({"object_kind": "tag_push", "event_name": "tag_push", "ref": "refs/tags/v1"})), "tag_push"),
            (json!({"event_name": "project_create"}), "project_create"),
            (with(&json!({"ref": "refs/tags/v1"})), "push to something that is no branch"),
            (with(&json!({"after": zeros, "checkout_sha": null})), "deletion of a branch"),
            (json!({"object_kind": format!("a\n{}", "b".repeat(99))}), &format!("a{}", "b".repeat(63))),
        ] {
            assert_eq!(parse(&event), Ok(Event::Ignored { event: name.to_owned() }));
        }
    }

    #[test]
    fn what_is_no_event() {
        for body in [
            "",
            "null",
            "[]",
            "{}",
            "{",
            "\u{0}",
            r#"{"object_kind": 1}"#,
            r#"{"object_kind": "push"}"#,
            r#"{"object_kind": "push", "object_kind": "push"}"#,
        ] {
            assert!(Event::parse(body.as_bytes()).is_err(), "{body}");
        }
        for changes in [
            json!({"after": "da15608"}),
            json!({"after": "; rm -rf /"}),
            json!({"after": null}),
            json!({"project": null}),
            json!({"project": {"id": -1, "path_with_namespace": "a/b", "web_url": ""}}),
            json!({"total_commits_count": "many"}),
        ] {
            assert!(parse(&with(&changes)).is_err(), "{changes}");
        }
        let long = parse(&with(&json!({"project_id": "x".repeat(1_000_000)}))).unwrap_err();
        assert!(long.to_string().len() < 300);
    }

    #[test]
    fn huge_and_deep_input() {
        let deep = format!(r#"{{"object_kind": "push", "project": {}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert!(Event::parse(deep.as_bytes()).is_err());
        let other = format!(r#"{{"object_kind": "note", "x": {}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        let _ = Event::parse(other.as_bytes());
        let many = with(&json!({"commits": vec![json!({"id": "x", "modified": ["cluster.yml"]}); 100_000]}));
        assert_eq!(parsed(&many).listed_commits, 100_000);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
            "[0-9a-f]{40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map("[a-z_]{1,10}", inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = Event::parse(&body);
        }

        #[test]
        fn a_push_with_any_field_replaced_never_panics(key in prop::sample::select(vec!["object_kind", "event_name", "ref", "before", "after", "checkout_sha", "project", "project_id", "commits", "total_commits_count", "user_name"]), value in any_json()) {
            let mut event = push();
            event[key] = value;
            let _ = parse(&event);
        }

        #[test]
        fn a_push_cut_short_is_no_event(end in any::<prop::sample::Index>()) {
            let body = serde_json::to_vec(&push()).unwrap();
            prop_assert!(Event::parse(&body[..end.index(body.len())]).is_err());
        }
    }
}
