//! Changing single fields of a document's text.
//!
//! The text stays as its author, or kOps, wrote it: only the lines of the changed fields differ. Every edit is read
//! back and compared with the same change of the document's value; where the text is written in a way that a change of
//! lines cannot follow (aliases, a mapping in braces over several lines), the document is written anew as JSON, which
//! is YAML too.

use kopsline_core::{Classify, FailureKind};
use serde_json::{Map, Value};

use crate::path::FieldPath;
use crate::yaml::{self, Fault, Mapping, Node, NodeKind};

/// A text that is no document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ReadError {
    /// The line in the text, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

impl Classify for ReadError {
    fn kind(&self) -> FailureKind {
        FailureKind::Failed
    }
}

/// Reads one document of the store.
pub(crate) fn read(text: &str) -> Result<yaml::Yaml, ReadError> {
    yaml::read(text).map_err(|faults| {
        let Fault { line, what, .. } =
            faults.into_iter().next().unwrap_or_else(|| Fault { line: 1, what: "the text is no document".into(), remedy: String::new() });
        ReadError { line, what }
    })
}

/// Sets each field to its value, or removes it. A field is given by the keys to it; the mappings on the way are made.
pub(crate) fn set_fields(text: &str, changes: &[(&[&str], Option<Value>)]) -> Result<String, ReadError> {
    let mut text = text.to_owned();
    for (keys, value) in changes {
        let yaml = read(&text)?;
        let path = FieldPath::keys(keys);
        if path.get(&yaml.value) == value.as_ref() {
            continue;
        }
        let mut wanted = yaml.value.clone();
        set(&mut wanted, keys, value.clone());
        let edited =
            edit(&text, &yaml.root, keys, value.as_ref()).filter(|edited| yaml::read(edited).is_ok_and(|read| read.value == wanted));
        text = edited.unwrap_or_else(|| as_json(wanted));
    }
    Ok(text)
}

/// A document as JSON. kOps rewrites the legacy group `kops` only in a line of YAML, so it is rewritten here.
pub(crate) fn as_json(mut document: Value) -> String {
    modern_group(&mut document);
    format!("{document:#}\n")
}

pub(crate) fn modern_group(document: &mut Value) {
    if let Some(version) = document.get_mut("apiVersion")
        && version == "kops/v1alpha2"
    {
        *version = "kops.k8s.io/v1alpha2".into();
    }
}

fn set(document: &mut Value, keys: &[&str], value: Option<Value>) {
    let Some((last, parents)) = keys.split_last() else {
        return;
    };
    let mut at = document;
    for key in parents {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(map) = at else { return };
        at = map.entry(*key).or_insert(Value::Null);
    }
    match (at, value) {
        (Value::Object(map), Some(value)) => _ = map.insert((*last).into(), value),
        (Value::Object(map), None) => _ = map.remove(*last),
        (at, Some(value)) => *at = Value::Object(Map::from_iter([((*last).into(), value)])),
        (_, None) => {}
    }
}

/// The changed text, if the change is one of lines; the caller checks it.
fn edit(text: &str, root: &Node, keys: &[&str], value: Option<&Value>) -> Option<String> {
    let (last, parents) = keys.split_last()?;
    let mut mapping = root.mapping()?;
    for key in parents {
        mapping = entry(mapping, key)?.1.mapping()?;
    }
    match (entry(mapping, last), value) {
        (Some((_, old)), Some(value)) => {
            matches!(old.kind, NodeKind::Scalar { .. }).then_some(())?;
            let range = old.bytes.clone();
            Some([text.get(..range.start)?, &scalar(value), text.get(range.end..)?].concat())
        }
        (Some((key, old)), None) => {
            // Whole lines, and only where nothing else stands on them.
            let before = text.get(..key.bytes.start)?;
            let start = before.rfind('\n').map_or(0, |at| at + 1);
            text.get(start..key.bytes.start)?.trim().is_empty().then_some(())?;
            let last = end(old);
            let end = match text.get(last..)?.find('\n') {
                Some(at) => last + at + 1,
                None => text.len(),
            };
            Some([text.get(..start)?, text.get(end..)?].concat())
        }
        (None, Some(value)) => {
            // kOps writes keys in their order; before the first greater one keeps it.
            let greater =
                mapping.entries.iter().find(|(key, _)| matches!(&key.kind, NodeKind::Scalar { text, .. } if text.as_str() > *last));
            let (next, _) = greater.or_else(|| mapping.entries.first())?;
            let separator = if mapping.flow { ", ".to_owned() } else { format!("\n{}", " ".repeat(next.column)) };
            let at = next.bytes.start;
            let new = format!("{last}: {}{separator}", scalar(value));
            Some([text.get(..at)?, &new, text.get(at..)?].concat())
        }
        (None, None) => None,
    }
}

