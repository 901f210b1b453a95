//! Finding the fields that kOps drops without a word.
//!
//! kOps decodes manifests without strictness: a misspelled field vanishes. The fields that each version knows are only
//! in its binary, so the binary is asked: a field was dropped if neither its absence nor another value of it makes any
//! difference to what kOps writes. If kOps objects to a value of a wrong type it knows the field and ignores it, as
//! `masterInternalName` of old clusters; else it does not know it.

use std::collections::{BTreeMap, BTreeSet};

use kopsline_core::{Classify, FailureKind};
use serde_json::{Value, json};

use crate::edit;
use crate::path::{FieldPath, Step};
use crate::problem::Problem;
use crate::registry::Notice;
use crate::set::Document;

/// The leaves of a document that are not at the same place in the object that kOps made of it. Most documents have
/// none. Leaves that kOps renames (the input is of another API version) or leaves out because they are zero values are
/// suspects too.
pub fn suspects(input: &Value, output: &Value) -> Vec<FieldPath> {
    let mut leaves = leaves(input);
    leaves.retain(|path| path.get(output).is_none());
    leaves
}

/// The leaves of a document: its scalars, and its empty mappings and lists.
fn leaves(value: &Value) -> Vec<FieldPath> {
    fn collect(value: &Value, path: &FieldPath, found: &mut Vec<FieldPath>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    collect(value, &path.child(Step::Key(key.clone())), found);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for (index, value) in items.iter().enumerate() {
                    collect(value, &path.child(Step::Index(index)), found);
                }
            }
            _ => found.push(path.clone()),
        }
    }
    let mut found = Vec::new();
    collect(value, &FieldPath::default(), &mut found);
    found
}

/// The document without one field.
fn without(document: &Value, path: &FieldPath) -> Value {
    let mut document = document.clone();
    if let Some((parent, last)) = path.split_last() {
        match (parent.get_mut(&mut document), last) {
            (Some(Value::Object(map)), Step::Key(key)) => _ = map.remove(key),
            (Some(Value::Array(items)), Step::Index(index)) if *index < items.len() => {
                items.remove(*index);
            }
            _ => {}
        }
    }
    document
}

/// The document with another value in one field: of the same type where the value tells it, so that kOps takes it.
fn perturbed(document: &Value, path: &FieldPath) -> Value {
    let mut document = document.clone();
    if let Some(value) = path.get_mut(&mut document) {
        *value = match &*value {
            Value::Bool(flag) => Value::Bool(!flag),
            Value::Number(number) => match number.as_i64() {
                Some(i64::MAX) | None => Value::from(1),
                Some(number) => Value::from(number + 1),
            },
            Value::String(text) => Value::from(format!("{text}x")),
            // Null and the empty collections do not tell the type; a known field of another type is an error then,
            // and that tells as much.
            _ => Value::from("x"),
        };
    }
    document
}

/// The document with a value of another type in one field, if the value tells its type.
fn mistyped(document: &Value, path: &FieldPath) -> Value {
    let mut document = document.clone();
    if let Some(value) = path.get_mut(&mut document) {
        *value = match &*value {
            Value::Bool(_) | Value::Number(_) | Value::String(_) => json!({"x": "x"}),
            _ => Value::from("x"),
        };
    }
    document
}

/// A document to be given to kOps.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Its `metadata.name`, unlike that of every other trial.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Asks kOps which suspects it dropped, in one or two runs that need no cloud.
///
/// kOps is only to decode each trial and to write it out, as `kops get` does:
/// - clusters: put each trial's text at `<store>/<name>/config` of an empty local store and run `kops get clusters
///   --state file://<store> -o json` once; it leaves out, with a warning, what it cannot decode;
/// - instance groups: put them at `<store>/<cluster>/instancegroup/<name>`, any decodable cluster at
///   `<store>/<cluster>/config`, and run `kops get instancegroups --name <cluster> --state file://<store> -o json`; it
///   fails as a whole if it cannot decode one: then run it with each trial alone.
///
/// [`written`] reads what it prints; [`dropped`](Self::dropped) concludes.
#[derive(Clone, Debug)]
pub struct DropProbe {
    input: Value,
    suspects: Vec<FieldPath>,
}

/// The fields of a document that do not reach the object that kOps writes. A mapping of which everything is dropped is
/// named once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// kOps does not know them: misspelled, misplaced, or of another version.
    pub unknown: Vec<FieldPath>,
    /// kOps knows them and does nothing with them.
    pub unused: Vec<FieldPath>,
}

