use std::collections::BTreeMap;

use kopsline_core::{Classify, FailureKind};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::edit::{self, ReadError};
use crate::set::ManifestSet;
use crate::stores::Stores;

/// The cluster's own object.
const CONFIG: &str = "config";
/// Where the instance groups' objects are.
const INSTANCE_GROUPS: &str = "instancegroup/";
/// Where the SSH public keys are, named by their fingerprint.
pub(crate) const SSH_KEYS: &str = "pki/ssh/public/admin/";

/// A cluster's registry: objects by their key below `<state store>/<cluster>/`, such as `config` and
/// `instancegroup/nodes`. SSH keys are at `pki/ssh/public/admin/<fingerprint>` wherever the key store really is.
pub type Registry = BTreeMap<String, StoredObject>;

/// An object of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Its content.
    #[serde(with = "text")]
    pub bytes: Vec<u8>,
    /// Its `ETag` where it comes from a store that has them; the condition of a later write.
    pub etag: Option<String>,
}

/// What a change does to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// The object is new.
    Create,
    /// The object is there and means something else.
    Modify,
}

/// One object to write. kOps' replace deletes nothing, so no change does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The object's key in the [`Registry`].
    pub key: String,
    /// Whether the object is new.
    pub kind: ChangeKind,
    /// The live object, to be put back if the change is taken back.
    pub previous: Option<StoredObject>,
    /// The new content.
    #[serde(with = "text")]
    pub content: Vec<u8>,
    /// `metadata.generation` in the new content, if it has one.
    pub generation: Option<i64>,
}

/// An object of a registry cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the registry object {key}")]
pub struct RegistryError {
    /// The object's key.
    pub key: String,
    /// What is wrong with it.
    #[source]
    pub source: ReadError,
}

impl Classify for RegistryError {
    fn kind(&self) -> FailureKind {
        FailureKind::Failed
    }
}

/// Something that a person should know and that stops nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What is so.
    pub what: String,
    /// What can be done about it.
    pub remedy: String,
}

/// The objects whose meaning a `kops replace` in a scratch store changed.
///
/// `stores` are those that the cluster's document names ([`ManifestSet::stores`]); they were taken out for the scratch
/// store and are put back here. The content is what kOps wrote, except that a changed object keeps the live one's
/// `creationTimestamp`, and its `generation` grows by one exactly when its spec changed. kOps itself sets the one anew
/// and loses the other on every replace, which shows up as a change in the next plan.
///
/// # Errors
/// An object that should be YAML is not.
pub fn changes(live: &Registry, scratch: &Registry, stores: &Stores) -> Result<Vec<Change>, RegistryError> {
    let mut changes = Vec::new();
    for (key, object) in scratch {
        let change = change(key, live.get(key), object, stores);
        changes.extend(change.map_err(|source| RegistryError { key: key.clone(), source })?);
    }
    Ok(changes)
}

fn change(key: &str, live: Option<&StoredObject>, scratch: &StoredObject, stores: &Stores) -> Result<Option<Change>, ReadError> {
    let kind = match live {
        Some(live) if live.bytes == scratch.bytes => return Ok(None),
        Some(_) => ChangeKind::Modify,
        None => ChangeKind::Create,
    };
    let mut content = scratch.bytes.clone();
    let mut generation = None;
    if key == CONFIG || key.starts_with(INSTANCE_GROUPS) {
        let mut text = utf8(&scratch.bytes)?.to_owned();
        if key == CONFIG {
            text = stores.write_into(&text)?;
        }
        let new = edit::read(&text)?.value;
        generation = generation_of(&new);
        if let Some(live) = live {
            let old = edit::read(utf8(&live.bytes)?)?.value;
            if meaning(&old) == meaning(&new) {
                return Ok(None);
            }
            let counted = generation_of(&old);
            generation = if meaning(&old).get("spec") == meaning(&new).get("spec") { counted } else { Some(counted.unwrap_or(0) + 1) };
            let created = old.pointer("/metadata/creationTimestamp");
            text = edit::set_fields(
                &text,
                &[
                    (&["metadata", "creationTimestamp"], created.filter(|time| !time.is_null()).cloned()),
                    (&["metadata", "generation"], generation.map(Value::from)),
                ],
            )?;
        }
        content = text.into_bytes();
    }
    Ok(Some(Change { key: key.into(), kind, previous: live.cloned(), content, generation }))
}

fn utf8(bytes: &[u8]) -> Result<&str, ReadError> {
    std::str::from_utf8(bytes).map_err(|error| ReadError { line: 1, what: format!("the object is not UTF-8: {error}") })
}

fn generation_of(object: &Value) -> Option<i64> {
    object.pointer("/metadata/generation")?.as_i64()
}

