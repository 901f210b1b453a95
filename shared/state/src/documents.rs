//! JSON documents that several processes change.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backoff;
use crate::object::{Condition, ETag, ObjectStore, StoreError, WriteError};

/// How often an update is tried against other writers. Each loser waits up to 2 s; more losses than this mean that
/// somebody writes in a loop.
const MAX_ATTEMPTS: u32 = 10;

/// A document and the version it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The document.
    pub value: T,
    /// Its version.
    pub etag: ETag,
}

/// What an update comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update<T, R> {
    /// Write this and answer that.
    Put(T, R),
    /// Leave the document as it is and answer that.
    Keep(R),
}

/// An operation on a document that failed. `E` is the caller's own refusal.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E = std::convert::Infallible> {
    /// The caller refused the document as it is now.
    #[error(transparent)]
    Refused(E),
    /// What is stored is not a document of this type.
    #[error("{place} cannot be read: {source}")]
    Malformed {
        /// The object.
        place: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Other writers came first every time.
    #[error("{place} was changed by others on each of {MAX_ATTEMPTS} attempts")]
    Contended {
        /// The object.
        place: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<E> UpdateError<E> {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Malformed { .. } => false,
            Self::Contended { .. } => true,
            Self::Store(error) => error.is_transient(),
        }
    }
}

/// JSON documents over an object store.
#[derive(Clone)]
pub struct Documents {
    store: Arc<dyn ObjectStore>,
}

impl std::fmt::Debug for Documents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Documents").field(&self.store.place("")).finish()
    }
}

impl Documents {
    /// The documents of a store.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// The store itself, for what is no document.
    pub fn store(&self) -> &dyn ObjectStore {
        &*self.store
    }

