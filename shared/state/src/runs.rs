//! The run's record in the run bucket.

use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use kopsline_core::{Approval, ApprovalId, Classify, Event, Failure, FailureKind, Run, RunId, Stage, keys};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::documents::{Documents, Update, UpdateError};
use crate::object::{Condition, StoreError, WriteError};

/// How many documents are read at a time.
const CONCURRENT_READS: usize = 8;
/// How many groups of events of one name may happen in one millisecond.
const MOST_AT_ONE_TIME: u32 = 100;

/// An object of the audit trail.
#[derive(Deserialize)]
#[serde(untagged)]
enum Told {
    One(Event),
    Several(Vec<Event>),
}

impl Told {
    fn events(self) -> Vec<Event> {
        match self {
            Self::One(event) => vec![event],
            Self::Several(events) => events,
        }
    }
}

/// A record that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no such record.
    #[error("there is no {0}: `kopsline status` lists what there is")]
    NotFound(String),
    /// A document could not be read or written.
    #[error(transparent)]
    Document(#[from] UpdateError),
    /// A document's text is not UTF-8.
    #[error("{0} is not UTF-8")]
    NotText(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RunError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotFound(_) | Self::NotText(_) => false,
            Self::Document(error) => error.is_transient(),
            Self::Store(error) => error.is_transient(),
        }
    }
}

impl Classify for RunError {
    fn kind(&self) -> FailureKind {
        Failure::transient_or(self.is_transient(), FailureKind::Failed)
    }
}

impl From<WriteError> for RunError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Precondition { place } => Self::Document(UpdateError::Contended { place }),
            WriteError::Store(error) => Self::Store(error),
        }
    }
}

/// Runs, their documents and their approvals.
#[derive(Debug, Clone)]
pub struct Runs {
    documents: Documents,
}

impl Runs {
    /// The runs of a run bucket.
    pub fn new(documents: Documents) -> Self {
        Self { documents }
    }

    /// The documents below.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// Records a new run and lists it among the newest. `false` when it was recorded before; it then stays as it is.
    pub async fn create(&self, run: &Run) -> Result<bool, RunError> {
        // The index first: a run that is listed but not recorded is passed over, one that is not listed would be lost.
        self.put(&keys::recent(&run.id, run.received_at), Vec::new()).await?;
        Ok(self.documents.create(&keys::run(&run.id), run).await?)
    }

    /// A run's record.
    pub async fn read(&self, id: &RunId) -> Result<Run, RunError> {
        self.find(id).await?.ok_or_else(|| RunError::NotFound(format!("run {id}")))
    }

    /// A run's record, if there is one.
    pub async fn find(&self, id: &RunId) -> Result<Option<Run>, RunError> {
        Ok(self.documents.read::<Run>(&keys::run(id)).await?.map(|found| found.value))
    }

    /// Changes a run's record and returns it as it is then. `change` may be called again when another writer comes first.
    pub async fn change(&self, id: &RunId, mut change: impl FnMut(&mut Run)) -> Result<Run, RunError> {
        let changed = self
            .documents
            .update(&keys::run(id), |run: Option<Run>| {
                let Some(before) = run else { return Ok::<_, std::convert::Infallible>(Update::Keep(None)) };
                let mut after = before.clone();
                change(&mut after);
                Ok(if after == before { Update::Keep(Some(after)) } else { Update::Put(after.clone(), Some(after)) })
            })
            .await?;
        changed.ok_or_else(|| RunError::NotFound(format!("run {id}")))
    }

    /// Adds to the audit trail. The same event at the same time is the same object, so a repeated call adds nothing.
    pub async fn event(&self, id: &RunId, at: Timestamp, stage: Option<Stage>, what: &str, message: String) -> Result<(), RunError> {
        tracing::info!(what, "{message}");
        let event = Event { at, stage, what: what.to_owned(), message };
        Ok(self.documents.write(&keys::event(id, at, what), &event).await?)
    }

    /// Adds several events at once as one object: a decision of a rolling update may have hundreds. What was told before is
    /// not told twice, and nothing is overwritten.
    pub async fn happened(&self, id: &RunId, what: &str, events: &[Event]) -> Result<(), RunError> {
        let Some(first) = events.first() else { return Ok(()) };
        for event in events {
            tracing::info!(what = event.what, "{}", event.message);
        }
        // Two decisions may fall into one millisecond. `~` sorts after the `.` of the first.
        let names = std::iter::once(what.to_owned()).chain((2..=MOST_AT_ONE_TIME).map(|number| format!("{what}~{number:03}")));
        let mut key = String::new();
        for name in names {
            key = keys::event(id, first.at, &name);
            if self.documents.create(&key, &events).await? {
                return Ok(());
            }
            if self.documents.read::<Vec<Event>>(&key).await?.is_some_and(|found| found.value == events) {
                return Ok(());
            }
        }
        Err(UpdateError::Contended { place: self.documents.store().place(&key) }.into())
    }

    /// The audit trail in order.
    pub async fn events(&self, id: &RunId) -> Result<Vec<Event>, RunError> {
        let listed = self.documents.store().list(&keys::events(id)).await?;
        let reads: Vec<_> = listed.iter().map(|meta| self.documents.read::<Told>(&meta.key)).collect();
        let events: Vec<_> = stream::iter(reads).buffered(CONCURRENT_READS).try_collect().await?;
        Ok(events.into_iter().flatten().flat_map(|found| found.value.events()).collect())
    }

