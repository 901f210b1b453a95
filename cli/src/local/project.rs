//! This repository's own parts: where they are on this machine.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::context::LOCAL_FOLDER;

/// A checkout of Kopsline.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    root: PathBuf,
    /// What `tools/setup` wrote down.
    written: BTreeMap<String, String>,
}

impl Project {
    /// The checkout at `given`; else the one that the current folder is in; else the one this program was built in.
    pub(crate) fn find(given: Option<&Path>) -> anyhow::Result<Self> {
        let is_checkout = |folder: &Path| folder.join("template.yaml").is_file() && folder.join("tests/stack").is_dir();
        let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf);
        let here = std::env::current_dir().context("cannot tell the current folder")?;
        let root = match given {
            Some(given) => Some(given.to_path_buf()).filter(|folder| is_checkout(folder)),
            None => here.ancestors().map(Path::to_path_buf).chain(built_in).find(|folder| is_checkout(folder)),
        };
        let Some(root) = root else {
            bail!("Kopsline's repository is not here: run this in a clone of it, or name one with --project");
        };
        let root = root.canonicalize().with_context(|| format!("cannot resolve {}", root.display()))?;
        let folder = root.join(LOCAL_FOLDER);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let written = std::fs::read_to_string(folder.join("env")).unwrap_or_default();
        Ok(Self { root, written: exports(&written) })
    }

    /// A path in the checkout.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The folder for everything that a local run leaves behind.
    pub(crate) fn folder(&self) -> PathBuf {
        self.root.join(LOCAL_FOLDER)
    }

    /// A Python of `tools/setup`, by its variable: of the environment, or as `tools/setup` wrote it down.
    pub(crate) fn python(&self, variable: &str) -> anyhow::Result<PathBuf> {
        let value = std::env::var_os(variable).or_else(|| self.written.get(variable).map(OsString::from));
        let python = PathBuf::from(
            value.with_context(|| format!("{variable} is not set and {LOCAL_FOLDER}/env does not name it: run tools/setup"))?,
        );
        if !python.is_file() {
            bail!("{variable} is {}, where nothing is: run tools/setup again", python.display());
        }
        Ok(python)
    }

    /// The folder of the functions' binaries: the given one, else the one of the newest build.
    pub(crate) fn functions(&self, given: Option<&Path>) -> anyhow::Result<PathBuf> {
        if let Some(given) = given {
            return given.canonicalize().with_context(|| format!("there are no functions in {}", given.display()));
        }
        let lambda = format!("target/lambda-{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" });
        let builds = [(lambda.as_str(), "webhook/bootstrap"), ("target/release", "webhook"), ("target/debug", "webhook")];
        let built = |(folder, binary): (&str, &str)| -> Option<(SystemTime, PathBuf)> {
            let folder = self.path(folder);
            let modified = folder.join(binary).metadata().ok()?.modified().ok()?;
            Some((modified, folder))
        };
        let newest = builds.into_iter().filter_map(built).max();
        newest.map(|(_, folder)| folder).context("the functions are not built: run tools/build (`make demo` does)")
    }

    /// The pinned kops for this machine and its version; fetched or built by `tools/kops/get` when it is not there yet,
    /// which says on standard error what it does.
    pub(crate) async fn kops(&self, given: Option<&Path>) -> anyhow::Result<Kops> {
        let binary = match given {
            Some(given) => given.canonicalize().with_context(|| format!("there is no kops at {}", given.display()))?,
            None => self.pinned_kops().await?,
        };
        let output = Command::new(&binary).args(["version", "--short"]).stdin(Stdio::null()).kill_on_drop(true).output().await;
        let output = output.with_context(|| format!("cannot run {}", binary.display()))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || version.is_empty() {
            bail!("{} is no kops: it does not tell its version", binary.display());
        }
        Ok(Kops { binary, version })
    }

    async fn pinned_kops(&self) -> anyhow::Result<PathBuf> {
        let get = self.path("tools/kops/get");
        let running = Command::new(&get).stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output();
        let output = running.await.with_context(|| format!("cannot run {}", get.display()))?;
        if !output.status.success() {
            bail!("{} gave no kops; its words are above", get.display());
        }
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    }
}

/// A kops binary of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Kops {
    /// Where it is.
    pub(crate) binary: PathBuf,
    /// Its version, such as `1.36.2`.
    pub(crate) version: String,
}

/// The variables of lines such as `export NAME=value`.
fn exports(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (name, value) = line.trim().strip_prefix("export ")?.split_once('=')?;
        Some((name.to_owned(), value.trim_matches(['"', '\'']).to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_setup_wrote() {
        let variables = exports("# Written by tools/setup\nexport STACK_PYTHON=/a b/python\nexport X=\"y\"\nnonsense\n");
        assert_eq!(variables.get("STACK_PYTHON").map(String::as_str), Some("/a b/python"));
        assert_eq!((variables.len(), variables["X"].as_str()), (2, "y"));
    }

    #[test]
    fn the_newest_build_of_the_functions_counts() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project { root: folder.path().to_path_buf(), written: BTreeMap::new() };
        assert!(project.functions(None).unwrap_err().to_string().contains("tools/build"));
        for build in ["target/debug", "target/release"] {
            std::fs::create_dir_all(project.path(build)).unwrap();
            std::fs::write(project.path(build).join("webhook"), "").unwrap();
        }
        let old = std::fs::File::options().write(true).open(project.path("target/debug/webhook")).unwrap();
        old.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(project.functions(None).unwrap(), project.path("target/release"));
        assert!(project.functions(Some(Path::new("/nowhere"))).is_err());
    }

    #[test]
    fn this_checkout_is_found() {
        let project = Project::find(None).unwrap();
        assert!(project.path("tests/fixtures/demo/kopsline.yaml").is_file());
        assert!(Project::find(Some(Path::new("/"))).is_err());
    }
}