/// Where a node's text ends: a block collection's own end is where the next token begins.
fn end(node: &Node) -> usize {
    match &node.kind {
        NodeKind::Mapping(Mapping { flow: false, entries }) => entries.last().map_or(node.bytes.end, |(_, value)| end(value)),
        _ => node.bytes.end,
    }
}

fn entry<'n>(mapping: &'n Mapping, key: &str) -> Option<(&'n Node, &'n Node)> {
    let found = mapping.entries.iter().find(|(node, _)| matches!(&node.kind, NodeKind::Scalar { text, .. } if text == key))?;
    Some((&found.0, &found.1))
}

/// A scalar as kOps' YAML writer has it: strings without quotes where they read back as the same string.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if !text.contains('\n') => match yaml::read(text) {
            Ok(read) if read.value == *value && !looks_like_time(text) => text.clone(),
            _ => value.to_string(),
        },
        _ => value.to_string(),
    }
}

/// Go's YAML writer quotes what it would read as a timestamp.
fn looks_like_time(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CONFIG: &str = "metadata:\n  name: a\nspec:\n  channel: stable\n  configBase: s3://b/a\n  subnets:\n  - name: x\n";

    #[test]
    fn only_the_lines_of_the_field_change() {
        let base: &[&str] = &["spec", "configBase"];
        for (text, keys, value, expected) in [
            (CONFIG, base, Some(json!("file:///tmp/x")), CONFIG.replace("s3://b/a", "file:///tmp/x")),
            (CONFIG, base, None, CONFIG.replace("  configBase: s3://b/a\n", "")),
            (CONFIG, &["spec", "keyStore"], Some(json!("s3://k")), CONFIG.replace("  subnets", "  keyStore: s3://k\n  subnets")),
            (
                CONFIG,
                &["metadata", "creationTimestamp"],
                Some(json!("2017-01-01T00:00:00Z")),
                CONFIG.replace("  name: a", "  creationTimestamp: \"2017-01-01T00:00:00Z\"\n  name: a"),
            ),
            (CONFIG, &["metadata", "generation"], Some(json!(3)), CONFIG.replace("  name: a", "  generation: 3\n  name: a")),
            (CONFIG, &["spec", "zones"], Some(json!("a")), CONFIG.replace("  channel", "  zones: a\n  channel")),
            ("spec: {a: 1, z: 2}\n", base, Some(json!("s3://b")), "spec: {a: 1, configBase: s3://b, z: 2}\n".into()),
            (CONFIG, &["spec", "nothing"], None, CONFIG.into()),
        ] {
            assert_eq!(set_fields(text, &[(keys, value)]).unwrap(), expected);
        }
    }

    #[test]
    fn what_lines_cannot_follow_is_written_anew() {
        for text in [
            "base: &b {configBase: x, c: 1}\nspec: *b\n",
            "base: &b {configBase: x}\nspec:\n  <<: *b\n  c: 1\n",
            "spec: {configBase: x,\n  c: 1}\n",
            "spec: {configBase: x, c: 1}\n",
            "spec:\n  ? configBase\n  : x\n  c: 1\n",
            "spec:\n  configBase: >-\n    x\n  c: 1\n",
            "{\"spec\": {\"configBase\": \"x\", \"c\": 1}}",
        ] {
            let removed = set_fields(text, &[(&["spec", "configBase"], None)]).unwrap();
            assert_eq!(yaml::read(&removed).unwrap().value["spec"], json!({"c": 1}), "{removed}");
            let changed = set_fields(text, &[(&["spec", "configBase"], Some(json!("y")))]).unwrap();
            let spec = &yaml::read(&changed).unwrap().value["spec"];
            assert_eq!(*spec, json!({"configBase": "y", "c": 1}), "{changed}");
        }
    }
}
