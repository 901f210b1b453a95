//! Stores for tests: one in memory that behaves as S3 does, and one that fails on purpose.
//!
//! They are part of the crate and not of its tests, because the tests of every crate above this one use them.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use jiff::Timestamp;
use kopsline_core::StateStoreUri;
use sha2::{Digest, Sha256};

use crate::object::{Condition, ETag, Object, ObjectMeta, ObjectStore, Reader, StoreError, Stores, WriteError, join};

/// A write that a [`MemoryStore`] was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The full key.
    pub key: String,
    /// What was asked.
    pub kind: WriteKind,
    /// Whether the condition held.
    pub applied: bool,
}

/// What a write was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteKind {
    /// A put and its condition.
    Put(Condition),
    /// A deletion.
    Delete,
}

#[derive(Debug, Default)]
struct Bucket {
    objects: BTreeMap<String, (Vec<u8>, Timestamp)>,
    writes: Vec<Write>,
}

/// A bucket in memory. Clones share it. Version tags follow from the content, as S3's do; times count the writes.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    bucket: Arc<Mutex<Bucket>>,
    name: String,
    prefix: String,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new("memory")
    }
}

impl MemoryStore {
    /// An empty bucket of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { bucket: Arc::default(), name: name.into(), prefix: String::new() }
    }

    /// The part of the bucket below a prefix (without slashes at its ends).
    #[must_use]
    pub fn below(&self, prefix: &str) -> Self {
        let prefix = if prefix.is_empty() { self.prefix.clone() } else { join(&self.prefix, prefix) };
        Self { bucket: Arc::clone(&self.bucket), name: self.name.clone(), prefix }
    }

    /// Writes an object past all conditions and past the log, as somebody else would.
    pub fn set(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        let key = join(&self.prefix, key);
        let mut bucket = self.lock();
        let now = bucket.now();
        bucket.objects.insert(key, (bytes.into(), now));
    }

    /// Removes an object past the log, as somebody else would.
    pub fn unset(&self, key: &str) {
        self.lock().objects.remove(&join(&self.prefix, key));
    }

    /// An object's content as text, if it is there and is text.
    pub fn text(&self, key: &str) -> Option<String> {
        self.snapshot().remove(&join(&self.prefix, key)).and_then(|bytes| String::from_utf8(bytes).ok())
    }

    /// All of the bucket's objects by their full keys.
    pub fn snapshot(&self) -> BTreeMap<String, Vec<u8>> {
        self.lock().objects.iter().map(|(key, (bytes, _))| (key.clone(), bytes.clone())).collect()
    }

    /// The writes asked for so far, refused ones included.
    pub fn writes(&self) -> Vec<Write> {
        self.lock().writes.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        // A test that panicked elsewhere leaves whole objects behind; each change below is one insertion or removal.
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bucket {
    fn now(&self) -> Timestamp {
        let writes = i64::try_from(self.writes.len()).unwrap_or(i64::MAX);
        Timestamp::from_second(writes).unwrap_or(Timestamp::MAX)
    }

    fn etag(&self, key: &str) -> Option<ETag> {
        self.objects.get(key).map(|(bytes, _)| etag(bytes))
    }

    fn holds(&self, key: &str, condition: &Condition) -> bool {
        match condition {
            Condition::Unconditional => true,
            Condition::IfAbsent => !self.objects.contains_key(key),
            Condition::IfMatch(etag) => self.etag(key).as_ref() == Some(etag),
        }
    }
}

fn etag(bytes: &[u8]) -> ETag {
    let digest = hex::encode(Sha256::digest(bytes));
    ETag(format!("\"{}\"", digest.get(..32).unwrap_or(&digest)))
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Object>, StoreError> {
        let key = join(&self.prefix, key);
        Ok(self.lock().objects.get(&key).map(|(bytes, _)| Object { bytes: bytes.clone(), etag: etag(bytes) }))
    }

    async fn open(&self, key: &str) -> Result<Option<Reader>, StoreError> {
        let object = self.get(key).await?;
        Ok(object.map(|object| Reader { size: u64::try_from(object.bytes.len()).ok(), body: Box::new(Cursor::new(object.bytes)) }))
    }

    async fn list_first(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        let own = if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let full = format!("{own}{prefix}");
        let bucket = self.lock();
        let found = bucket.objects.iter().filter(|(key, _)| key.starts_with(&full)).take(limit);
        Ok(found
            .map(|(key, (bytes, at))| ObjectMeta {
                key: key.strip_prefix(&own).unwrap_or(key).to_owned(),
                etag: etag(bytes),
                size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
                last_modified: *at,
            })
            .collect())
    }

    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<ETag, WriteError> {
        let full = join(&self.prefix, key);
        let mut bucket = self.lock();
        let applied = bucket.holds(&full, &condition);
        bucket.writes.push(Write { key: full.clone(), kind: WriteKind::Put(condition), applied });
        if !applied {
            return Err(WriteError::Precondition { place: self.place(key) });
        }
        let etag = etag(&bytes);
        let now = bucket.now();
        bucket.objects.insert(full, (bytes, now));
        Ok(etag)
    }

    async fn delete(&self, key: &str, if_match: Option<&ETag>) -> Result<(), WriteError> {
        let full = join(&self.prefix, key);
        let mut bucket = self.lock();
        let current = bucket.etag(&full);
        let applied = current.is_none() || if_match.is_none() || current.as_ref() == if_match;
        bucket.writes.push(Write { key: full.clone(), kind: WriteKind::Delete, applied });
        if !applied {
            return Err(WriteError::Precondition { place: self.place(key) });
        }
        bucket.objects.remove(&full);
        Ok(())
    }

    fn place(&self, key: &str) -> String {
        format!("s3://{}/{}", self.name, join(&self.prefix, key))
    }
}

/// Buckets in memory, each made when it is first opened. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct MemoryStores(Arc<Mutex<BTreeMap<String, MemoryStore>>>);

impl MemoryStores {
    /// A bucket.
    pub fn bucket(&self, name: &str) -> MemoryStore {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.entry(name.to_owned()).or_insert_with(|| MemoryStore::new(name)).clone()
    }
}

impl Stores for MemoryStores {
    fn store(&self, place: &StateStoreUri) -> Arc<dyn ObjectStore> {
        Arc::new(self.bucket(place.bucket()).below(place.prefix()))
    }
}

/// What happens to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It goes through.
    None,
    /// It fails and was not applied.
    NotApplied,
    /// It is applied and its answer is lost.
    AnswerLost,
}

