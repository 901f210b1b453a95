use semver::Version;

use crate::problem::Problem;
use crate::registry::{Registry, SSH_KEYS};
use crate::set::ManifestSet;
use crate::ssh;
use crate::stores::Stores;
use crate::{edit, path::FieldPath};

/// What the state store holds of the cluster now.
#[derive(Clone, Copy, Debug)]
pub struct LiveRegistry<'a> {
    /// The state store, such as `s3://bucket` or `s3://bucket/prefix`.
    pub state_store: &'a str,
    /// The cluster's registry; empty for a new cluster.
    pub registry: &'a Registry,
    /// The content of `kops-version.txt`: the version that last updated the cluster.
    pub kops_version: Option<&'a str>,
}

/// The version of kOps that a cluster is to be run with, and where that is written.
#[derive(Clone, Copy, Debug)]
pub struct PinnedKops<'a> {
    /// Such as `1.36.2`.
    pub version: &'a str,
    /// The file that says so.
    pub file: &'a str,
    /// Its line, from 1.
    pub line: usize,
}

/// What is wrong with manifests only in the face of the live cluster.
pub fn check_against_live(set: &ManifestSet, live: &LiveRegistry<'_>, pinned: &PinnedKops<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(check_kops(live, pinned));
    check_stores(set, live, &mut problems);
    problems.extend(check_ssh_key(set, live));
    problems
}

/// The stores cannot be moved by a replace: the keys and the secrets would stay behind, and kOps would make new ones.
fn check_stores(set: &ManifestSet, live: &LiveRegistry<'_>, problems: &mut Vec<Problem>) {
    let Some(config) = live.registry.get("config") else {
        return;
    };
    let cluster = set.cluster();
    let text = String::from_utf8_lossy(&config.bytes);
    let stored = match edit::read(&text) {
        Ok(yaml) => Stores::in_document(&yaml.value),
        Err(error) => {
            problems.push(Problem {
                file: format!("{}/{}/config", live.state_store.trim_end_matches('/'), cluster.name),
                line: error.line,
                what: format!("the live cluster cannot be read: {}", error.what),
                remedy: "repair it with `kops edit cluster` or from an earlier version of the object".into(),
            });
            return;
        }
    };
    let before = stored.resolved(live.state_store, &cluster.name);
    let after = set.stores().resolved(live.state_store, &cluster.name);
    let moved: Vec<_> = before.into_iter().zip(after).filter(|((_, before), (_, after))| before != after).collect();
    // The defaults of the other two follow from configBase.
    let base_moved = moved.iter().any(|((store, _), _)| *store == "configBase");
    for ((store, before), (_, after)) in moved {
        if base_moved && store != "configBase" {
            continue;
        }
        let path = Stores::field(&cluster.value, store);
        problems.push(cluster.problem(
            &path,
            format!("{path} would move from {before} to {after}, without the keys, secrets and files that are there"),
            format!("write `{path}: {before}`"),
        ));
    }
}

/// kOps adds a key and never removes one, and with two keys `kops update cluster` fails on AWS.
fn check_ssh_key(set: &ManifestSet, live: &LiveRegistry<'_>) -> Option<Problem> {
    let document = set.ssh_credential()?;
    let new = ssh::fingerprint(document.string(&["spec", "publicKey"])?).ok()?;
    let stored: Vec<String> = live.registry.keys().filter_map(|key| key.strip_prefix(SSH_KEYS)).map(|name| name.replace(':', "")).collect();
    let other = stored.first()?;
    if stored.contains(&new) {
        return None;
    }
    Some(document.problem(
        &FieldPath::keys(&["spec", "publicKey"]),
        format!("this SSH key ({new}) would be a second one beside {other}: kops removes none, and fails on AWS with two"),
        format!("run `kops delete sshpublickey --name {}` first, or keep the old key", set.cluster().name),
    ))
}

