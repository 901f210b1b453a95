//! `kopsline.yaml`: which clusters a repository describes, and how each is run.
//!
//! The file comes from the clusters' repository, which a merge request can change; [`Limits`] come from the deployment and
//! always win.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::ids::{ClusterName, StateStoreUri};
use crate::window::ChangeWindow;

/// The file's name, at the repository's root.
pub const FILE_NAME: &str = "kopsline.yaml";

/// `kopsline.yaml` as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClustersFile {
    /// The schema's version; this code reads 1.
    pub version: u32,
    /// The clusters, in no particular order.
    pub clusters: Vec<ClusterConfig>,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterConfig {
    /// The cluster's name, as in its manifest's `metadata.name`.
    pub name: ClusterName,
    /// The kOps state store: what `--state` would be.
    pub state_store: StateStoreUri,
    /// The AWS region of the cluster.
    pub region: String,
    /// The pinned kops.
    pub kops: KopsConfig,
    /// The manifests, as paths in the repository, in the order kops shall read them.
    pub sources: Vec<String>,
    /// Who says yes.
    #[serde(default)]
    pub approvals: Approvals,
    /// How nodes are rolled.
    #[serde(default)]
    pub rolling_update: RollingUpdateConfig,
    /// When a rolling update may begin something new; always when empty. What was begun is finished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub change_windows: Vec<ChangeWindow>,
}

/// The pinned kops binary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KopsConfig {
    /// The version, such as `1.36.2`.
    pub version: semver::Version,
    /// The binary's SHA-256 for the functions' architecture; without it the checksum published beside the binary counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Who approves each stage, and for how long the question stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Approvals {
    /// Before `kops update cluster --yes`.
    pub update: GateMode,
    /// Before the rolling update.
    pub roll: GateMode,
    /// How long a question waits for an answer; then the run ends as expired.
    pub timeout: SignedDuration,
}

impl Default for Approvals {
    fn default() -> Self {
        Self { update: GateMode::Manual, roll: GateMode::Manual, timeout: SignedDuration::from_hours(72) }
    }
}

/// How a stage is approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GateMode {
    /// A person answers.
    Manual,
    /// Nobody is asked.
    Automatic,
    /// Nobody is asked unless the plan deletes or replaces something that holds data.
    AutomaticUnlessDestructive,
}

impl GateMode {
    /// Whether a person must answer for a plan that is destructive or not.
    pub fn asks(self, destructive: bool) -> bool {
        match self {
            Self::Manual => true,
            Self::Automatic => false,
            Self::AutomaticUnlessDestructive => destructive,
        }
    }
}

/// How nodes are rolled; names and defaults are those of `kops rolling-update cluster` (kOps 1.36
/// cmd/kops/rolling-update_cluster.go) where kops has the setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent switches of a command")]
pub struct RollingUpdateConfig {
    /// Work with EC2 and Auto Scaling alone, without the Kubernetes API: nothing is drained or validated.
    pub cloudonly: bool,
    /// Replace instances that need no update, too.
    pub force: bool,
    /// Time to wait after a control-plane instance was terminated.
    pub control_plane_interval: SignedDuration,
    /// Time to wait after a node was terminated.
    pub node_interval: SignedDuration,
    /// Time to wait after a bastion was terminated.
    pub bastion_interval: SignedDuration,
    /// How long the cluster may take to validate, and a group to have its instances again.
    pub validation_timeout: SignedDuration,
    /// How many validations in a row must pass after an instance was replaced.
    pub validate_count: u32,
    /// Whether a cluster that does not validate in time stops the roll.
    pub fail_on_validate_error: bool,
    /// Whether failures that were there before the roll do not block it. kops lets every failure block.
    pub validation_baseline: bool,
    /// Time to wait between the end of a drain and the termination.
    pub post_drain_delay: SignedDuration,
    /// How long a drain may take; 0 for no limit.
    pub drain_timeout: SignedDuration,
    /// Whether a node that cannot be drained stops its group; otherwise it is terminated anyway.
    pub fail_on_drain_error: bool,
    /// What to do about a drain that does not end. Unset, a person is asked where one approves the roll, and otherwise
    /// `failOnDrainError` decides between fail and force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_stuck_drain: Option<StuckDrainConfig>,
    /// How long a person may take to answer about a stuck drain.
    pub drain_decision_timeout: SignedDuration,
    /// Whether a drain counts as stuck at once when a `PodDisruptionBudget` can never allow it.
    pub detect_hopeless_budgets: bool,
    /// Whether Auto Scaling's `AZRebalance`, which terminates instances by itself, is suspended while a group is rolled.
    pub suspend_rebalance: bool,
    /// When to pause by itself; never, if unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_after: Option<PauseAfterConfig>,
    /// How long that pause is; unset, until somebody says to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_for: Option<SignedDuration>,
    /// Wait until a terminated instance's group is complete again before the next one. kops does not under `--cloudonly`.
    pub wait_for_replacement: bool,
    /// Only these instance groups; all when empty.
    pub instance_groups: Vec<String>,
    /// Only these roles; all when empty.
    pub instance_group_roles: Vec<String>,
    /// The address of the Kubernetes API, if it is not the one that kops would find.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_server: Option<String>,
    /// Whether to speak to the API by its internal name, `api.internal.<cluster>`.
    pub internal: bool,
}

