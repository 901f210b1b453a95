//! The real kops on an emulated AWS: what the rest of this crate claims about it.
//!
//! Runs where `KOPSLINE_TEST_KOPS` is the path of a kops 1.36.2 and `KOPSLINE_TEST_AWS_ENV` names a JSON file with the
//! environment of an emulated AWS; `KOPSLINE_TEST_IMAGE` in that file is an AMI the emulator knows.

// The lints' exception for tests does not reach helper functions of integration tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::types::CreateBucketConfiguration;
use kopsline_core::{ClusterName, StateStoreUri};
use kopsline_kops::{EngineError, Environment, Kops, RunError, Runner, Timeouts, UpdateScope, dry_run, not_previewed, rehearse};
use kopsline_manifests::{Change, ManifestSet, SourceFile};
use kopsline_state::testing::MemoryStore;
use kopsline_state::{ClusterState, Journal, ObjectStore, S3Store, S3Stores, Stores, Transaction};
use semver::Version;
use tempfile::TempDir;
use wiremock::matchers::path_regex;
use wiremock::{Mock, MockServer, ResponseTemplate};

/// A cluster that does not exist yet, in a bucket of its own.
struct World {
    runner: Runner,
    stores: Arc<dyn Stores>,
    bucket: S3Store,
    store: StateStoreUri,
    cluster: ClusterName,
    manifests: String,
    _files: MockServer,
    _folder: TempDir,
}

impl World {
    /// None where there is no kops or no emulated AWS.
    async fn new(name: &str) -> Option<Self> {
        let (Some(kops), Some(file)) = (std::env::var_os("KOPSLINE_TEST_KOPS"), std::env::var_os("KOPSLINE_TEST_AWS_ENV")) else {
            eprintln!("skipped: KOPSLINE_TEST_KOPS and KOPSLINE_TEST_AWS_ENV are not set");
            return None;
        };
        let env: BTreeMap<String, String> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let region = env["AWS_REGION"].clone();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.clone()))
            .credentials_provider(Credentials::new(&env["AWS_ACCESS_KEY_ID"], &env["AWS_SECRET_ACCESS_KEY"], None, None, "test"))
            .endpoint_url(&env["AWS_ENDPOINT_URL"])
            .force_path_style(true)
            .build();
        let client = aws_sdk_s3::Client::from_conf(config);
        let bucket = format!("kops-{name}-{}", std::process::id());
        // S3 knows no constraint of that name: it is where buckets without one are.
        let location =
            (region != "us-east-1").then(|| CreateBucketConfiguration::builder().location_constraint(region.as_str().into()).build());
        client.create_bucket().bucket(&bucket).set_create_bucket_configuration(location).send().await.unwrap();

        // kops asks for the checksums of the files that machines fetch.
        let files = MockServer::start().await;
        let checksum = ResponseTemplate::new(200).set_body_string("0".repeat(64));
        Mock::given(path_regex("\\.sha256$")).respond_with(checksum).mount(&files).await;

        let cluster = ClusterName::new(&format!("{name}-{}.example.com", std::process::id())).unwrap();
        let manifests = include_str!("cluster.yaml")
            .replace("$CLUSTER", cluster.as_str())
            .replace("$REGION", &region)
            .replace("$IMAGE", &env["KOPSLINE_TEST_IMAGE"])
            .replace("$FILES", &files.uri());
        let folder = tempfile::tempdir().unwrap();
        let kops = Kops { path: PathBuf::from(kops), version: Version::new(1, 36, 2), sha256: String::new() };
        let environment = Environment::from_variables(env).in_region(&region).with_feature_flags("-ImageDigest");
        Some(Self {
            // A task that cannot be done keeps kops busy for ten minutes; what it says until then is enough.
            runner: Runner::new(kops, environment, folder.path())
                .with_timeouts(Timeouts { update: Duration::from_mins(2), ..Timeouts::default() }),
            stores: Arc::new(S3Stores::new(client.clone())),
            bucket: S3Store::new(client, &bucket, ""),
            store: StateStoreUri::new(&format!("s3://{bucket}/team")).unwrap(),
            cluster,
            manifests,
            _files: files,
            _folder: folder,
        })
    }

    async fn live(&self) -> ClusterState {
        ClusterState::read(&*self.stores, &self.store, &self.cluster).await.unwrap()
    }

    fn set(&self, manifests: &str) -> ManifestSet {
        let file = SourceFile { path: "cluster.yaml".into(), text: manifests.into() };
        kopsline_manifests::parse(&[file], self.cluster.as_str()).unwrap()
    }

    async fn commit(&self, live: &ClusterState, changes: Vec<Change>) -> Transaction {
        let transaction = Transaction::new(Arc::clone(&self.stores), Arc::new(MemoryStore::default()), "journal.json");
        transaction.prepare(Journal::new(self.cluster.clone(), &live.places, changes)).await.unwrap();
        transaction.commit().await.unwrap();
        transaction
    }

    /// Everything in the bucket, by key and version.
    async fn objects(&self) -> Vec<(String, String)> {
        let objects = self.bucket.list("").await.unwrap();
        objects.into_iter().map(|object| (object.key, format!("{} {}", object.etag, object.last_modified))).collect()
    }
}