/// Whether two objects mean the same to kOps, whatever their creation time, generation, order of keys, and absent
/// fields written as null or as an empty list.
///
/// # Errors
/// One of them is no YAML document.
pub fn same_meaning(a: &str, b: &str) -> Result<bool, ReadError> {
    Ok(meaning(&edit::read(a)?.value) == meaning(&edit::read(b)?.value))
}

fn meaning(object: &Value) -> Value {
    let mut object = compact(object);
    edit::modern_group(&mut object);
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("creationTimestamp");
        metadata.remove("generation");
        metadata.retain(|_, value| value.as_object().is_none_or(|map| !map.is_empty()));
    }
    object
}

/// Without null and empty lists, which are Go's zero values. An empty mapping stays: `networking: {kubenet: {}}`
/// selects one.
fn compact(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), compact(value)))
            .filter(|(_, value)| !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty()))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(compact).collect(),
        scalar => scalar.clone(),
    }
}

/// The instance groups that are live and not in the files: kOps leaves them, and their machines, as they are.
pub fn absent_groups(set: &ManifestSet, live: &Registry) -> Vec<Notice> {
    let cluster = &set.cluster().name;
    live.keys()
        .filter_map(|key| key.strip_prefix(INSTANCE_GROUPS))
        .filter(|name| set.instance_groups().all(|group| group.name != **name))
        .map(|name| Notice {
            what: format!("the instance group {name} is in the state store but not in the files; kops keeps it and its machines"),
            remedy: format!(
                "to remove it run `kops delete ig {name} --name {cluster} --yes`, which terminates its machines without draining them"
            ),
        })
        .collect()
}