/// kOps refuses to update a cluster that a newer kOps updated before (kOps 1.36 `apply_cluster.go`).
fn check_kops(live: &LiveRegistry<'_>, pinned: &PinnedKops<'_>) -> Option<Problem> {
    let problem = |what: String, remedy: String| Some(Problem { file: pinned.file.into(), line: pinned.line, what, remedy });
    let version = pinned.version.strip_prefix('v').unwrap_or(pinned.version);
    let Ok(wanted) = Version::parse(version) else {
        return problem(format!("{:?} is not a version of kops", pinned.version), "write it in full, such as 1.36.2".into());
    };
    let last = live.kops_version?.trim();
    match Version::parse(last) {
        Ok(last) if last.cmp_precedence(&wanted).is_gt() => {
            problem(format!("kops {wanted} is older than {last}, which last updated the cluster"), format!("pin kops {last} or newer"))
        }
        Ok(_) => None,
        Err(_) => problem(
            format!("kops-version.txt of the cluster holds {last:?}, which kops cannot read"),
            "restore an earlier version of that object".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SourceFile, StoredObject, parse};

    const CLUSTER: &str = "apiVersion: kops.k8s.io/v1alpha2\nkind: Cluster\nmetadata:\n  name: a.b\nspec:\n  channel: none\n";
    const CREDENTIAL: &str = "\n---\napiVersion: kops.k8s.io/v1alpha2\nkind: SSHCredential\nmetadata:\n  labels: {kops.k8s.io/cluster: a.b}\nspec:\n  publicKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIITyOpPZQIRQtQ1t9kDEbaoVOEr0xldTMTu0b+QKKJD3\n";
    const OWN: &str = "5d605523fb764307564da25dcd894fc8";

    fn check(file: &str, config: Option<&str>, keys: &[&str], last: Option<&str>, kops: &str) -> Vec<String> {
        let file = SourceFile { path: "c.yml".into(), text: file.into() };
        let set = parse(&[file], "a.b").unwrap();
        let object = |text: &str| StoredObject { bytes: text.into(), etag: None };
        let mut registry = Registry::new();
        registry.extend(config.map(|text| ("config".into(), object(text))));
        registry.extend(keys.iter().map(|key| (format!("{SSH_KEYS}{key}"), object("ssh"))));
        let live = LiveRegistry { state_store: "s3://state/", registry: &registry, kops_version: last };
        let pinned = PinnedKops { version: kops, file: "kopsline.yaml", line: 7 };
        check_against_live(&set, &live, &pinned).iter().map(ToString::to_string).collect()
    }

    fn stored(more: &str) -> String {
        format!("{CLUSTER}{more}")
    }

    #[test]
    fn stores_cannot_move() {
        let base = |base: &str| stored(&format!("  configBase: {base}\n"));
        // The same place, with and without the default written out.
        for (file, live) in [
            (stored(""), base("s3://state/a.b")),
            (base("s3://state/a.b/"), stored("")),
            (base("s3://other"), base("s3://other")),
            (stored("  keyStore: s3://state/a.b/pki\n"), stored("")),
        ] {
            assert!(check(&file, Some(&live), &[], None, "1.36.2").is_empty(), "{file}");
        }
        for (file, live, begin) in [
            (base("s3://other"), stored(""), "c.yml:7: spec.configBase would move from s3://state/a.b to s3://other"),
            (stored(""), base("s3://other"), "c.yml:5: spec.configBase would move from s3://other to s3://state/a.b"),
            (stored("  keyStore: s3://keys\n"), stored(""), "c.yml:7: spec.keyStore would move from s3://state/a.b/pki to s3://keys"),
            (
                CLUSTER.replace("v1alpha2", "v1alpha3") + "  configStore:\n    base: s3://other\n",
                stored(""),
                "c.yml:8: spec.configStore.base would move from s3://state/a.b to s3://other",
            ),
        ] {
            let found = check(&file, Some(&live), &[], None, "1.36.2");
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(begin), "{found:?}");
        }
        assert!(check(&base("s3://other"), None, &[], None, "1.36.2").is_empty());
        let unreadable = check(CLUSTER, Some("a: ["), &[], None, "1.36.2");
        assert!(unreadable[0].starts_with("s3://state/a.b/config:"), "{unreadable:?}");
    }

    #[test]
    fn there_is_one_ssh_key() {
        let file = stored(CREDENTIAL);
        for keys in [&[] as &[&str], &[OWN], &["5d:60:55:23:fb:76:43:07:56:4d:a2:5d:cd:89:4f:c8"]] {
            assert!(check(&file, None, keys, None, "1.36.2").is_empty(), "{keys:?}");
        }
        let found = check(&file, None, &["f1690d8d20c326564189df12be87ff58"], None, "1.36.2");
        assert!(found[0].starts_with(&format!("c.yml:14: this SSH key ({OWN}) would be a second one")), "{found:?}");
        assert!(check(CLUSTER, None, &["f1690d8d20c326564189df12be87ff58"], None, "1.36.2").is_empty());
    }

    #[test]
    fn kops_is_not_downgraded() {
        for (last, kops) in [
            (None, "1.36.2"),
            (Some("1.36.2"), "1.36.2"),
            (Some("1.36.2\n"), "v1.37.0"),
            (Some("1.37.0-alpha.1"), "1.37.0"),
            (Some("1.9.0"), "1.36.2"),
        ] {
            assert!(check(CLUSTER, None, &[], last, kops).is_empty(), "{last:?} {kops}");
        }
        for (last, kops, part) in [
            (Some("1.36.3"), "1.36.2", "is older than 1.36.3"),
            (Some("1.37.0"), "1.37.0-alpha.1", "is older than 1.37.0"),
            (Some("latest"), "1.36.2", "which kops cannot read"),
            (None, "latest", "is not a version"),
        ] {
            let found = check(CLUSTER, None, &[], last, kops);
            assert_eq!(found.len(), 1);
            assert!(found[0].starts_with("kopsline.yaml:7: ") && found[0].contains(part), "{found:?}");
        }
    }
}
