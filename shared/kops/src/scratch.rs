//! A copy of a cluster's registry in a folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kopsline_core::{Classify, ClusterName, FailureKind};
use kopsline_manifests::{Registry, StoredObject};
use tempfile::TempDir;

/// The parts of a registry. What else lies in a scratch state store is kops' own affair.
const PARTS: [&str; 4] = ["config", "instancegroup", "clusteraddons/default", "pki/ssh/public/admin"];

/// A local state store that holds one cluster's registry; gone when dropped. Only its owner can read it.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    cluster: ClusterName,
}

/// A scratch state store that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// An object's name would lie outside the registry.
    #[error("the registry object {0:?} has no usable name; remove it from the state store")]
    Name(String),
    /// A file failed.
    #[error("the scratch registry at {} cannot be used", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Classify for ScratchError {
    fn kind(&self) -> FailureKind {
        FailureKind::Failed
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ScratchError {
    |source| ScratchError::Io { path: path.to_owned(), source }
}

impl Scratch {
    /// Copies a registry into a new folder below `parent`.
    pub fn from_registry(parent: &Path, cluster: &ClusterName, registry: &Registry) -> Result<Self, ScratchError> {
        let folder = tempfile::Builder::new().prefix("registry-").tempdir_in(parent).map_err(failed(parent))?;
        let scratch = Self { folder, cluster: cluster.clone() };
        // Also without objects: kops lists it.
        let own = scratch.path();
        fs::create_dir(&own).map_err(failed(&own))?;
        for (name, object) in registry {
            scratch.write(name, &object.bytes)?;
        }
        Ok(scratch)
    }

    /// Writes an object.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), ScratchError> {
        if name.contains('\\') || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(ScratchError::Name(name.to_owned()));
        }
        let path = self.path().join(name);
        let parent = path.parent().unwrap_or(&path);
        fs::create_dir_all(parent).map_err(failed(parent))?;
        fs::write(&path, bytes).map_err(failed(&path))
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// What `--state` is for it.
    pub fn state(&self) -> String {
        format!("file://{}", self.folder.path().display())
    }

    /// The registry as it is now.
    pub fn read(&self) -> Result<Registry, ScratchError> {
        let own = self.path();
        let mut registry = Registry::new();
        for part in PARTS {
            let path = own.join(part);
            if path.is_file() {
                registry.insert(part.to_owned(), object(&path)?);
            } else if path.is_dir() {
                for entry in fs::read_dir(&path).map_err(failed(&path))? {
                    let entry = entry.map_err(failed(&path))?.path();
                    let name = entry.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    if entry.is_file() {
                        registry.insert(format!("{part}/{name}"), object(&entry)?);
                    }
                }
            }
        }
        Ok(registry)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(self.cluster.as_str())
    }
}

fn object(path: &Path) -> Result<StoredObject, ScratchError> {
    Ok(StoredObject { bytes: fs::read(path).map_err(failed(path))?, etag: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(objects: &[(&str, &str)]) -> Registry {
        objects.iter().map(|(name, text)| ((*name).to_owned(), StoredObject { bytes: text.as_bytes().to_vec(), etag: None })).collect()
    }

    fn cluster() -> ClusterName {
        ClusterName::new("demo.k8s.local").unwrap()
    }

    #[test]
    fn what_goes_in_comes_out_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let objects = registry(&[
            ("config", "c"),
            ("instancegroup/nodes", "n"),
            ("clusteraddons/default", "a"),
            ("pki/ssh/public/admin/ff", "ssh-ed25519 AAAA"),
        ]);
        let scratch = Scratch::from_registry(parent.path(), &cluster(), &objects).unwrap();
        assert_eq!(scratch.read().unwrap(), objects);
        scratch.write("cluster-completed.spec", b"kops' own").unwrap();
        assert_eq!(scratch.read().unwrap(), objects);
        let folder = scratch.state().strip_prefix("file://").map(PathBuf::from).unwrap();
        assert!(folder.join("demo.k8s.local/instancegroup/nodes").is_file());
        drop(scratch);
        assert!(!folder.exists());
    }

    #[test]
    fn a_new_cluster_is_an_empty_folder() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::from_registry(parent.path(), &cluster(), &Registry::new()).unwrap();
        assert!(scratch.read().unwrap().is_empty());
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["../evil", "instancegroup/../../evil", "/etc/passwd", "instancegroup//x", "a\\b", ""] {
            let result = Scratch::from_registry(parent.path(), &cluster(), &registry(&[(name, "x")]));
            assert!(matches!(result, Err(ScratchError::Name(_))), "{name}");
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