fn keys(changes: &[Change]) -> Vec<&str> {
    changes.iter().map(|change| change.key.as_str()).collect()
}

/// The lines that only one of two dry runs has. kops prints maps in random order, so a line's parts are ordered first.
fn differences(one: &str, other: &str) -> Vec<String> {
    let lines = |text: &str| {
        let mut counted = BTreeMap::new();
        for line in text.lines() {
            let mut parts: Vec<_> = line.trim().split([',', '{', '}']).map(str::trim).collect();
            parts.sort_unstable();
            *counted.entry(parts.join(",")).or_insert(0) += 1;
        }
        counted
    };
    let (one, other) = (lines(one), lines(other));
    let only = |a: &BTreeMap<String, i32>, b: &BTreeMap<String, i32>, mark: &str| -> Vec<String> {
        a.iter().filter(|(line, count)| b.get(*line) != Some(*count)).map(|(line, _)| format!("{mark} {line}")).collect()
    };
    [only(&one, &other, "-"), only(&other, &one, "+")].concat()
}

/// A dry run without the SSH key and the references to it: a new key is not in the key store before the commit.
fn without_ssh_key(text: &str) -> String {
    let blocks = text.split("\n\n").filter(|block| !block.trim_start().starts_with("SSHKey/"));
    let rest = blocks.collect::<Vec<_>>().join("\n\n");
    rest.lines().filter(|line| !line.trim_start().starts_with("SSHKey ")).map(|line| format!("{line}\n")).collect::<Vec<_>>().concat()
}

#[tokio::test]
async fn the_binary_is_the_version_it_should_be() {
    let Some(world) = World::new("version").await else { return };
    world.runner.check_version().await.unwrap();
}