impl Dropped {
    /// What its author must correct.
    pub fn problems(&self, document: &Document) -> Vec<Problem> {
        let problem = |path: &FieldPath| {
            document.problem(
                path,
                format!("kops does not know the field {path} and would drop it without a word"),
                "correct its spelling or its place, or remove it",
            )
        };
        self.unknown.iter().map(problem).collect()
    }

    /// What its author may tidy up.
    pub fn notices(&self, document: &Document) -> Vec<Notice> {
        let notice = |path: &FieldPath| Notice {
            what: format!("{}:{}: kops ignores the field {path}", document.file, document.line_of(path)),
            remedy: "remove it".into(),
        };
        self.unused.iter().map(notice).collect()
    }
}

/// kOps did not even write the unchanged document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("kops did not write the unchanged document back")]
pub struct ProbeError;

impl Classify for ProbeError {
    fn kind(&self) -> FailureKind {
        FailureKind::KopsFailed
    }
}

const UNCHANGED: &str = "probe-unchanged";

impl DropProbe {
    /// A probe of one cluster or instance group; none if kOps kept every field, which is the usual case.
    pub fn new(input: &Value, output: &Value) -> Option<Self> {
        let suspects = suspects(input, output);
        let mut input = input.clone();
        edit::modern_group(&mut input);
        (!suspects.is_empty()).then_some(Self { input, suspects })
    }

    /// All documents to give to kOps.
    pub fn trials(&self) -> Vec<Trial> {
        let mut trials = vec![trial(UNCHANGED.into(), self.input.clone())];
        for (number, path) in self.suspects.iter().enumerate() {
            let documents = [without, perturbed, mistyped].map(|change| change(&self.input, path));
            trials.extend(names(number).into_iter().zip(documents).map(|(n, d)| trial(n, d)));
        }
        trials
    }

    /// The fields that kOps drops, given what it wrote for each trial by its name; a trial that it could not decode is
    /// not there.
    ///
    /// # Errors
    /// The unchanged document is not there: kOps did not run as it should.
    pub fn dropped(&self, written: &BTreeMap<String, Value>) -> Result<Dropped, ProbeError> {
        let unchanged = written.get(UNCHANGED).ok_or(ProbeError)?;
        let unchanged = nameless(unchanged);
        let same = |name: &str| written.get(name).is_some_and(|w| nameless(w) == unchanged);
        let (mut unknown, mut unused) = (BTreeSet::new(), BTreeSet::new());
        for (number, path) in self.suspects.iter().enumerate() {
            let [absent, other, mistyped] = names(number).map(|name| same(&name));
            match (absent && other, mistyped) {
                (true, true) => _ = unknown.insert(path),
                (true, false) => _ = unused.insert(path),
                (false, _) => {}
            }
        }
        let leaves = leaves(&self.input);
        Ok(Dropped { unknown: tops(&unknown, &leaves), unused: tops(&unused, &leaves) })
    }
}

/// The shortest paths under which all of a document's leaves are dropped.
fn tops(dropped: &BTreeSet<&FieldPath>, leaves: &[FieldPath]) -> Vec<FieldPath> {
    let top = |path: &&FieldPath| {
        let steps = path.steps();
        (1..=steps.len())
            .filter_map(|length| steps.get(..length))
            .find(|prefix| {
                let mut inside = leaves.iter().filter(|l| l.steps().starts_with(prefix));
                inside.all(|leaf| dropped.contains(leaf))
            })
            .map(|prefix| FieldPath(prefix.to_vec()))
    };
    let mut tops: Vec<FieldPath> = dropped.iter().filter_map(top).collect();
    tops.dedup();
    tops
}

/// The names of a suspect's three trials.
fn names(suspect: usize) -> [String; 3] {
    ["absent", "other", "mistyped"].map(|change| format!("probe-{suspect}-{change}"))
}

fn trial(name: String, mut document: Value) -> Trial {
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("name".into(), name.as_str().into());
    }
    Trial { name, text: document.to_string() }
}

fn nameless(document: &Value) -> Value {
    without(document, &FieldPath::keys(&["metadata", "name"]))
}

