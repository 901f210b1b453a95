//! Replacing manifests without touching anything live.

use kopsline_core::{Classify, FailureKind};
use kopsline_manifests::{
    Change, Kind, ManifestSet, Notice, ProbeError, Problem, ReadError, Registry, RegistryError, StoredObject, Stores, absent_groups,
    changes, with_config_base,
};
use kopsline_state::ClusterState;
use kopsline_state::registry::{CONFIG, INSTANCE_GROUPS, SSH_KEYS};
use serde_json::Value;

use crate::probe;
use crate::runner::{Output, RunError, Runner};
use crate::scratch::{Scratch, ScratchError};

/// What replacing the manifests comes to.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// The objects whose meaning changes, as they are to be written to the live store; none if nothing changes.
    pub changes: Vec<Change>,
    /// Fields that kops would drop without a word. With any of these nothing may be written.
    pub problems: Vec<Problem>,
    /// What a person should know and what stops nothing.
    pub notices: Vec<Notice>,
}

/// A rehearsal or dry run that gave no result.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// kops refused or failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The scratch registry cannot be used.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// An object of a registry is not what kops writes.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The cluster's object cannot be read.
    #[error("the registry object {CONFIG} cannot be read")]
    Config(#[source] ReadError),
    /// kops wrote an object that is no YAML.
    #[error("kops wrote the registry object {key}, which cannot be read: {reason}")]
    Written {
        /// The object.
        key: String,
        /// Where and why.
        reason: String,
    },
    /// kops replaced the manifests and did not write this one.
    #[error("kops replaced the manifests without an error but wrote no object {0}")]
    Missing(String),
    /// What kops drops of a document could not be found out.
    #[error("cannot find out which fields of {document} kops drops")]
    Probe {
        /// The document.
        document: String,
        /// Why.
        source: ProbeError,
    },
    /// A listing of kops could not be read.
    #[error("the output of `kops {command}` cannot be read")]
    Listing {
        /// The command.
        command: String,
        /// Where and why.
        source: serde_json::Error,
    },
}

impl EngineError {
    /// Whether running again may help.
    pub fn is_transient(&self) -> bool {
        false
    }
}

impl Classify for EngineError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Run(error) => error.kind(),
            Self::Scratch(error) => error.kind(),
            _ => FailureKind::Failed,
        }
    }
}

/// Replaces the manifests in a scratch copy of the live registry and says what has to be written to the live one.
///
/// The scratch names no stores, so that kops reads and writes nothing but the copy; of the cloud it asks regions, zones
/// and volumes. kops' own refusal of the manifests is a [`RunError::Failed`].
pub async fn rehearse(runner: &Runner, live: &ClusterState, manifests: &ManifestSet) -> Result<Rehearsal, EngineError> {
    let isolated = with_config(&live.registry, |config| Stores::default().write_into(config))?;
    let scratch = Scratch::from_registry(runner.folder(), &live.cluster, &isolated)?;
    runner.replace(&scratch, &manifests.assemble_isolated().map_err(EngineError::Config)?).await?;
    let written = scratch.read()?;

    let (mut problems, mut notices) = (Vec::new(), absent_groups(manifests, &live.registry));
    for document in manifests.documents() {
        let key = match document.kind {
            Kind::Cluster => CONFIG.to_owned(),
            Kind::InstanceGroup => format!("{INSTANCE_GROUPS}{}", document.name),
            Kind::SshCredential => continue,
        };
        let object = written.get(&key).ok_or_else(|| EngineError::Missing(key.clone()))?;
        let made: Value =
            serde_saphyr::from_slice(&object.bytes).map_err(|error| EngineError::Written { key, reason: error.to_string() })?;
        let dropped = probe::dropped(runner, live.cluster.as_str(), document, &made).await?;
        problems.extend(dropped.problems(document));
        notices.extend(dropped.notices(document));
    }
    // In the scratch the live cluster has no stores either: what is compared is the rest, with the stores back in place.
    let changes = changes(&live.registry, &written, &manifests.stores())?;
    Ok(Rehearsal { changes, problems, notices })
}

/// What `kops update cluster` would do to the live cluster if these changes were written; nothing is written.
///
/// kops reads the registry from a scratch copy with the changes, and everything else (keys, secrets, the files that
/// machines read) from the live store, because the copy's `configBase` says so. What changes there is therefore not seen:
/// [`not_previewed`].
pub async fn dry_run(runner: &Runner, live: &ClusterState, changes: &[Change]) -> Result<Output, EngineError> {
    let mut registry = live.registry.clone();
    for change in changes {
        registry.insert(change.key.clone(), StoredObject { bytes: change.content.clone(), etag: None });
    }
    let base = live.places.config_base.as_str();
    let planned = with_config(&registry, |config| with_config_base(config, base))?;
    let scratch = Scratch::from_registry(runner.folder(), &live.cluster, &planned)?;
    Ok(runner.update_dry_run(&scratch.state(), &live.cluster).await?)
}

/// The changes that [`dry_run`] cannot see before they are written: SSH keys, which kops reads where the private keys are.
pub fn not_previewed(changes: &[Change]) -> Vec<Notice> {
    let new_keys = changes.iter().filter_map(|change| change.key.strip_prefix(SSH_KEYS));
    new_keys
        .map(|fingerprint| Notice {
            what: format!("the SSH key {fingerprint} is new; a dry run before it is in the state store does not show it"),
            remedy: "expect the key, and its use by every group of machines, besides what is shown".into(),
        })
        .collect()
}

/// The registry with its cluster's object edited.
fn with_config(registry: &Registry, edit: impl FnOnce(&str) -> Result<String, ReadError>) -> Result<Registry, EngineError> {
    let mut registry = registry.clone();
    if let Some(config) = registry.get_mut(CONFIG) {
        config.bytes = edit(&String::from_utf8_lossy(&config.bytes)).map_err(EngineError::Config)?.into_bytes();
    }
    Ok(registry)
}