    /// The store itself, to be kept.
    pub fn shared(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// Reads a document; `None` when there is none.
    pub async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Versioned<T>>, UpdateError> {
        self.read_as(key).await
    }

    async fn read_as<T: DeserializeOwned, E>(&self, key: &str) -> Result<Option<Versioned<T>>, UpdateError<E>> {
        let Some(object) = self.store.get(key).await? else { return Ok(None) };
        match serde_json::from_slice(&object.bytes) {
            Ok(value) => Ok(Some(Versioned { value, etag: object.etag })),
            Err(source) => Err(UpdateError::Malformed { place: self.store.place(key), source }),
        }
    }

    /// Creates a document. `false` when there is one already, which then stays as it is.
    pub async fn create<T: Serialize>(&self, key: &str, value: &T) -> Result<bool, UpdateError> {
        let bytes = self.bytes(key, value)?;
        match self.store.put(key, bytes, Condition::IfAbsent).await {
            Ok(_) => Ok(true),
            Err(WriteError::Precondition { .. }) => Ok(false),
            Err(WriteError::Store(error)) => Err(error.into()),
        }
    }

    /// Writes a document whatever is there: for what one process alone writes, such as a report.
    pub async fn write<T: Serialize>(&self, key: &str, value: &T) -> Result<(), UpdateError> {
        let bytes = self.bytes(key, value)?;
        match self.store.put(key, bytes, Condition::Unconditional).await {
            Ok(_) => Ok(()),
            Err(WriteError::Precondition { place }) => Err(UpdateError::Contended { place }),
            Err(WriteError::Store(error)) => Err(error.into()),
        }
    }

    /// Changes a document by compare and swap: `change` sees what is stored (`None` when nothing is) and says what becomes
    /// of it. It is asked again whenever another writer comes first, and after a lost answer it may see its own write; it
    /// must come to the same end then.
    pub async fn update<T, R, E>(
        &self,
        key: &str,
        mut change: impl FnMut(Option<T>) -> Result<Update<T, R>, E>,
    ) -> Result<R, UpdateError<E>>
    where
        T: Serialize + DeserializeOwned,
    {
        for attempt in 0..MAX_ATTEMPTS {
            let (current, condition) = match self.read_as::<T, E>(key).await? {
                Some(found) => (Some(found.value), Condition::IfMatch(found.etag)),
                None => (None, Condition::IfAbsent),
            };
            let (value, answer) = match change(current).map_err(UpdateError::Refused)? {
                Update::Put(value, answer) => (value, answer),
                Update::Keep(answer) => return Ok(answer),
            };
            let bytes = self.bytes(key, &value)?;
            match self.store.put(key, bytes, condition).await {
                Ok(_) => return Ok(answer),
                Err(WriteError::Precondition { .. }) => {
                    tokio::time::sleep(backoff::delay(attempt, Duration::from_millis(20), Duration::from_secs(2))).await;
                }
                Err(WriteError::Store(error)) => return Err(error.into()),
            }
        }
        Err(UpdateError::Contended { place: self.store.place(key) })
    }

    fn bytes<T: Serialize, E>(&self, key: &str, value: &T) -> Result<Vec<u8>, UpdateError<E>> {
        // Indented: people read these in the S3 console when something went wrong.
        serde_json::to_vec_pretty(value).map_err(|source| UpdateError::Malformed { place: self.store.place(key), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fault, Faults, FaultyStore, MemoryStore};

    fn documents(store: impl ObjectStore + 'static) -> Documents {
        Documents::new(Arc::new(store))
    }

    #[allow(clippy::unnecessary_wraps, reason = "the shape that an update takes")]
    fn increment(n: Option<u32>) -> Result<Update<u32, u32>, String> {
        let next = n.unwrap_or(0) + 1;
        Ok(Update::Put(next, next))
    }

    #[tokio::test]
    async fn creates_once_and_reads_back() {
        let documents = documents(MemoryStore::default());
        assert!(documents.create("a.json", &vec![1, 2]).await.unwrap());
        assert!(!documents.create("a.json", &vec![3]).await.unwrap());
        assert_eq!(documents.read::<Vec<u32>>("a.json").await.unwrap().unwrap().value, [1, 2]);
        assert!(documents.read::<u32>("none.json").await.unwrap().is_none());
        documents.write("a.json", &"text").await.unwrap();
        let error = documents.read::<u32>("a.json").await.unwrap_err();
        assert!(matches!(&error, UpdateError::Malformed { place, .. } if place == "s3://memory/a.json"), "{error}");
        assert!(!error.is_transient());
    }

    #[tokio::test(start_paused = true)]
    async fn no_increment_is_lost_among_many_writers() {
        let store = MemoryStore::default();
        let documents = documents(store.clone());
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let documents = documents.clone();
                tokio::spawn(async move { documents.update("n.json", increment).await.is_ok() })
            })
            .collect();
        let mut done = 0;
        for task in tasks {
            done += u32::from(task.await.unwrap());
        }
        assert_eq!(documents.read::<u32>("n.json").await.unwrap().unwrap().value, done);
        assert_eq!(done, 8);
    }

    #[tokio::test(start_paused = true)]
    async fn another_writer_between_read_and_write_is_seen() {
        let store = MemoryStore::default();
        let other = store.clone();
        let faults = Faults::new(move |call| {
            if call == 1 {
                other.set("n.json", "41");
            }
            Fault::None
        });
        let documents = documents(FaultyStore::new(store, faults));
        assert_eq!(documents.update("n.json", increment).await.unwrap(), 42);
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_when_others_always_come_first() {
        let store = MemoryStore::default();
        let other = store.clone();
        let faults = Faults::new(move |call| {
            if call % 2 == 1 {
                other.set("n.json", call.to_string());
            }
            Fault::None
        });
        let documents = documents(FaultyStore::new(store, faults.clone()));
        let error = documents.update("n.json", increment).await.unwrap_err();
        assert!(matches!(error, UpdateError::Contended { .. }) && error.is_transient(), "{error}");
        assert_eq!(faults.calls(), 20);
    }

    #[tokio::test]
    async fn refusals_and_outages_pass_through_and_change_nothing() {
        let store = MemoryStore::default();
        let healthy = documents(store.clone());
        let refused = healthy.update::<u32, (), _>("n.json", |_| Err("no")).await.unwrap_err();
        assert!(matches!(refused, UpdateError::Refused("no")));
        let kept = healthy.update::<u32, _, String>("n.json", |n| Ok(Update::Keep(n))).await.unwrap();
        assert_eq!(kept, None);
        let faulty = documents(FaultyStore::new(store.clone(), Faults::killing(1, Fault::NotApplied)));
        assert!(faulty.update("n.json", increment).await.unwrap_err().is_transient());
        assert!(store.snapshot().is_empty());
    }
}