/// Objects are text, all but always; then they are kept as text where they are kept as JSON.
mod text {
    use super::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => to.serialize_str(text),
            Err(_) => bytes.serialize(to),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Ok(match Content::deserialize(from)? {
            Content::Text(text) => text.into_bytes(),
            Content::Bytes(bytes) => bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn object(text: &str) -> StoredObject {
        StoredObject { bytes: text.into(), etag: Some("\"1\"".into()) }
    }

    fn one(key: &str, text: &str) -> Registry {
        Registry::from([(key.into(), object(text))])
    }

    fn group(metadata: &str, spec: &str) -> String {
        format!("kind: InstanceGroup\nmetadata:\n{metadata}  name: nodes\nspec:\n{spec}")
    }

    fn content(live: &str, scratch: &str) -> Option<String> {
        let key = "instancegroup/nodes";
        let changes = changes(&one(key, live), &one(key, scratch), &Stores::default()).unwrap();
        let change = changes.into_iter().next()?;
        assert_eq!(change.kind, ChangeKind::Modify);
        assert_eq!(change.previous, Some(object(live)));
        Some(String::from_utf8(change.content).unwrap())
    }

    #[test]
    fn meaning() {
        for (a, b, same) in [
            ("a: 1\nb: 2\n", "b: 2\na: 1\n", true),
            ("metadata:\n  creationTimestamp: null\n  name: x\n", "metadata: {name: x, generation: 3}\n", true),
            ("metadata: {labels: {}}\n", "metadata: {}\n", true),
            ("a: null\nb: []\nc: 1\n", "c: 1\n", true),
            ("apiVersion: kops/v1alpha2\n", "apiVersion: kops.k8s.io/v1alpha2\n", true),
            ("networking:\n  cni: {}\n", "networking: {}\n", false),
            ("a: false\n", "b: 1\n", false),
            ("a: [1, 2]\n", "a: [2, 1]\n", false),
            ("a: '1'\n", "a: 1\n", false),
        ] {
            assert_eq!(same_meaning(a, b).unwrap(), same, "{a} {b}");
        }
        assert!(same_meaning("a: [", "a: 1").is_err());
    }

    #[test]
    fn time_and_generation_are_kept_and_counted() {
        let (old, new) = ("  creationTimestamp: \"2025-01-01T00:00:00Z\"\n", "  creationTimestamp: \"2026-01-01T00:00:00Z\"\n");
        let generation = |n| format!("{old}  generation: {n}\n");
        let label = "  labels:\n    a: b\n";
        let (a, b) = ("  size: 1\n", "  size: 2\n");
        for (live, scratch, expected) in [
            (group(old, a), group(new, a), None),
            (group(&generation(4), a), group(new, a), None),
            (group(old, a), group(new, b), Some(group(&generation(1), b))),
            (group(&generation(4), a), group(new, b), Some(group(&generation(5), b))),
            // The labels are no part of the spec.
            (group(&generation(4), a), group(&format!("{new}{label}"), a), Some(group(&format!("{}{label}", generation(4)), a))),
            (group("", a), group(&format!("{new}  generation: 9\n{label}"), a), Some(group(label, a))),
            (group("  creationTimestamp: null\n", a), group(new, b), Some(group("  generation: 1\n", b))),
        ] {
            assert_eq!(content(&live, &scratch), expected, "{live} {scratch}");
        }
    }

    #[test]
    fn new_objects_are_what_kops_wrote() {
        let text = group("  creationTimestamp: \"2026-01-01T00:00:00Z\"\n", "  a: 1\n");
        let key = "instancegroup/nodes";
        let changes = changes(&Registry::new(), &one(key, &text), &Stores::default()).unwrap();
        let expected = Change { key: key.into(), kind: ChangeKind::Create, previous: None, content: text.into(), generation: None };
        assert_eq!(changes, [expected]);
    }

    #[test]
    fn the_clusters_stores_are_put_back() {
        let live = "kind: Cluster\nspec:\n  channel: a\n  configBase: s3://b\n  topology: {}\n";
        let stores = Stores::of(live).unwrap();
        let scratch = |channel: &str| one("config", &format!("kind: Cluster\nspec:\n  channel: {channel}\n  topology: {{}}\n"));
        assert!(changes(&one("config", live), &scratch("a"), &stores).unwrap().is_empty());
        let new = changes(&Registry::new(), &scratch("a"), &stores).unwrap();
        assert_eq!(String::from_utf8_lossy(&new[0].content), live);
    }

    #[test]
    fn other_objects_are_compared_by_bytes() {
        let key = format!("{SSH_KEYS}5d60");
        let live = one(&key, "ssh-ed25519 AAAA me");
        assert!(changes(&live, &live, &Stores::default()).unwrap().is_empty());
        let new = changes(&live, &one(&key, "ssh-ed25519 AAAA you"), &Stores::default()).unwrap();
        assert_eq!(new[0].content, b"ssh-ed25519 AAAA you");
    }

    #[test]
    fn unreadable_objects_are_named() {
        let live = one("config", "a: [");
        let error = changes(&live, &one("config", "a: 1"), &Stores::default()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the registry object config");
        let bytes = Registry::from([("config".into(), StoredObject { bytes: vec![0xff], etag: None })]);
        assert!(changes(&Registry::new(), &bytes, &Stores::default()).is_err());
    }

    #[test]
    fn changes_are_kept_as_text() {
        let change = Change {
            key: "config".into(),
            kind: ChangeKind::Modify,
            previous: Some(StoredObject { bytes: vec![0xff, 1], etag: None }),
            content: b"a: 1\n".to_vec(),
            generation: Some(2),
        };
        let json = serde_json::to_value(&change).unwrap();
        assert_eq!(json["content"], json!("a: 1\n"));
        assert_eq!(json["kind"], json!("modify"));
        assert_eq!(serde_json::from_value::<Change>(json).unwrap(), change);
    }

    fn spec() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z0-9./: -]{0,12}".prop_map(Value::from),
            Just(json!({})),
        ];
        let tree = leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 1..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-z]{2,6}", inner, 1..4).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        proptest::collection::btree_map("[a-z]{2,6}", tree, 1..4).prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    fn yaml(spec: &Value, generation: Option<i64>, second: u8) -> String {
        // As kOps' writer orders it: keys sorted.
        let generation = generation.map_or_else(String::new, |n| format!("  generation: {n}\n"));
        format!(
            "kind: Cluster\nmetadata:\n  creationTimestamp: \"2026-01-01T00:00:{:02}Z\"\n{generation}  name: a\nspec: {spec}\n",
            second % 60
        )
    }

    proptest! {
        #[test]
        fn no_semantic_change_is_no_change(spec in spec(), old in any::<Option<i64>>(), a in any::<u8>(), b in any::<u8>()) {
            let live = one("config", &yaml(&spec, old, a));
            let scratch = one("config", &yaml(&spec, None, b));
            prop_assert_eq!(changes(&live, &scratch, &Stores::default()).unwrap(), []);
        }

        #[test]
        fn what_was_committed_does_not_change_again(old in spec(), new in spec(), generation in 1..99_i64, b in any::<u8>()) {
            let live = yaml(&old, Some(generation), 1);
            let scratch = one("config", &yaml(&new, Some(generation + 1), b));
            let first = changes(&one("config", &live), &scratch, &Stores::default()).unwrap();
            prop_assert_eq!(first.is_empty(), super::meaning(&old) == super::meaning(&new));
            for change in first {
                let text = String::from_utf8(change.content).unwrap();
                prop_assert_eq!(&text, &yaml(&new, Some(generation + 1), 1));
                let again = changes(&one("config", &text), &scratch, &Stores::default()).unwrap();
                prop_assert_eq!(again, []);
            }
        }
    }
}