#[tokio::test]
async fn a_cluster_is_rehearsed_created_changed_and_restored() {
    let Some(world) = World::new("flow").await else { return };
    let live = world.live().await;
    let rehearsal = rehearse(&world.runner, &live, &world.set(&world.manifests)).await.unwrap();
    assert!(rehearsal.problems.is_empty(), "{:?}", rehearsal.problems);
    let mut created = keys(&rehearsal.changes);
    created.sort_unstable();
    assert_eq!(created[..3], ["config", "instancegroup/control-plane", "instancegroup/nodes"]);
    assert!(created[3].starts_with("pki/ssh/public/admin/"), "{created:?}");
    assert_eq!(not_previewed(&rehearsal.changes).len(), 1);
    let plan = dry_run(&world.runner, &live, &rehearsal.changes).await.unwrap();
    assert!(plan.stdout.contains("Will create resources:") && plan.stdout.contains("LaunchTemplate/nodes."), "{}", plan.stdout);
    assert!(world.objects().await.is_empty(), "rehearsal and dry run write nothing");

    world.commit(&live, rehearsal.changes).await;
    let live = world.live().await;
    let bare = world.runner.update_dry_run(world.store.as_str(), &world.cluster).await.unwrap();
    let bare = without_ssh_key(&bare.stdout);
    assert_eq!(differences(&plan.stdout, &bare), Vec::<String>::new(), "the plan is what kops itself says after the commit");
    world.runner.update_apply(world.store.as_str(), &world.cluster, UpdateScope::Everything).await.unwrap();
    assert_eq!(world.live().await.kops_version.as_deref(), Some("1.36.2"));

    // kops fills in some of a new cluster's fields and takes them out again at the next replace of the same file.
    let live_again = world.live().await;
    assert_eq!(live.registry, live_again.registry, "update leaves the registry alone");
    let second = rehearse(&world.runner, &live_again, &world.set(&world.manifests)).await.unwrap();
    assert_eq!(keys(&second.changes), ["config"]);
    world.commit(&live_again, second.changes).await;
    // From then on the same manifests change nothing.
    let live_again = world.live().await;
    let third = rehearse(&world.runner, &live_again, &world.set(&world.manifests)).await.unwrap();
    assert!(third.changes.is_empty(), "{:?}", keys(&third.changes));

    // A change of one group is that change alone, in the registry and in the plan.
    let changed = world.manifests.replace("machineType: t3.medium # nodes", "machineType: t3.large # nodes");
    let rehearsal = rehearse(&world.runner, &live_again, &world.set(&changed)).await.unwrap();
    assert_eq!(keys(&rehearsal.changes), ["instancegroup/nodes"]);
    let before = world.objects().await;
    let plan = dry_run(&world.runner, &live_again, &rehearsal.changes).await.unwrap();
    assert_eq!(before, world.objects().await);
    assert!(plan.stdout.contains("t3.medium -> t3.large"), "{}", plan.stdout);
    assert!(!plan.stdout.contains("LaunchTemplate/control-plane"), "{}", plan.stdout);
    let transaction = world.commit(&live_again, rehearsal.changes).await;
    let bare = world.runner.update_dry_run(world.store.as_str(), &world.cluster).await.unwrap();
    assert_eq!(differences(&plan.stdout, &bare.stdout), Vec::<String>::new());
    assert_ne!(world.live().await.registry, live_again.registry);
    transaction.restore().await.unwrap();
    assert_eq!(world.live().await.registry, live_again.registry);
}

#[tokio::test]
async fn fields_that_kops_drops_are_found_with_their_lines() {
    let Some(world) = World::new("dropped").await else { return };
    let manifests = world
        .manifests
        .replace("  channel: none\n", "  channel: none\n  kubernetesVersionn: 1.33.0\n  masterInternalName: api.internal.x\n")
        .replace("  maxSize: 2\n", "  maxSize: 2\n  maxPrice: \"1\"\n  maxSizee: 2\n");
    let rehearsal = rehearse(&world.runner, &world.live().await, &world.set(&manifests)).await.unwrap();
    let found: Vec<_> = rehearsal.problems.iter().map(|problem| (problem.line, problem.what.as_str())).collect();
    let line = |text: &str| manifests.lines().position(|line| line.contains(text)).unwrap() + 1;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].0 == line("kubernetesVersionn") && found[0].1.contains("spec.kubernetesVersionn"), "{found:?}");
    assert!(found[1].0 == line("maxSizee") && found[1].1.contains("spec.maxSizee"), "{found:?}");
    assert!(rehearsal.notices.iter().any(|notice| notice.what.contains("masterInternalName")), "{:?}", rehearsal.notices);
    assert!(world.objects().await.is_empty());
}

#[tokio::test]
async fn what_kops_refuses_is_passed_on_in_its_words() {
    let Some(world) = World::new("refused").await else { return };
    let manifests = world.manifests.replace("networkCIDR: 172.20.0.0/16", "networkCIDR: nonsense");
    let error = rehearse(&world.runner, &world.live().await, &world.set(&manifests)).await.unwrap_err();
    let EngineError::Run(RunError::Failed(failed)) = &error else { panic!("{error}") };
    assert_eq!(failed.code, Some(1));
    assert!(failed.stderr.contains("nonsense") && failed.stderr.contains("spec."), "{failed}");
    assert!(world.objects().await.is_empty());
}
