//! Asking kops which fields it drops.

use std::collections::BTreeMap;

use kopsline_manifests::{Document, DropProbe, Dropped, Kind, Trial, written};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rehearsal::EngineError;
use crate::runner::{RunError, Runner};
use crate::scratch::ScratchError;

/// The fields of a document that kops dropped, given the object that it made of the document.
pub(crate) async fn dropped(runner: &Runner, cluster: &str, document: &Document, made: &Value) -> Result<Dropped, EngineError> {
    let Some(probe) = DropProbe::new(&document.value, made) else { return Ok(Dropped::default()) };
    let trials = probe.trials();
    let mut answers = BTreeMap::new();
    // kops leaves out clusters that it cannot decode, but one such instance group fails the whole list. Halving finds it.
    let mut lots = vec![trials.as_slice()];
    while let Some(lot) = lots.pop() {
        let answer = match document.kind {
            Kind::Cluster => clusters(runner, lot).await?,
            _ => groups(runner, cluster, lot).await?,
        };
        match answer {
            Some(objects) => answers.extend(objects),
            None if lot.len() > 1 => {
                let (first, second) = lot.split_at(lot.len() / 2);
                lots.extend([first, second]);
            }
            None => {}
        }
    }
    probe.dropped(&answers).map_err(|source| EngineError::Probe { document: format!("{} {}", document.kind, document.name), source })
}

async fn clusters(runner: &Runner, lot: &[Trial]) -> Result<Option<BTreeMap<String, Value>>, EngineError> {
    let store = Store::new(runner)?;
    for trial in lot {
        store.write(&trial.name, "config", &trial.text)?;
    }
    let mut listed = store.list(runner, &["get", "clusters"]).await?;
    // kops fills in the place of a cluster that names none (kOps 1.36 `pkg/client/simple/vfsclientset/cluster.go`), which
    // is another for each trial.
    for (name, object) in listed.iter_mut().flatten() {
        if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
            let own = store.0.path().join(name);
            if spec.get("configBase").and_then(Value::as_str).is_some_and(|base| own == std::path::Path::new(base)) {
                spec.remove("configBase");
            }
        }
    }
    Ok(listed)
}

async fn groups(runner: &Runner, cluster: &str, lot: &[Trial]) -> Result<Option<BTreeMap<String, Value>>, EngineError> {
    let store = Store::new(runner)?;
    let own = json!({"apiVersion": "kops.k8s.io/v1alpha2", "kind": "Cluster", "metadata": {"name": cluster}, "spec": {}});
    store.write(cluster, "config", &own.to_string())?;
    for trial in lot {
        store.write(cluster, &format!("instancegroup/{}", trial.name), &trial.text)?;
    }
    store.list(runner, &["get", "instancegroups", "--name", cluster]).await
}

/// A local state store for trials.
struct Store(TempDir);

impl Store {
    fn new(runner: &Runner) -> Result<Self, ScratchError> {
        let folder = tempfile::Builder::new().prefix("probe-").tempdir_in(runner.folder());
        folder.map(Self).map_err(|source| ScratchError::Io { path: runner.folder().to_owned(), source })
    }

    /// Names are made by the probe, and a checked cluster's.
    fn write(&self, cluster: &str, name: &str, text: &str) -> Result<(), ScratchError> {
        let path = self.0.path().join(cluster).join(name);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
        written.map_err(|source| ScratchError::Io { path, source })
    }

    /// The objects that kops lists, by name; none if it fails, which is what it does when it cannot decode one.
    async fn list(&self, runner: &Runner, command: &[&str]) -> Result<Option<BTreeMap<String, Value>>, EngineError> {
        let state = format!("file://{}", self.0.path().display());
        let args = [command, &["--state", &state, "--output", "json"]].concat();
        match runner.run(&args, &[], runner.timeouts().local).await {
            Ok(output) => written(&output.stdout).map(Some).map_err(|source| EngineError::Listing { command: command.join(" "), source }),
            Err(RunError::Failed(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
