//! The golden clusters of kOps' own tests, read from kOps' Go module, against the checks and the real kOps.
//!
//! `KOPS_MODULE_DIR` is the module's folder (`go list -m -f '{{.Dir}}' k8s.io/kops` in `tools/kops`), `KOPS_BIN` a kOps
//! binary. Without them these tests say so and check nothing: the module is too large to keep a copy here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use kopsline_manifests::{Document, DropProbe, Dropped, FieldPath, Kind, ManifestSet, Problem, SourceFile, Trial, parse, split, written};
use serde_json::Value;
use tempfile::TempDir;

/// Every `in-*.yaml` below the module's integration tests.
fn golden() -> Vec<SourceFile> {
    let Some(module) = env::var_os("KOPS_MODULE_DIR") else {
        eprintln!("skipped: KOPS_MODULE_DIR is not set");
        return Vec::new();
    };
    let root = Path::new(&module).join("tests/integration/update_cluster");
    let mut files = Vec::new();
    for folder in fs::read_dir(root).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("in-") && path.extension().is_some_and(|e| e == "yaml") {
                let text = fs::read(&path).unwrap();
                files.push(SourceFile::from_bytes(path.to_str().unwrap(), text).unwrap());
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.len() > 80, "{} golden clusters", files.len());
    files
}

fn check(file: &SourceFile) -> Result<ManifestSet, Vec<Problem>> {
    let name = split(file).iter().find(|section| section.text.contains("kind: Cluster\n")).and_then(|section| {
        let metadata = section.text.split("metadata:\n").nth(1)?;
        let name = metadata.lines().find_map(|line| line.strip_prefix("  name: "))?;
        Some(name.trim().trim_matches('"').to_owned())
    });
    parse(std::slice::from_ref(file), &name.unwrap())
}

#[test]
fn only_what_kops_refuses_too_is_refused() {
    for file in golden() {
        match check(&file) {
            Ok(set) => {
                let whole = SourceFile { path: String::new(), text: set.assemble() };
                let texts = split(&whole).into_iter().map(|section| section.text);
                assert!(texts.eq(set.documents().iter().map(|d| d.text.clone())));
            }
            // kOps: unhandled kind "kubescheduler.config.k8s.io/v1beta2, Kind=KubeSchedulerConfiguration".
            Err(problems) => {
                assert!(file.path.contains("/additionalobjects/"), "{problems:?}");
                assert_eq!(problems.len(), 1, "{problems:?}");
                assert!(problems[0].what.contains("unhandled kind"));
            }
        }
    }
}

/// A local state store.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn put(&self, key: &str, text: &str) {
        let path = self.0.path().join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn kops(&self, kops: &Path, arguments: &[&str]) -> Option<BTreeMap<String, Value>> {
        let output = Command::new(kops)
            .args(arguments)
            .args(["-o", "json", "--state"])
            .arg(format!("file://{}", self.0.path().display()))
            .env_clear()
            .env("HOME", self.0.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| written(&text).unwrap())
    }
}

/// What kOps writes for each document that it can decode, asked as [`DropProbe`] says.
fn ask(kops: &Path, kind: Kind, trials: &[Trial]) -> BTreeMap<String, Value> {
    let scratch = Scratch::new();
    if kind == Kind::Cluster {
        for trial in trials {
            scratch.put(&format!("{}/config", trial.name), &trial.text);
        }
        return scratch.kops(kops, &["get", "clusters"]).unwrap_or_default();
    }
    let cluster = r#"{"apiVersion": "kops.k8s.io/v1alpha2", "kind": "Cluster", "metadata": {"name": "c"}}"#;
    let groups = |trials: &[Trial]| {
        let scratch = Scratch::new();
        scratch.put("c/config", cluster);
        for trial in trials {
            scratch.put(&format!("c/instancegroup/{}", trial.name), &trial.text);
        }
        scratch.kops(kops, &["get", "instancegroups", "--name", "c"])
    };
    groups(trials).unwrap_or_else(|| {
        let alone = trials.iter().map(|trial| groups(std::slice::from_ref(trial)));
        alone.flatten().flatten().collect()
    })
}

fn dropped(kops: &Path, document: &Document) -> Dropped {
    let unchanged = Trial { name: document.name.clone(), text: document.text.clone() };
    let output = ask(kops, document.kind, &[unchanged]);
    let Some(probe) = DropProbe::new(&document.value, output.get(&document.name).unwrap()) else {
        return Dropped::default();
    };
    let answers = ask(kops, document.kind, &probe.trials());
    probe.dropped(&answers).unwrap()
}

/// What kOps 1.36.2 drops of its own golden clusters: fields that its Go types do not have.
const UNKNOWN: [(&str, &[&str]); 5] = [
    ("complex", &["spec.serviceOIDCProvider"]),
    ("minimal_gce_plb", GCE),
    ("minimal_gce_plb_apiserver", GCE),
    ("minimal_openstack", OPENSTACK),
    ("openstack_floatingip", OPENSTACK),
];
const GCE: &[&str] = &[
    "spec.etcdClusters[0].type",
    "spec.etcdClusters[0].volumeIops",
    "spec.etcdClusters[0].volumeSize",
    "spec.etcdClusters[0].volumeThroughput",
    "spec.etcdClusters[1].type",
    "spec.rootVolume",
];
const OPENSTACK: &[&str] = &["spec.openstackServiceAccount", "spec.project"];

