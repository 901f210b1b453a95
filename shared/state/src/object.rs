//! What Kopsline asks of an object store.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use kopsline_core::StateStoreUri;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;

/// An object's version tag, opaque and as the store gave it (S3 keeps the quotes). For objects written in one piece S3
/// derives it from the content, so writing back the old content may bring back the old tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ETag(pub String);

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object's content and version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The content.
    pub bytes: Vec<u8>,
    /// Its version.
    pub etag: ETag,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The key, relative to the store's prefix.
    pub key: String,
    /// Its version.
    pub etag: ETag,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written.
    pub last_modified: Timestamp,
}

/// An object's content as a stream, for what is too big for memory.
pub struct Reader {
    /// The size in bytes, where the store says it.
    pub size: Option<u64>,
    /// The content.
    pub body: Box<dyn AsyncRead + Send + Unpin>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("size", &self.size).finish_non_exhaustive()
    }
}

/// When a write shall happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Whatever is there.
    Unconditional,
    /// Only if there is no such object.
    IfAbsent,
    /// Only if the object is still this version.
    IfMatch(ETag),
}

/// An operation that failed; the text says what was tried, where and how often.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} {place} failed after {}: {reason}", attempts_text(*.attempts))]
pub struct StoreError {
    /// The operation's name, such as `GetObject`.
    pub operation: &'static str,
    /// The object or prefix as `s3://bucket/key`.
    pub place: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub reason: String,
    /// Whether trying again later may help.
    pub transient: bool,
}

impl StoreError {
    /// Whether trying again later may help: throttling, time-outs, the service's own errors.
    pub fn is_transient(&self) -> bool {
        self.transient
    }
}

fn attempts_text(attempts: u32) -> String {
    if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") }
}

/// A write that did not happen, or of which that is not known.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The object is not as the condition asks; nothing was written.
    #[error("{place} was changed by somebody else")]
    Precondition {
        /// The object as `s3://bucket/key`.
        place: String,
    },
    /// The store failed. After a transient failure the write may have happened: read before deciding.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Precondition { .. } => false,
            Self::Store(error) => error.is_transient(),
        }
    }
}

/// A bucket, or a prefix of one. Keys are relative to it.
///
/// Every method is bounded in time and retries what is worth retrying; its error is final for the caller's invocation.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// Reads an object; `None` when there is none.
    async fn get(&self, key: &str) -> Result<Option<Object>, StoreError>;

    /// Reads an object as a stream; `None` when there is none. A stream that breaks is the reader's to retry.
    async fn open(&self, key: &str) -> Result<Option<Reader>, StoreError>;

    /// Lists at most `limit` objects whose keys begin with `prefix`, in ascending order of keys.
    async fn list_first(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectMeta>, StoreError>;

    /// Writes an object if the condition holds. A write that happened although its answer was lost counts as done where
    /// the store can tell.
    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<ETag, WriteError>;

    /// Deletes an object, with `if_match` only that version of it. An object that is not there counts as deleted.
    async fn delete(&self, key: &str, if_match: Option<&ETag>) -> Result<(), WriteError>;

    /// The object's full address, for messages.
    fn place(&self, key: &str) -> String;

    /// Lists all objects whose keys begin with `prefix`, in ascending order of keys.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.list_first(prefix, usize::MAX).await
    }
}

#[async_trait]
impl<S: ObjectStore + ?Sized> ObjectStore for Arc<S> {
    async fn get(&self, key: &str) -> Result<Option<Object>, StoreError> {
        (**self).get(key).await
    }
    async fn open(&self, key: &str) -> Result<Option<Reader>, StoreError> {
        (**self).open(key).await
    }
    async fn list_first(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        (**self).list_first(prefix, limit).await
    }
    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<ETag, WriteError> {
        (**self).put(key, bytes, condition).await
    }
    async fn delete(&self, key: &str, if_match: Option<&ETag>) -> Result<(), WriteError> {
        (**self).delete(key, if_match).await
    }
    fn place(&self, key: &str) -> String {
        (**self).place(key)
    }
}

/// Opens stores by address: a cluster's registry, its `configBase` and its `keyStore` may lie in different buckets.
pub trait Stores: Send + Sync {
    /// The store at an address. Opening does no IO.
    fn store(&self, place: &StateStoreUri) -> Arc<dyn ObjectStore>;
}

/// The content type for a key, so that a run's pages open in a browser from the S3 console. Registry objects have no
/// suffix and stay `application/octet-stream`, as kOps writes them.
pub(crate) fn content_type(key: &str) -> &'static str {
    match key.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map(|(_, suffix)| suffix) {
        Some("json") => "application/json",
        Some("html") => "text/html; charset=utf-8",
        Some("md") => "text/markdown; charset=utf-8",
        Some("txt") => "text/plain; charset=utf-8",
        Some("yaml" | "yml") => "application/yaml",
        _ => "application/octet-stream",
    }
}

/// `prefix/key`, or the key alone under an empty prefix.
pub(crate) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}/{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_was_tried() {
        let error = StoreError {
            operation: "GetObject",
            place: "s3://state/demo/config".into(),
            attempts: 5,
            reason: "SlowDown: reduce your request rate".into(),
            transient: true,
        };
        assert_eq!(error.to_string(), "GetObject s3://state/demo/config failed after 5 attempts: SlowDown: reduce your request rate");
        assert!(WriteError::from(error).is_transient());
    }

    #[test]
    fn content_types_follow_suffixes() {
        assert_eq!(content_type("runs/a.b/plan.json"), "application/json");
        assert_eq!(content_type("runs/a.b/index.html"), "text/html; charset=utf-8");
        assert_eq!(content_type("demo.k8s.local/config"), "application/octet-stream");
        assert_eq!(content_type("x.json/config"), "application/octet-stream");
    }
}