/// What to do about a drain that does not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StuckDrainConfig {
    /// The instance group stops; a control-plane group stops the roll.
    Fail,
    /// Delete what is left on the node and terminate it.
    Force,
    /// Leave the node as it was and go on with the next one.
    Skip,
    /// Ask a person.
    Ask,
}

/// When a roll pauses by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PauseAfterConfig {
    /// Once, when so many per cent of the instances are replaced.
    Percent(u8),
    /// After the first instance of each group that has more.
    FirstOfEachGroup,
}

impl Default for RollingUpdateConfig {
    fn default() -> Self {
        let interval = SignedDuration::from_secs(15);
        Self {
            cloudonly: false,
            force: false,
            control_plane_interval: interval,
            node_interval: interval,
            bastion_interval: interval,
            validation_timeout: SignedDuration::from_mins(15),
            validate_count: 2,
            fail_on_validate_error: true,
            validation_baseline: true,
            post_drain_delay: SignedDuration::from_secs(5),
            drain_timeout: SignedDuration::from_mins(15),
            fail_on_drain_error: true,
            on_stuck_drain: None,
            drain_decision_timeout: SignedDuration::from_hours(1),
            detect_hopeless_budgets: true,
            suspend_rebalance: true,
            pause_after: None,
            pause_for: None,
            wait_for_replacement: true,
            instance_groups: Vec::new(),
            instance_group_roles: Vec::new(),
            api_server: None,
            internal: false,
        }
    }
}

/// What a deployment allows whatever `kopsline.yaml` says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// GitLab projects, as full paths; `*` at the end stands for everything below.
    pub projects: Vec<String>,
    /// State stores, each with everything below it.
    pub state_stores: Vec<StateStoreUri>,
}

impl Limits {
    /// Whether deliveries of this project start anything.
    pub fn allows_project(&self, path: &str) -> bool {
        self.projects.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => allowed == path,
        })
    }
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is not YAML of this shape; the text carries line and column.
    #[error("{FILE_NAME}: {0}")]
    Syntax(String),
    /// It is of a shape that a newer or older Kopsline reads.
    #[error("{FILE_NAME}: version {0} is not known; this Kopsline reads version 1")]
    Version(u32),
    /// A cluster's settings contradict themselves or the deployment's limits.
    #[error("{FILE_NAME}: cluster {cluster}: {what} ({remedy})")]
    Cluster {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        what: String,
        /// What helps.
        remedy: &'static str,
    },
}

impl crate::failure::Classify for ConfigError {
    fn kind(&self) -> crate::FailureKind {
        crate::FailureKind::BadInput
    }
}

impl ClustersFile {
    /// Reads the file and checks it against the deployment's limits.
    pub fn parse(text: &str, limits: &Limits) -> Result<Self, ConfigError> {
        // The parser's text is made to stand alone; here it follows the file's name.
        let syntax = |error: serde_saphyr::Error| ConfigError::Syntax(error.to_string().trim_start_matches("error: ").to_owned());
        let file: Self = serde_saphyr::from_str(text).map_err(syntax)?;
        if file.version != 1 {
            return Err(ConfigError::Version(file.version));
        }
        let mut seen = BTreeSet::new();
        for cluster in &file.clusters {
            let wrong = |what: String, remedy| Err(ConfigError::Cluster { cluster: cluster.name.to_string(), what, remedy });
            if !seen.insert((&cluster.name, &cluster.state_store)) {
                return wrong("it is listed twice".into(), "keep one entry");
            }
            if cluster.sources.is_empty() {
                return wrong("it has no sources".into(), "list the manifests' paths under `sources`");
            }
            if let Some(path) = cluster.sources.iter().find(|path| !is_repository_path(path)) {
                return wrong(format!("the source {path:?} is no path in the repository"), "use a relative path without `..`");
            }
            if let Some(sha256) = &cluster.kops.sha256
                && !(sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit()))
            {
                return wrong(format!("kops.sha256 {sha256:?} is no SHA-256"), "use 64 hexadecimal digits");
            }
            if !is_region(&cluster.region) {
                return wrong(format!("the region {:?} is no AWS region", cluster.region), "use a name such as \"eu-central-1\"");
            }
            if !limits.state_stores.iter().any(|allowed| cluster.state_store.is_within(allowed)) {
                return wrong(
                    format!("the state store {} is not allowed here", cluster.state_store),
                    "add it to the deployment's StateStores parameter",
                );
            }
            for (name, value) in [
                ("approvals.timeout", cluster.approvals.timeout),
                ("rollingUpdate.validationTimeout", cluster.rolling_update.validation_timeout),
                ("rollingUpdate.drainDecisionTimeout", cluster.rolling_update.drain_decision_timeout),
            ] {
                if value < SignedDuration::from_secs(1) || value > SignedDuration::from_hours(24 * 360) {
                    return wrong(format!("{name} is out of range"), "use a duration between 1s and 360 days");
                }
            }
            if let Some(problem) = cluster.change_windows.iter().find_map(ChangeWindow::problem) {
                return wrong(format!("changeWindows: {problem}"), "use a name of the IANA database such as \"Europe/Berlin\"");
            }
            let rolling = &cluster.rolling_update;
            if matches!(rolling.pause_after, Some(PauseAfterConfig::Percent(0 | 100..))) {
                return wrong("rollingUpdate.pauseAfter.percent is out of range".into(), "use a number from 1 to 99");
            }
            if rolling.api_server.as_deref().is_some_and(|address| !address.starts_with("https://")) {
                return wrong("rollingUpdate.apiServer is no https address".into(), "use an address such as \"https://api.example.com\"");
            }
            for (name, value) in [
                ("rollingUpdate.controlPlaneInterval", rolling.control_plane_interval),
                ("rollingUpdate.nodeInterval", rolling.node_interval),
                ("rollingUpdate.bastionInterval", rolling.bastion_interval),
                ("rollingUpdate.postDrainDelay", rolling.post_drain_delay),
                ("rollingUpdate.drainTimeout", rolling.drain_timeout),
                ("rollingUpdate.pauseFor", rolling.pause_for.unwrap_or_default()),
            ] {
                if value.is_negative() || value > SignedDuration::from_hours(24) {
                    return wrong(format!("{name} is out of range"), "use a duration between 0s and 24h");
                }
            }
        }
        Ok(file)
    }
}

