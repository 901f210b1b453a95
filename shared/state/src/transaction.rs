//! The commit of a registry's changes to the live state store, all or nothing, and its undoing.
//!
//! S3 changes one object at a time, so the intent goes first: a [`Journal`] in the run's record holds each object before
//! and after. Whoever is killed in the middle is simply run again, and reads in the journal and in the store how far it got:
//!
//! ```text
//! Prepared --commit--> Writing --> Committed --restore--> Restored
//!                         \--> RolledBack (somebody else changed an object meanwhile)
//! ```
//!
//! An object counts as ours to take back only from `Writing` on, and only while its content is what we wrote.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use kopsline_core::{Classify, ClusterName, Failure, FailureKind, StateStoreUri};
use kopsline_manifests::Change;
use serde::{Deserialize, Serialize};

use crate::object::{Condition, ETag, ObjectStore, StoreError, Stores, WriteError};
use crate::registry::{CONFIG, INSTANCE_GROUPS, Places};

const CONCURRENT_READS: usize = 8;

/// One object's change and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The store it lies in.
    pub store: StateStoreUri,
    /// Its key there.
    pub place: String,
    /// The object before and after.
    #[serde(flatten)]
    pub change: Change,
    /// Whether it held its new content already when the writing began, so that it is not ours to take back.
    #[serde(default)]
    pub already: bool,
}

impl JournalEntry {
    fn before(&self) -> Option<&[u8]> {
        self.change.previous.as_ref().map(|object| object.bytes.as_slice())
    }
}

/// How far a commit is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum JournalState {
    /// Nothing was written.
    Prepared,
    /// Every object was found as expected, and the writing began.
    Writing,
    /// Every object is written.
    Committed,
    /// Somebody else changed an object during the writing; what was written is taken back.
    RolledBack {
        /// The object, as `s3://bucket/key`.
        conflict: String,
    },
    /// What was written is taken back on request.
    Restored(Restored),
}

/// What a commit is about to do and how far it is: `runs/<run>/journal.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The cluster.
    pub cluster: ClusterName,
    /// How far it is.
    #[serde(flatten)]
    pub state: JournalState,
    /// The changes, in the order they are written.
    pub entries: Vec<JournalEntry>,
}

impl Journal {
    /// The intent to make these changes.
    ///
    /// They are written in kops' own order: the cluster, its instance groups, then the rest; whoever reads the registry
    /// in between never sees an instance group without its cluster.
    pub fn new(cluster: ClusterName, places: &Places, changes: Vec<Change>) -> Self {
        let mut entries: Vec<_> = changes
            .into_iter()
            .map(|change| {
                let (store, place) = places.locate(&change.key);
                JournalEntry { store: store.clone(), place: place.to_owned(), change, already: false }
            })
            .collect();
        entries.sort_by(|a, b| (rank(&a.change.key), &a.change.key).cmp(&(rank(&b.change.key), &b.change.key)));
        Self { cluster, state: JournalState::Prepared, entries }
    }

    /// Whether there is nothing to change.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn rank(name: &str) -> u8 {
    if name == CONFIG {
        0
    } else if name.starts_with(INSTANCE_GROUPS) {
        1
    } else {
        2
    }
}

/// A commit that came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The names of the objects this run changed, in the order they were written.
    pub written: Vec<String>,
}

/// A restoration that came to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The names of the objects that are again as they were before this run.
    pub restored: Vec<String>,
    /// Objects that somebody else changed after this run and that were left so, as `s3://bucket/key`.
    pub conflicts: Vec<String>,
}

