//! From the manifests to the change of a registry, on what the real kOps 1.36.2 wrote.
//!
//! `fixtures/cluster.yml` differs from the live cluster in the channel and in the nodes' machine type. `scratch` is what
//! `kops replace --force` made of an isolated copy of `live` and of the isolated file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use kopsline_manifests::{
    ChangeKind, ManifestSet, Registry, SourceFile, StoredObject, Stores, absent_groups, changes, parse, with_config_base,
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

fn registry(name: &str) -> Registry {
    let keys = ["config", "instancegroup/master-us-east-1a", "instancegroup/nodes"];
    let read = |key| StoredObject { bytes: fs::read(Path::new(FIXTURES).join(name).join(key)).unwrap(), etag: None };
    keys.into_iter().map(|key| (key.to_owned(), read(key))).collect()
}

fn text(registry: &Registry, key: &str) -> String {
    String::from_utf8(registry[key].bytes.clone()).unwrap()
}

fn set() -> ManifestSet {
    let bytes = fs::read(Path::new(FIXTURES).join("cluster.yml")).unwrap();
    let file = SourceFile::from_bytes("cluster.yml", bytes).unwrap();
    parse(&[file], "minimal.example.com").unwrap()
}

#[test]
fn only_what_changed_is_written_and_keeps_its_history() {
    let (live, scratch) = (registry("live"), registry("scratch"));
    let changes = changes(&live, &scratch, &set().stores()).unwrap();
    let found: Vec<_> = changes.iter().map(|c| (c.key.as_str(), c.kind, c.generation)).collect();
    // kOps gave the control plane's group a new time too, and no other change.
    assert_eq!(found, [("config", ChangeKind::Modify, Some(4)), ("instancegroup/nodes", ChangeKind::Modify, Some(1)),]);
    let config = text(&scratch, "config")
        .replace("  generation: 4\n", "  creationTimestamp: \"2025-03-04T05:06:07Z\"\n  generation: 4\n")
        .replace("  etcdClusters", "  configBase: s3://state/minimal.example.com\n  etcdClusters");
    assert_eq!(String::from_utf8_lossy(&changes[0].content), config);
    let nodes = text(&live, "instancegroup/nodes").replace("  labels:\n", "  generation: 1\n  labels:\n").replace("t2.medium", "t3.large");
    assert_eq!(String::from_utf8_lossy(&changes[1].content), nodes);
}

#[test]
fn the_same_again_is_no_change() {
    let live = registry("live");
    let stores = Stores::of(&text(&live, "config")).unwrap();
    let mut scratch = live.clone();
    for object in scratch.values_mut() {
        let text = String::from_utf8(object.bytes.clone()).unwrap();
        // What a replace of the same file does to the objects.
        let text = text.replace("2025-03-04", "2026-11-23").replace("  generation: 3\n", "");
        object.bytes = Stores::default().write_into(&text).unwrap().into();
    }
    assert_eq!(changes(&live, &scratch, &stores).unwrap(), []);
}

#[test]
fn isolation_takes_one_line_from_the_file() {
    let set = set();
    let whole = set.assemble();
    assert_eq!(set.assemble_isolated().unwrap(), whole.replace("  configBase: s3://state/minimal.example.com\n", ""));
}

#[test]
fn a_dry_run_beside_the_live_store_changes_one_line() {
    let config = text(&registry("scratch"), "config");
    let beside = with_config_base(&config, "s3://state/minimal.example.com").unwrap();
    assert_eq!(beside, config.replace("  etcdClusters", "  configBase: s3://state/minimal.example.com\n  etcdClusters"));
}

#[test]
fn a_group_absent_from_the_files_is_told() {
    let mut live = registry("live");
    assert_eq!(absent_groups(&set(), &live), []);
    live.insert("instancegroup/old".into(), live["config"].clone());
    let notices = absent_groups(&set(), &live);
    assert_eq!(notices.len(), 1);
    assert!(notices[0].what.contains("instance group old"));
    assert!(notices[0].remedy.contains("kops delete ig old --name minimal.example.com --yes"));
}
