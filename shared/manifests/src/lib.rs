//! kOps manifests: splitting, strict checks, meaning, and the change of a registry.
//!
//! kOps takes more than it should: it splits files by bytes, keeps the last of two equal keys, drops fields that it does
//! not know, and applies document by document. This crate says what is wrong before kOps runs, and what changed after
//! it ran in a scratch store. Pure: no IO, no clock, no async.
//!
//! 1. [`SourceFile::from_bytes`] and [`parse`]: every [`Problem`] at once, or a [`ManifestSet`]. Checked are: text and
//!    YAML as kOps reads them, separators that kOps does not split on, duplicate keys and documents, kinds and versions,
//!    names, labels, values of the wrong type where the type is sure, SSH keys, and that all is of one cluster.
//! 2. [`check_against_live`]: what is wrong only for this live cluster.
//! 3. [`ManifestSet::assemble_isolated`]: the one file for `kops replace` in a scratch store, whose `config` is the live
//!    one after [`Stores::default`]`.`[`write_into`](Stores::write_into).
//! 4. [`DropProbe`]: the fields that kOps dropped.
//! 5. [`changes`]: the objects to write to the live store; [`absent_groups`]: what kOps leaves there.
//! 6. [`with_config_base`]: the cluster of a dry run beside the live store.

mod dropped;
mod edit;
mod live;
mod path;
mod problem;
mod registry;
mod set;
mod source;
mod ssh;
mod stores;
mod yaml;

pub use dropped::{DropProbe, Dropped, ProbeError, Trial, suspects, written};
pub use edit::ReadError;
pub use live::{LiveRegistry, PinnedKops, check_against_live};
pub use path::{FieldPath, Step};
pub use problem::Problem;
pub use registry::{Change, ChangeKind, Notice, Registry, RegistryError, StoredObject, absent_groups, changes, same_meaning};
pub use set::{Document, Kind, ManifestSet, parse};
pub use source::{Section, SourceFile, split};
pub use ssh::{KeyError, fingerprint};
pub use stores::{Stores, with_config_base};