/// A commit or restoration that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Somebody else changed an object; the store is as if this run had written nothing.
    #[error(
        "{place} was changed by somebody else since it was read; nothing of this run was left in the state store. Look at \
         the object's versions to see who changed it, then run again"
    )]
    Conflict {
        /// The object, as `s3://bucket/key`.
        place: String,
    },
    /// The run was restored already and cannot be committed again.
    #[error("the change was taken back already; start a new run to make it again")]
    AlreadyRestored,
    /// There is no journal.
    #[error("{place} does not exist; nothing was prepared")]
    NoJournal {
        /// Where it should be.
        place: String,
    },
    /// The journal is not readable.
    #[error("{place} cannot be read")]
    Malformed {
        /// The journal.
        place: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Two processes run the same commit at once; the other goes on.
    #[error("{place} is being changed by another process of the same run")]
    Overtaken {
        /// The journal.
        place: String,
    },
    /// The store failed; run again to come to an end.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CommitError {
    /// Whether running again may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Overtaken { .. } => true,
            Self::Store(error) => error.is_transient(),
            Self::Conflict { .. } | Self::AlreadyRestored | Self::NoJournal { .. } | Self::Malformed { .. } => false,
        }
    }
}

impl Classify for CommitError {
    fn kind(&self) -> FailureKind {
        let otherwise = if matches!(self, Self::Conflict { .. }) { FailureKind::Conflict } else { FailureKind::Failed };
        Failure::transient_or(self.is_transient(), otherwise)
    }
}

/// The commit of one run: its journal in the run's record, and the live stores it changes.
#[derive(Clone)]
pub struct Transaction {
    live: Arc<dyn Stores>,
    record: Arc<dyn ObjectStore>,
    key: String,
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Transaction").field(&self.record.place(&self.key)).finish()
    }
}

/// What a live object is, compared to its entry.
enum Found {
    Before(Condition),
    After(ETag),
    Other,
}

impl Transaction {
    /// A commit whose journal is at `key` of the run's record.
    pub fn new(live: Arc<dyn Stores>, record: Arc<dyn ObjectStore>, key: impl Into<String>) -> Self {
        Self { live, record, key: key.into() }
    }

    /// The journal, if there is one. A run that finds it past `Prepared` must not make up its changes anew: the live
    /// registry may hold half of them.
    pub async fn journal(&self) -> Result<Option<Journal>, CommitError> {
        Ok(self.load().await?.map(|(journal, _)| journal))
    }

    /// Writes down what is intended. A journal that is past `Prepared` stays as it is. Returns the journal that counts.
    pub async fn prepare(&self, journal: Journal) -> Result<Journal, CommitError> {
        let condition = match self.load().await? {
            None => Condition::IfAbsent,
            Some((found, etag)) if found.state == JournalState::Prepared => Condition::IfMatch(etag),
            Some((found, _)) => return Ok(found),
        };
        self.save(&journal, condition).await?;
        Ok(journal)
    }

    /// Makes the changes of the journal, or none of them. Run again after any interruption, it comes to the same end.
    pub async fn commit(&self) -> Result<Committed, CommitError> {
        let (mut journal, mut etag) = self.loaded().await?;
        let found = match &journal.state {
            JournalState::Prepared => {
                let found = self.look(&journal).await?;
                if let Some((entry, _)) = journal.entries.iter().zip(&found).find(|(_, found)| matches!(found, Found::Other)) {
                    return Err(CommitError::Conflict { place: self.place(entry) });
                }
                for (entry, found) in journal.entries.iter_mut().zip(&found) {
                    entry.already = matches!(found, Found::After(_));
                }
                journal.state = JournalState::Writing;
                etag = self.save(&journal, Condition::IfMatch(etag)).await?;
                found
            }
            // After an interruption all are looked at again first: a conflict further down is found before more is written.
            JournalState::Writing => self.look(&journal).await?,
            JournalState::Committed => return Ok(committed(&journal)),
            JournalState::RolledBack { conflict } => return Err(CommitError::Conflict { place: conflict.clone() }),
            JournalState::Restored(_) => return Err(CommitError::AlreadyRestored),
        };
        if let Some(conflict) = self.write(&journal, found).await? {
            self.take_back(&journal).await?;
            journal.state = JournalState::RolledBack { conflict: conflict.clone() };
            self.save(&journal, Condition::IfMatch(etag)).await?;
            return Err(CommitError::Conflict { place: conflict });
        }
        journal.state = JournalState::Committed;
        self.save(&journal, Condition::IfMatch(etag)).await?;
        Ok(committed(&journal))
    }