/// What `kops get ... -o json` printed, by name: it prints a list, or one object if there is only one.
///
/// # Errors
/// The text is not JSON.
pub fn written(output: &str) -> Result<BTreeMap<String, Value>, serde_json::Error> {
    let objects = match serde_json::from_str(output)? {
        Value::Array(objects) => objects,
        object => vec![object],
    };
    let named = |object: Value| {
        let name = object.pointer("/metadata/name")?.as_str()?.to_owned();
        Some((name, object))
    };
    Ok(objects.into_iter().filter_map(named).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SourceFile, parse};

    /// A kOps that knows these fields of the spec: `kept` and `legacy` are booleans, `legacy` is ignored, `size` is a
    /// number that is left out when zero, `old` is written as `new`.
    fn kops(text: &str) -> Option<Value> {
        let input: Value = serde_json::from_str(text).unwrap();
        let mut spec = serde_json::Map::new();
        for (key, value) in input["spec"].as_object().unwrap() {
            match key.as_str() {
                "kept" => _ = spec.insert("kept".into(), value.as_bool()?.into()),
                "legacy" => _ = value.as_bool()?,
                "size" => match value.as_i64()? {
                    0 => {}
                    size => _ = spec.insert("size".into(), size.into()),
                },
                "old" => _ = spec.insert("new".into(), value.as_str()?.into()),
                "list" => _ = spec.insert("list".into(), value.as_array()?.clone().into()),
                _ => {}
            }
        }
        Some(json!({"kind": input["kind"], "apiVersion": input["apiVersion"], "metadata": input["metadata"], "spec": spec}))
    }

    fn probe(spec: &Value) -> Option<Dropped> {
        let input = json!({"kind": "Cluster", "apiVersion": "kops.k8s.io/v1alpha2", "metadata": {"name": "a"}, "spec": spec});
        let probe = DropProbe::new(&input, &kops(&input.to_string()).unwrap())?;
        let trials = probe.trials();
        let written = trials.iter().filter_map(|t| Some((t.name.clone(), kops(&t.text)?)));
        Some(probe.dropped(&written.collect()).unwrap())
    }

    #[test]
    fn nothing_missing_needs_no_probe() {
        assert_eq!(probe(&json!({"kept": true, "size": 3})), None);
    }

    #[test]
    fn zero_values_and_renamed_fields_are_no_drops() {
        let dropped = probe(&json!({"kept": false, "size": 0, "old": "x"}));
        assert_eq!(dropped, Some(Dropped::default()));
    }

    #[test]
    fn unknown_and_unused_fields() {
        let spec = json!({
            "kepd": false, "keep": null, "sizes": {"min": 1, "max": {}}, "legacy": true, "size": 0,
            "list": [{"a": 1}], "lists": ["a"],
        });
        let dropped = probe(&spec).unwrap();
        let names = |paths: &[FieldPath]| -> Vec<String> { paths.iter().map(ToString::to_string).collect() };
        assert_eq!(names(&dropped.unknown), ["spec.keep", "spec.kepd", "spec.lists", "spec.sizes"]);
        assert_eq!(names(&dropped.unused), ["spec.legacy"]);
    }

    #[test]
    fn without_the_unchanged_document_nothing_is_concluded() {
        let input = json!({"spec": {"a": 1}});
        let probe = DropProbe::new(&input, &json!({})).unwrap();
        assert_eq!(probe.dropped(&BTreeMap::new()), Err(ProbeError));
    }

    #[test]
    fn a_dropped_field_is_told_with_its_line() {
        let file = SourceFile {
            path: "c.yml".into(),
            text: "apiVersion: kops.k8s.io/v1alpha2\nkind: Cluster\nmetadata:\n  name: a.b\nspec:\n  chanel: x\n".into(),
        };
        let set = parse(&[file], "a.b").unwrap();
        let path = FieldPath::keys(&["spec", "chanel"]);
        let dropped = Dropped { unknown: vec![path.clone()], unused: vec![path] };
        let problems = dropped.problems(set.cluster());
        assert!(problems[0].to_string().starts_with("c.yml:6: kops does not know the field spec.chanel"));
        assert!(dropped.notices(set.cluster())[0].what.starts_with("c.yml:6: kops ignores"));
    }

    #[test]
    fn what_kops_prints() {
        let one = r#"{"metadata": {"name": "a"}}"#;
        assert_eq!(written(one).unwrap().keys().collect::<Vec<_>>(), ["a"]);
        let two = format!("[{one}, {}]", one.replace("\"a\"", "\"b\""));
        assert_eq!(written(&two).unwrap().keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(written("").is_err());
    }

    #[test]
    fn leaves_are_scalars_and_empty_collections() {
        let leaves: Vec<String> = leaves(&json!({"a": {"b": [1, {}], "c": []}, "d": null})).iter().map(ToString::to_string).collect();
        assert_eq!(leaves, ["a.b[0]", "a.b[1]", "a.c", "d"]);
    }
}
