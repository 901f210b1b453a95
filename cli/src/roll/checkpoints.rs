//! A roll's checkpoint in a file.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use async_trait::async_trait;
use kopsline_core::ClusterConfig;
use kopsline_roller::{CheckpointError, Checkpoints, Saved};
use kopsline_rolling::RollState;
use sha2::{Digest as _, Sha256};

/// One file for each cluster. It is replaced as a whole, and held by a lock: two shells do not roll one cluster.
#[derive(Debug)]
pub(crate) struct FileCheckpoints {
    path: PathBuf,
    _only_one: File,
}

impl FileCheckpoints {
    /// Below `folder`, by default the user's state folder (`$XDG_STATE_HOME/kopsline`).
    pub(crate) fn new(folder: Option<&Path>, cluster: &ClusterConfig) -> anyhow::Result<Self> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => user_folder().context("there is no home folder to remember rolls in: give --state-dir")?,
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let path = folder.join(format!("{}~{}.roll.json", cluster.state_store.as_one_name(), cluster.name));
        let lock = path.with_extension("lock");
        let file = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
        file.try_lock().map_err(|_| anyhow::anyhow!("another `kopsline roll` of {} is running on this machine", cluster.name))?;
        Ok(Self { path, _only_one: file })
    }

    /// Whether an unfinished roll is remembered.
    pub(crate) fn exists(&self) -> bool {
        self.path.is_file()
    }

    /// Forgets a roll that is over.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    fn read(&self) -> Result<Option<Vec<u8>>, CheckpointError> {
        match std::fs::read(&self.path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

fn user_folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home).map(|folder| folder.join("kopsline"))
}

fn version(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn failed(error: std::io::Error) -> CheckpointError {
    CheckpointError::Store { transient: false, source: Box::new(error) }
}

#[async_trait]
impl Checkpoints for FileCheckpoints {
    async fn load(&self) -> Result<Option<Saved>, CheckpointError> {
        let Some(bytes) = self.read()? else { return Ok(None) };
        Ok(Some(Saved { state: RollState::from_json(&bytes)?, version: version(&bytes) }))
    }

    async fn save(&self, state: &RollState, expected: Option<&str>) -> Result<String, CheckpointError> {
        if self.read()?.map(|bytes| version(&bytes)).as_deref() != expected {
            return Err(CheckpointError::Conflict);
        }
        let bytes = state.to_json()?;
        // Whole or not at all, also when the machine stops.
        let mut new = tempfile::NamedTempFile::new_in(self.path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        std::io::Write::write_all(&mut new, &bytes).map_err(failed)?;
        new.as_file().sync_all().map_err(failed)?;
        new.persist(&self.path).map_err(|error| failed(error.error))?;
        Ok(version(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use kopsline_rolling::{ClusterSpec, Inventory, RollOptions, RollingUpdate};

    use super::*;

    fn cluster() -> ClusterConfig {
        serde_json::from_value(serde_json::json!({
            "name": "demo.k8s.local", "stateStore": "s3://state/team", "region": "eu-central-1", "kops": {"version": "1.36.2"}, "sources": ["c.yaml"]
        }))
        .unwrap()
    }

    fn state() -> RollState {
        let spec = ClusterSpec { name: "demo.k8s.local".into(), rolling_update: RollingUpdate::default(), groups: vec![] };
        let inventory = Inventory { cluster: spec, groups: [].into(), unmatched: vec![], nodes_known: true };
        RollState::start(&inventory, RollOptions::default(), jiff::Timestamp::UNIX_EPOCH, None).unwrap()
    }

    #[tokio::test]
    async fn a_checkpoint_is_kept_under_its_version_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = FileCheckpoints::new(Some(folder.path()), &cluster()).unwrap();
        assert!(FileCheckpoints::new(Some(folder.path()), &cluster()).unwrap_err().to_string().contains("is running"));
        assert!(checkpoints.load().await.unwrap().is_none() && !checkpoints.exists());
        let first = checkpoints.save(&state(), None).await.unwrap();
        assert!(matches!(checkpoints.save(&state(), None).await, Err(CheckpointError::Conflict)));
        let saved = checkpoints.load().await.unwrap().unwrap();
        assert_eq!((saved.version.as_str(), &saved.state), (first.as_str(), &state()));
        checkpoints.save(&state(), Some(&first)).await.unwrap();
        assert!(matches!(checkpoints.save(&state(), Some("other")).await, Err(CheckpointError::Conflict)));
        checkpoints.forget().unwrap();
        checkpoints.forget().unwrap();
        assert!(!checkpoints.exists());
    }
}