    /// Takes back what this run wrote, wherever the live object is still what it wrote. Without a journal there is nothing
    /// to take back.
    pub async fn restore(&self) -> Result<Restored, CommitError> {
        let Some((mut journal, etag)) = self.load().await? else { return Ok(Restored::default()) };
        let answer = match &journal.state {
            JournalState::Prepared | JournalState::RolledBack { .. } => Restored::default(),
            JournalState::Restored(answer) => return Ok(answer.clone()),
            JournalState::Writing | JournalState::Committed => {
                let conflicts = self.take_back(&journal).await?;
                let restored = ours(&journal).filter(|entry| !conflicts.contains(&self.place(entry)));
                Restored { restored: restored.map(|entry| entry.change.key.clone()).collect(), conflicts }
            }
        };
        journal.state = JournalState::Restored(answer.clone());
        self.save(&journal, Condition::IfMatch(etag)).await?;
        Ok(answer)
    }

    /// Writes every object that is not yet as it shall be, provided it still is as it was `found`; stops at the first that
    /// is neither before nor after.
    async fn write(&self, journal: &Journal, found: Vec<Found>) -> Result<Option<String>, CommitError> {
        if let Some((entry, _)) = journal.entries.iter().zip(&found).find(|(_, found)| matches!(found, Found::Other)) {
            return Ok(Some(self.place(entry)));
        }
        // Opened once: a store asks its bucket about encryption before its first write.
        let mut stores = BTreeMap::new();
        for (entry, found) in journal.entries.iter().zip(found) {
            let Found::Before(condition) = found else { continue };
            let store = stores.entry(&entry.store).or_insert_with(|| self.live.store(&entry.store));
            match store.put(&entry.place, entry.change.content.clone(), condition).await {
                Ok(_) => tracing::info!(object = store.place(&entry.place), "written to the live state store"),
                Err(WriteError::Precondition { place }) => return Ok(Some(place)),
                Err(WriteError::Store(error)) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Takes back what is still ours, last written first. Returns the objects that somebody else changed.
    async fn take_back(&self, journal: &Journal) -> Result<Vec<String>, CommitError> {
        let (mut conflicts, mut stores) = (Vec::new(), BTreeMap::new());
        for entry in journal.entries.iter().rev().filter(|entry| !entry.already) {
            let store = stores.entry(&entry.store).or_insert_with(|| self.live.store(&entry.store));
            let undone = match self.find(entry).await? {
                Found::Before(_) => continue,
                Found::Other => {
                    conflicts.push(self.place(entry));
                    continue;
                }
                Found::After(etag) => match entry.before() {
                    Some(before) => store.put(&entry.place, before.to_vec(), Condition::IfMatch(etag)).await.map(|_| ()),
                    None => store.delete(&entry.place, Some(&etag)).await,
                },
            };
            match undone {
                Ok(()) => tracing::info!(object = store.place(&entry.place), "taken back in the live state store"),
                Err(WriteError::Precondition { place }) => conflicts.push(place),
                Err(WriteError::Store(error)) => return Err(error.into()),
            }
        }
        conflicts.reverse();
        Ok(conflicts)
    }

    async fn look(&self, journal: &Journal) -> Result<Vec<Found>, CommitError> {
        // An owned future per entry: a borrowing closure would not be general enough for `buffered`.
        let looks: Vec<_> = journal.entries.iter().map(|entry| self.find(entry)).collect();
        Ok(stream::iter(looks).buffered(CONCURRENT_READS).try_collect().await?)
    }

    async fn find(&self, entry: &JournalEntry) -> Result<Found, StoreError> {
        let live = self.live.store(&entry.store).get(&entry.place).await?;
        Ok(match (live, entry.before()) {
            (Some(object), _) if object.bytes == entry.change.content => Found::After(object.etag),
            (Some(object), Some(before)) if object.bytes == before => Found::Before(Condition::IfMatch(object.etag)),
            (None, None) => Found::Before(Condition::IfAbsent),
            _ => Found::Other,
        })
    }

    fn place(&self, entry: &JournalEntry) -> String {
        self.live.store(&entry.store).place(&entry.place)
    }

    async fn load(&self) -> Result<Option<(Journal, ETag)>, CommitError> {
        let Some(object) = self.record.get(&self.key).await? else { return Ok(None) };
        match serde_json::from_slice(&object.bytes) {
            Ok(journal) => Ok(Some((journal, object.etag))),
            Err(source) => Err(CommitError::Malformed { place: self.record.place(&self.key), source }),
        }
    }

    async fn loaded(&self) -> Result<(Journal, ETag), CommitError> {
        self.load().await?.ok_or_else(|| CommitError::NoJournal { place: self.record.place(&self.key) })
    }

    async fn save(&self, journal: &Journal, condition: Condition) -> Result<ETag, CommitError> {
        let place = || self.record.place(&self.key);
        let bytes = serde_json::to_vec_pretty(journal).map_err(|source| CommitError::Malformed { place: place(), source })?;
        self.record.put(&self.key, bytes, condition).await.map_err(|error| match error {
            WriteError::Precondition { place } => CommitError::Overtaken { place },
            WriteError::Store(error) => error.into(),
        })
    }
}

fn ours(journal: &Journal) -> impl Iterator<Item = &JournalEntry> {
    journal.entries.iter().filter(|entry| !entry.already)
}

fn committed(journal: &Journal) -> Committed {
    Committed { written: ours(journal).map(|entry| entry.change.key.clone()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::ClusterState;
    use crate::testing::{Fault, Faults, FaultyStore, FaultyStores, MemoryStore, MemoryStores};
    use kopsline_manifests::{ChangeKind, StoredObject};
    use proptest::prelude::*;

    const KEY: &str = "runs/r/journal.json";

    fn cluster() -> ClusterName {
        ClusterName::new("demo.k8s.local").unwrap()
    }

    fn store() -> StateStoreUri {
        StateStoreUri::new("s3://state").unwrap()
    }

    fn places() -> Places {
        Places::of(&store(), &cluster(), &kopsline_manifests::Stores::default()).unwrap()
    }

    /// A live store and a run's record, both in memory.
    #[derive(Clone, Default)]
    struct World {
        stores: MemoryStores,
        record: MemoryStore,
    }

    impl World {
        fn live(&self) -> MemoryStore {
            self.stores.bucket("state").below("demo.k8s.local")
        }

        fn with(objects: &[(&str, &str)]) -> Self {
            let world = Self::default();
            for (key, text) in objects {
                world.live().set(key, *text);
            }
            world
        }

        fn transaction(&self, faults: &Faults) -> Transaction {
            let live = FaultyStores::new(self.stores.clone(), faults.clone());
            let record = FaultyStore::new(self.record.clone(), faults.clone());
            Transaction::new(Arc::new(live), Arc::new(record), KEY)
        }

        fn sound(&self) -> Transaction {
            self.transaction(&Faults::none())
        }

        fn snapshot(&self) -> BTreeMap<String, Vec<u8>> {
            self.live().snapshot()
        }

        fn text(&self, name: &str) -> Option<String> {
            self.live().text(name)
        }
    }

    fn change(key: &str, before: Option<&str>, after: &str) -> Change {
        Change {
            key: key.to_owned(),
            kind: if before.is_some() { ChangeKind::Modify } else { ChangeKind::Create },
            previous: before.map(|text| StoredObject { bytes: text.into(), etag: None }),
            content: after.into(),
            generation: None,
        }
    }

    fn world() -> World {
        World::with(&[("config", "c1"), ("instancegroup/a", "a1"), ("instancegroup/same", "s"), ("untouched", "u")])
    }

    fn journal() -> Journal {
        let changes = vec![
            change("pki/ssh/public/admin/ff", None, "key"),
            change("instancegroup/new", None, "n2"),
            change("instancegroup/a", Some("a1"), "a2"),
            change("config", Some("c1"), "c2"),
        ];
        Journal::new(cluster(), &places(), changes)
    }

    const NAMES: [&str; 4] = ["config", "instancegroup/a", "instancegroup/new", "pki/ssh/public/admin/ff"];

    #[tokio::test]
    async fn commits_in_order_and_restores() {
        let world = world();
        let before = world.snapshot();
        let transaction = world.sound();
        transaction.prepare(journal()).await.unwrap();
        assert_eq!(world.snapshot(), before, "preparing writes nothing");
        let committed = transaction.commit().await.unwrap();
        assert_eq!(committed.written, NAMES);
        let written: Vec<_> = world.live().writes().into_iter().map(|write| write.key.replace("demo.k8s.local/", "")).collect();
        assert_eq!(written, NAMES, "the cluster first, then instance groups, then keys; nothing that stays the same");
        assert!(world.live().writes().iter().all(|write| write.kind != crate::testing::WriteKind::Put(Condition::Unconditional)));
        assert_eq!(world.text("instancegroup/a").as_deref(), Some("a2"));
        assert_eq!(transaction.commit().await.unwrap(), committed, "again is the same");

        let restored = transaction.restore().await.unwrap();
        assert_eq!((restored.restored.as_slice(), restored.conflicts.is_empty()), (NAMES.map(str::to_owned).as_slice(), true));
        assert_eq!(world.snapshot(), before);
        assert_eq!(transaction.restore().await.unwrap(), restored, "again is the same");
        assert!(matches!(transaction.commit().await, Err(CommitError::AlreadyRestored)));
    }

    #[tokio::test]
    async fn a_conflict_found_first_changes_nothing_and_names_the_object() {
        for (key, text) in [("instancegroup/a", Some("theirs")), ("instancegroup/a", None), ("instancegroup/new", Some("theirs"))] {
            let world = world();
            match text {
                Some(text) => world.live().set(key, text),
                None => world.live().unset(key),
            }
            let before = world.snapshot();
            let transaction = world.sound();
            transaction.prepare(journal()).await.unwrap();
            let error = transaction.commit().await.unwrap_err();
            assert!(matches!(&error, CommitError::Conflict { place } if *place == format!("s3://state/demo.k8s.local/{key}")), "{error}");
            assert_eq!(world.snapshot(), before);
            assert!(world.live().writes().is_empty());
        }
    }

    #[tokio::test]
    async fn objects_that_others_already_wrote_alike_are_not_taken_back() {
        let world = world();
        world.live().set("config", "c2");
        let transaction = world.sound();
        transaction.prepare(journal()).await.unwrap();
        assert_eq!(transaction.commit().await.unwrap().written, &NAMES[1..]);
        transaction.restore().await.unwrap();
        assert_eq!(world.text("config").as_deref(), Some("c2"));
        assert_eq!(world.text("instancegroup/a").as_deref(), Some("a1"));
    }

    #[tokio::test]
    async fn restore_leaves_what_others_changed_and_names_it() {
        let world = world();
        let transaction = world.sound();
        transaction.prepare(journal()).await.unwrap();
        transaction.commit().await.unwrap();
        world.live().set("instancegroup/a", "theirs");
        let restored = transaction.restore().await.unwrap();
        assert_eq!(restored.conflicts, ["s3://state/demo.k8s.local/instancegroup/a"]);
        assert_eq!(restored.restored, [NAMES[0], NAMES[2], NAMES[3]]);
        assert_eq!(world.text("instancegroup/a").as_deref(), Some("theirs"));
        assert_eq!(world.text("config").as_deref(), Some("c1"));
        assert_eq!(world.text("instancegroup/new"), None);
    }

    #[tokio::test]
    async fn a_journal_past_its_beginning_is_kept() {
        let world = world();
        let transaction = world.sound();
        assert!(transaction.journal().await.unwrap().is_none());
        assert!(matches!(transaction.commit().await, Err(CommitError::NoJournal { .. })));
        assert_eq!(transaction.restore().await.unwrap(), Restored::default());
        let other = Journal::new(cluster(), &places(), vec![change("config", Some("c1"), "c3")]);
        transaction.prepare(other.clone()).await.unwrap();
        assert_eq!(transaction.prepare(journal()).await.unwrap(), journal(), "nothing was written yet");
        transaction.commit().await.unwrap();
        assert_eq!(transaction.prepare(other).await.unwrap().state, JournalState::Committed);
        let kept = transaction.journal().await.unwrap().unwrap();
        assert_eq!(kept.entries.len(), 4);
    }

    #[tokio::test]
    async fn changes_of_the_live_registry_are_written_where_the_objects_lie() {
        let world =
            World::with(&[("config", "spec: {keyStore: s3://keys/k}"), ("instancegroup/a", "metadata:\n  name: a\nspec:\n  minSize: 1\n")]);
        let live = ClusterState::read(&world.stores, &store(), &cluster()).await.unwrap();
        let mut scratch = live.registry.clone();
        scratch
            .insert("instancegroup/a".into(), StoredObject { bytes: b"metadata:\n  name: a\nspec:\n  minSize: 2\n".to_vec(), etag: None });
        scratch.insert("pki/ssh/public/admin/ff".into(), StoredObject { bytes: b"key".to_vec(), etag: None });
        let named = kopsline_manifests::Stores::of(&live.config().unwrap()).unwrap();
        let changes = kopsline_manifests::changes(&live.registry, &scratch, &named).unwrap();
        let transaction = world.sound();
        transaction.prepare(Journal::new(live.cluster, &live.places, changes)).await.unwrap();
        transaction.commit().await.unwrap();
        let written = world.text("instancegroup/a").unwrap();
        assert!(written.contains("minSize: 2"), "{written}");
        assert_eq!(world.stores.bucket("keys").text("k/ssh/public/admin/ff").as_deref(), Some("key"));
    }

    /// Runs prepare and commit (and restore) as a state machine would: again after every death, until an end.
    async fn to_the_end(world: &World, faults: impl Fn(u32) -> Faults, restore: bool) -> Result<Vec<String>, String> {
        for attempt in 0..300 {
            let transaction = world.transaction(&faults(attempt));
            let result = async {
                transaction.prepare(journal()).await?;
                if restore {
                    transaction.restore().await.map(|answer| answer.restored)
                } else {
                    transaction.commit().await.map(|answer| answer.written)
                }
            }
            .await;
            match result {
                Ok(written) => return Ok(written),
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("no end".to_owned())
    }

    #[tokio::test]
    async fn killed_at_any_call_and_run_again_it_comes_to_the_same_end() {
        let reference = world();
        let calls = Faults::none();
        let transaction = reference.transaction(&calls);
        transaction.prepare(journal()).await.unwrap();
        let written = transaction.commit().await.unwrap().written;
        let committing = calls.calls();
        let committed = reference.snapshot();
        transaction.restore().await.unwrap();
        let total = calls.calls();

        for fate in [Fault::NotApplied, Fault::AnswerLost] {
            for at in 0..committing {
                let world = world();
                let faults = |attempt| if attempt == 0 { Faults::killing(at, fate) } else { Faults::none() };
                assert_eq!(to_the_end(&world, faults, false).await.as_ref(), Ok(&written), "call {at}, {fate:?}");
                assert_eq!(world.snapshot(), committed, "call {at}, {fate:?}");
                assert_eq!(world.sound().journal().await.unwrap().unwrap().state, JournalState::Committed);
                // And whenever the commit died, restoring gives what was there before.
                let world = self::world();
                let before = world.snapshot();
                let transaction = world.transaction(&Faults::killing(at, fate));
                let _ = async {
                    transaction.prepare(journal()).await?;
                    transaction.commit().await
                }
                .await;
                world.sound().restore().await.unwrap();
                assert_eq!(world.snapshot(), before, "commit killed at call {at}, {fate:?}, then restored");
            }
            for at in 0..total - committing {
                let world = world();
                let before = world.snapshot();
                to_the_end(&world, |_| Faults::none(), false).await.unwrap();
                let faults = |attempt| if attempt == 0 { Faults::killing(at, fate) } else { Faults::none() };
                assert_eq!(to_the_end(&world, faults, true).await.as_ref(), Ok(&written), "restore, call {at}, {fate:?}");
                assert_eq!(world.snapshot(), before, "restore, call {at}, {fate:?}");
            }
        }
    }

    #[tokio::test]
    async fn another_writer_at_any_call_leaves_all_or_nothing() {
        let calls = Faults::none();
        let reference = world();
        let transaction = reference.transaction(&calls);
        transaction.prepare(journal()).await.unwrap();
        transaction.commit().await.unwrap();
        let committed = reference.snapshot();
        for name in NAMES {
            for at in 0..calls.calls() {
                let world = world();
                let before = world.snapshot();
                let live = world.live();
                let faults = Faults::new(move |call| {
                    if call == at {
                        live.set(name, "theirs");
                    }
                    Fault::None
                });
                let transaction = world.transaction(&faults);
                transaction.prepare(journal()).await.unwrap();
                let result = transaction.commit().await;
                let mut expected = if result.is_ok() { committed.clone() } else { before };
                expected.insert(format!("demo.k8s.local/{name}"), b"theirs".to_vec());
                assert_eq!(world.snapshot(), expected, "{name} at call {at}: {result:?}");
                if let Err(error) = result {
                    assert!(error.to_string().starts_with(&format!("s3://state/demo.k8s.local/{name} ")), "{error}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Whatever fails, however often, and whoever else writes: the end is the whole change or nothing of it, and
        /// restoring gives back the beginning, except for what the other writer wrote.
        #[test]
        fn atomic_under_random_faults_and_one_other_writer(seed: u64, one_in in 4u32..12, intruder in proptest::option::of((0usize..40, 0usize..4))) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let world = world();
                let before = world.snapshot();
                let random = std::sync::Mutex::new(fastrand::Rng::with_seed(seed));
                let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
                let (live, counter) = (world.live(), Arc::clone(&count));
                let faults = move |_| {
                    let mut random = random.lock().unwrap().fork();
                    let (live, counter) = (live.clone(), Arc::clone(&counter));
                    Faults::new(move |_| {
                        let call = counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if let Some((at, which)) = intruder && at == call {
                            live.set(NAMES[which], "theirs");
                        }
                        match (random.u32(0..one_in), random.bool()) {
                            (0, true) => Fault::NotApplied,
                            (0, false) => Fault::AnswerLost,
                            _ => Fault::None,
                        }
                    })
                };
                let result = to_the_end(&world, &faults, false).await;
                let theirs = intruder.filter(|(at, _)| *at < count.load(std::sync::atomic::Ordering::Relaxed)).map(|(_, which)| format!("demo.k8s.local/{}", NAMES[which]));
                let without = |mut objects: BTreeMap<String, Vec<u8>>| { if let Some(key) = &theirs { objects.remove(key); } objects };
                let after = without(world.snapshot());
                match &result {
                    Ok(_) => {
                        for entry in journal().entries {
                            let key = format!("demo.k8s.local/{}", entry.change.key);
                            if theirs.as_ref() != Some(&key) { assert_eq!(after.get(&key).map(Vec::as_slice), Some(entry.change.content.as_slice()), "{key}"); }
                        }
                    }
                    Err(error) => {
                        assert!(theirs.is_some(), "{error}");
                        assert_eq!(after, without(before.clone()));
                    }
                }
                if let Some(key) = &theirs { assert_eq!(world.snapshot()[key].as_slice(), b"theirs"); }
                to_the_end(&world, |_| Faults::none(), true).await.unwrap();
                assert_eq!(without(world.snapshot()), without(before));
            });
        }
    }
}
