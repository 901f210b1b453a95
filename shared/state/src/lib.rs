//! Objects in S3: the kOps state store, the run's record, the cluster's lock.
//!
//! [`ObjectStore`] is the whole contract with S3: read, list, and *conditional* writes, on which locks, records and the
//! commit of a registry rest. [`S3Store`] is the real one; [`testing`] has one in memory and one that fails on purpose,
//! for the tests of every crate.

pub mod backoff;
pub mod documents;
pub mod locks;
pub mod object;
pub mod registry;
pub mod runs;
pub mod s3;
pub mod testing;
pub mod transaction;

pub use documents::{Documents, Update, UpdateError, Versioned};
pub use locks::{HeldBy, LockFile};
pub use object::{Condition, ETag, Object, ObjectMeta, ObjectStore, Reader, StoreError, Stores, WriteError};
pub use registry::{ClusterState, Places, RegistryError};
pub use runs::{RunError, Runs};
pub use s3::{S3Store, S3Stores};
pub use transaction::{CommitError, Committed, Journal, JournalEntry, JournalState, Restored, Transaction};