    /// The newest runs, newest first.
    pub async fn recent(&self, limit: usize) -> Result<Vec<Run>, RunError> {
        let listed = self.documents.store().list_first(keys::RECENT, limit).await?;
        let ids: Vec<_> = listed.iter().filter_map(|meta| keys::run_of_recent(&meta.key)).collect();
        let reads: Vec<_> = ids.iter().map(|id| self.find(id)).collect();
        let runs: Vec<_> = stream::iter(reads).buffered(CONCURRENT_READS).try_collect().await?;
        Ok(runs.into_iter().flatten().collect())
    }

    /// Writes one of the run's texts, such as `plan.md`.
    pub async fn put_text(&self, id: &RunId, name: &str, text: String) -> Result<(), RunError> {
        self.put(&keys::document(id, name), text.into_bytes()).await
    }

    /// Reads one of the run's texts.
    pub async fn text(&self, id: &RunId, name: &str) -> Result<Option<String>, RunError> {
        let key = keys::document(id, name);
        let Some(object) = self.documents.store().get(&key).await? else { return Ok(None) };
        String::from_utf8(object.bytes).map(Some).map_err(|_| RunError::NotText(key))
    }

    /// Writes one of the run's documents, such as `plan.json`.
    pub async fn put_document<T: Serialize>(&self, id: &RunId, name: &str, value: &T) -> Result<(), RunError> {
        Ok(self.documents.write(&keys::document(id, name), value).await?)
    }

    /// Reads one of the run's documents.
    pub async fn document<T: DeserializeOwned>(&self, id: &RunId, name: &str) -> Result<Option<T>, RunError> {
        Ok(self.documents.read::<T>(&keys::document(id, name)).await?.map(|found| found.value))
    }

    /// An approval, if there is one.
    pub async fn approval(&self, id: &ApprovalId) -> Result<Option<Approval>, RunError> {
        Ok(self.documents.read::<Approval>(&keys::approval(id)).await?.map(|found| found.value))
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), RunError> {
        self.documents.store().put(key, bytes, Condition::Unconditional).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kopsline_core::StageState;

    use super::*;
    use crate::testing::{Fault, Faults, FaultyStore, MemoryStore};

    fn run(id: &str, received_at: &str) -> Run {
        serde_json::from_value(serde_json::json!({
            "id": id, "delivery": "d", "received_at": received_at, "state": "queued",
            "cluster": {"name": "demo.k8s.local", "stateStore": "s3://state", "region": "eu-central-1", "kops": {"version": "1.36.2"}, "sources": ["c.yaml"]},
            "merge": {"project_id": 1, "project": "a/b", "branch": "main", "commit": "1".repeat(40), "before": "0".repeat(40),
                      "title": "t", "user": "ann", "url": "https://gitlab.example.com/x"},
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn the_newest_runs_come_first_and_none_is_created_twice() {
        let runs = Runs::new(Documents::new(Arc::new(MemoryStore::default())));
        let (old, new) = (run("a-old", "2026-01-01T00:00:00Z"), run("b-new", "2026-01-02T00:00:00Z"));
        assert!(runs.create(&old).await.unwrap());
        assert!(runs.create(&new).await.unwrap());
        runs.change(&old.id, |run| run.enter(Stage::Replace, Timestamp::UNIX_EPOCH)).await.unwrap();
        assert!(!runs.create(&old).await.unwrap());
        let listed: Vec<_> = runs.recent(5).await.unwrap();
        assert_eq!(listed.iter().map(|run| run.id.as_str()).collect::<Vec<_>>(), ["b-new", "a-old"]);
        assert_eq!(listed[1].stages[0].state, StageState::Running);
        assert!(matches!(runs.read(&RunId::new("none").unwrap()).await, Err(RunError::NotFound(_))));
    }

    #[tokio::test]
    async fn a_run_is_never_recorded_without_being_listed() {
        for kill in 0..4 {
            let store = MemoryStore::default();
            let faulty = Runs::new(Documents::new(Arc::new(FaultyStore::new(store.clone(), Faults::killing(kill, Fault::NotApplied)))));
            let run = run("a", "2026-01-01T00:00:00Z");
            let first = faulty.create(&run).await;
            let runs = Runs::new(Documents::new(Arc::new(store)));
            if runs.find(&run.id).await.unwrap().is_some() {
                assert_eq!(runs.recent(5).await.unwrap().len(), 1);
            } else {
                assert!(first.is_err());
            }
        }
    }

    #[tokio::test]
    async fn events_are_in_order_and_repeatable() {
        let runs = Runs::new(Documents::new(Arc::new(MemoryStore::default())));
        let id = RunId::new("a").unwrap();
        for (second, what) in [(2, "later"), (1, "earlier"), (2, "later")] {
            runs.event(&id, Timestamp::from_second(second).unwrap(), None, what, what.into()).await.unwrap();
        }
        let events = runs.events(&id).await.unwrap();
        assert_eq!(events.iter().map(|event| event.what.as_str()).collect::<Vec<_>>(), ["earlier", "later"]);
    }

    #[tokio::test]
    async fn events_told_together_are_neither_lost_nor_told_twice() {
        let runs = Runs::new(Documents::new(Arc::new(MemoryStore::default())));
        let id = RunId::new("a").unwrap();
        let event = |what: &str| Event { at: Timestamp::UNIX_EPOCH, stage: Some(Stage::Roll), what: what.into(), message: what.into() };
        let (first, second) = ([event("a"), event("b")], [event("c")]);
        for events in [&first[..], &second, &first, &second, &[]] {
            runs.happened(&id, "roll", events).await.unwrap();
        }
        let told = runs.events(&id).await.unwrap();
        assert_eq!(told.iter().map(|event| event.what.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