#[test]
fn only_what_kops_does_not_know_is_called_dropped() {
    let Some(kops) = env::var_os("KOPS_BIN").map(PathBuf::from) else {
        eprintln!("skipped: KOPS_BIN is not set");
        return;
    };
    for file in golden() {
        let Ok(set) = check(&file) else { continue };
        let folder = Path::new(&file.path).parent().unwrap();
        let folder = folder.file_name().unwrap().to_str().unwrap();
        let expected = UNKNOWN.iter().find(|(name, _)| *name == folder);
        let expected = expected.map_or(&[] as &[&str], |(_, fields)| fields);
        for document in set.documents() {
            let dropped = dropped(&kops, document);
            for path in dropped.unknown {
                let path = path.to_string();
                assert!(expected.contains(&path.as_str()), "{}: {path}", file.path);
            }
            // `project` is for other clouds than OpenStack.
            for path in dropped.unused {
                let path = path.to_string();
                let unused = ["spec.masterInternalName", "spec.project"];
                assert!(unused.contains(&path.as_str()), "{}: {path}", file.path);
            }
        }
    }
}

#[test]
fn a_misspelled_field_is_found() {
    let Some(kops) = env::var_os("KOPS_BIN").map(PathBuf::from) else {
        eprintln!("skipped: KOPS_BIN is not set");
        return;
    };
    for file in golden().iter().step_by(9) {
        let Ok(set) = check(file) else { continue };
        for document in set.documents() {
            let mut document = document.clone();
            document.text = document.text.replace("\nspec:\n", "\nspec:\n  mispelled: false\n");
            document.value["spec"]["mispelled"] = false.into();
            let unknown = dropped(&kops, &document).unknown;
            assert!(unknown.contains(&FieldPath::keys(&["spec", "mispelled"])), "{}", file.path);
        }
    }
}

/// Values as people write them, and the traps of YAML 1.1.
const VALUES: &[&str] = &[
    "a",
    "yes",
    "Off",
    "y",
    "TRUE",
    "~",
    "null",
    "''",
    "1.30",
    "1.0",
    "1.",
    "1e3",
    "1E-2",
    "1e21",
    ".5",
    "-.5",
    "+.5",
    "._5",
    "0644",
    "0o17",
    "0x1F",
    "-0x1f",
    "0b11",
    "-0b11",
    "08",
    "09.5",
    "1_000",
    "1__0",
    "_1",
    "+5",
    "-0",
    "- a",
    "+",
    "-a",
    "0x",
    "0xg",
    "18446744073709551615",
    "18446744073709551616",
    "+9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "1.31.0",
    "v1.31",
    "12:30:00",
    "2024-01-02",
    "2024-1-2 03:04:05",
    "2017-01-01T00:00:00Z",
    "100m",
    "'1'",
    "!!str 1",
    "! 1",
    "0.0.0.0/0",
    "1.5Gi",
    "\"a\\tb\\u00e9\"",
    "|\n    x\n    y",
    ">-\n    x\n    y",
    "{a: 1, b: [c, 'd']}",
    "[a, {b: c}]",
    "a # b",
    "a#b",
    "http://x:1/y",
    "&x {v: 1}",
    "*x",
    "{<<: *x, w: 2}",
    "'it''s'",
    "a\n    b",
    "50%",
    "~a",
    "=",
    "<<",
    "é",
];

/// kOps prints a document without a kind as the JSON that it read.
#[test]
fn yaml_is_read_as_kops_reads_it() {
    let Some(kops) = env::var_os("KOPS_BIN").map(PathBuf::from) else {
        eprintln!("skipped: KOPS_BIN is not set");
        return;
    };
    let mut body = String::new();
    for (number, field) in VALUES.iter().enumerate() {
        let field = field.strip_prefix("- ").map_or_else(|| (*field).to_owned(), |item| format!("\n  - {item}"));
        writeln!(body, "  f{number}: {field}").unwrap();
    }
    let scratch = Scratch::new();
    scratch.put("file.yaml", &format!("spec:\n{body}"));
    let output = Command::new(&kops)
        .args(["replace", "--state", "file:///nowhere", "-f"])
        .arg(scratch.0.path().join("file.yaml"))
        .env_clear()
        .env("HOME", scratch.0.path())
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    let (_, json) = message.split_once("is missing in '").unwrap();
    let json = json.rsplit_once('\'').unwrap().0;
    let expected: Value = serde_json::from_str(json).unwrap();

    let head = "apiVersion: kops.k8s.io/v1alpha2\nkind: Cluster\nmetadata:\n  name: a.b\n";
    let file = SourceFile { path: "file.yaml".into(), text: format!("{head}spec:\n{body}") };
    let set = parse(&[file], "a.b").unwrap();
    for (number, field) in VALUES.iter().enumerate() {
        let name = format!("f{number}");
        let (found, expected) = (&set.cluster().value["spec"][&name], &expected["spec"][&name]);
        // Go writes a large float like an integer.
        let same = found == expected || (found.is_f64() && found.as_f64() == expected.as_f64());
        assert!(same, "{field}: {found} is not {expected}");
    }
}