type Script = Box<dyn FnMut(usize) -> Fault + Send>;

/// Decides the fate of every call, counted from 0 over all stores that share it. Clones share the count.
#[derive(Clone)]
pub struct Faults(Arc<Mutex<(usize, Script)>>);

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Faults").field("calls", &self.calls()).finish()
    }
}

impl Faults {
    /// Faults by script: it is asked once per call, in order, before the call. It may also change the store behind, as
    /// another writer would between two calls.
    pub fn new(script: impl FnMut(usize) -> Fault + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new((0, Box::new(script)))))
    }

    /// No faults: counts calls.
    pub fn none() -> Self {
        Self::new(|_| Fault::None)
    }

    /// The caller dies at call `at`: that call has the given fate, and none after it gets through.
    pub fn killing(at: usize, fate: Fault) -> Self {
        Self::new(move |call| match call.cmp(&at) {
            std::cmp::Ordering::Less => Fault::None,
            std::cmp::Ordering::Equal => fate,
            std::cmp::Ordering::Greater => Fault::NotApplied,
        })
    }

    /// About one call in `one_in` fails, either way, the same ones for the same seed.
    pub fn random(seed: u64, one_in: u32) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self::new(move |_| match (random.u32(0..one_in.max(1)), random.bool()) {
            (0, true) => Fault::NotApplied,
            (0, false) => Fault::AnswerLost,
            _ => Fault::None,
        })
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn next(&self) -> Fault {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, script) = &mut *state;
        let fault = script(*count);
        *count += 1;
        fault
    }
}

/// A store whose calls fail as its [`Faults`] say, with transient errors.
#[derive(Debug, Clone)]
pub struct FaultyStore<S> {
    inner: S,
    faults: Faults,
}

impl<S: ObjectStore> FaultyStore<S> {
    /// A store that fails.
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }

    fn lost(&self, operation: &'static str, key: &str) -> StoreError {
        StoreError { operation, place: self.place(key), attempts: 1, reason: "injected fault".to_owned(), transient: true }
    }

    async fn run<T, E: From<StoreError>>(
        &self,
        operation: &'static str,
        key: &str,
        call: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        match self.faults.next() {
            Fault::None => call.await,
            Fault::NotApplied => Err(self.lost(operation, key).into()),
            Fault::AnswerLost => {
                call.await?;
                Err(self.lost(operation, key).into())
            }
        }
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for FaultyStore<S> {
    async fn get(&self, key: &str) -> Result<Option<Object>, StoreError> {
        self.run("GetObject", key, self.inner.get(key)).await
    }
    async fn open(&self, key: &str) -> Result<Option<Reader>, StoreError> {
        self.run("GetObject", key, self.inner.open(key)).await
    }
    async fn list_first(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        self.run("ListObjectsV2", prefix, self.inner.list_first(prefix, limit)).await
    }
    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<ETag, WriteError> {
        self.run("PutObject", key, self.inner.put(key, bytes, condition)).await
    }
    async fn delete(&self, key: &str, if_match: Option<&ETag>) -> Result<(), WriteError> {
        self.run("DeleteObject", key, self.inner.delete(key, if_match)).await
    }
    fn place(&self, key: &str) -> String {
        self.inner.place(key)
    }
}

/// Stores that share their faults.
#[derive(Debug, Clone)]
pub struct FaultyStores<S> {
    inner: S,
    faults: Faults,
}

impl<S: Stores> FaultyStores<S> {
    /// Stores that fail.
    pub fn new(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

impl<S: Stores> Stores for FaultyStores<S> {
    fn store(&self, place: &StateStoreUri) -> Arc<dyn ObjectStore> {
        Arc::new(FaultyStore::new(self.inner.store(place), self.faults.clone()))
    }
}