impl ClusterConfig {
    /// Whether a change of this path concerns the cluster.
    pub fn watches(&self, path: &str) -> bool {
        path == FILE_NAME || self.sources.iter().any(|source| source == path)
    }
}

fn is_repository_path(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 1024
        && !path.contains(['\\', '\0', '\n'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn is_region(region: &str) -> bool {
    region.split('-').count() >= 3
        && region.split('-').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r"
version: 1
clusters:
  - name: demo.k8s.local
    stateStore: s3://state/demo
    region: eu-central-1
    kops: {version: 1.36.2}
    sources: [clusters/demo.yaml]
    approvals: {roll: automatic, timeout: 24h}
    rollingUpdate: {cloudonly: true, nodeInterval: 1s}
";

    fn limits() -> Limits {
        Limits { projects: vec!["platform/*".into()], state_stores: vec![StateStoreUri::new("s3://state").unwrap()] }
    }

    #[test]
    fn reads_a_file_with_defaults() {
        let file = ClustersFile::parse(GOOD, &limits()).unwrap();
        let cluster = &file.clusters[0];
        assert_eq!(cluster.approvals.update, GateMode::Manual);
        assert_eq!(cluster.approvals.roll, GateMode::Automatic);
        assert_eq!(cluster.approvals.timeout, SignedDuration::from_hours(24));
        assert_eq!(cluster.rolling_update.node_interval, SignedDuration::from_secs(1));
        assert_eq!(cluster.rolling_update.bastion_interval, SignedDuration::from_secs(15));
        assert!(cluster.watches("kopsline.yaml") && cluster.watches("clusters/demo.yaml") && !cluster.watches("README.md"));
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        for (from, to, expected) in [
            ("version: 1", "version: 2", "version 2 is not known"),
            ("cloudonly", "cloudOnly", "cloudOnly"),
            ("s3://state/demo", "s3://other/demo", "not allowed here"),
            ("clusters/demo.yaml", "../demo.yaml", "no path in the repository"),
            ("1.36.2", "latest", "line 7"),
            ("eu-central-1", "frankfurt", "no AWS region"),
            ("demo.k8s.local", "demo", "DNS name"),
            ("timeout: 24h", "timeout: 0s", "approvals.timeout"),
            (
                "    approvals:",
                "    changeWindows: [{from: '22:00', to: '05:00', timeZone: Berlin}]\n    approvals:",
                "\"Berlin\" is not known",
            ),
            ("nodeInterval: 1s", "nodeInterval: -1s", "nodeInterval"),
            ("cloudonly: true", "drainTimeout: 25h", "drainTimeout"),
            ("cloudonly: true", "pauseAfter: {percent: 100}", "pauseAfter"),
            ("cloudonly: true", "apiServer: 'http://api.example.com'", "apiServer"),
            ("cloudonly: true", "onStuckDrain: panic", "panic"),
        ] {
            let error = ClustersFile::parse(&GOOD.replace(from, to), &limits()).unwrap_err().to_string();
            assert!(error.contains(expected), "{from} -> {to}: {error}");
            assert!(error.starts_with(FILE_NAME), "{error}");
        }
    }

    #[test]
    fn projects_are_limited() {
        assert!(limits().allows_project("platform/clusters"));
        assert!(!limits().allows_project("platform2/clusters"));
        assert!(!Limits::default().allows_project("platform/clusters"));
    }

    #[test]
    fn gates() {
        assert!(GateMode::Manual.asks(false));
        assert!(!GateMode::Automatic.asks(true));
        assert!(GateMode::AutomaticUnlessDestructive.asks(true) && !GateMode::AutomaticUnlessDestructive.asks(false));
    }
}
