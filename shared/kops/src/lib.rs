//! The pinned kops binary: fetched, verified, cached, run in isolation.
//!
//! kOps itself is the engine for `replace` and `update`; this crate makes it safe to use from a function.
//!
//! 1. [`KopsBinaries`] brings the pinned version and never lets one with a wrong checksum run.
//! 2. [`Runner`] runs it with an environment of its own, bounded in time and output.
//! 3. [`Scratch`] is a copy of a cluster's registry in a folder, where kops may write.
//! 4. [`rehearse`] replaces the manifests there and says what would be written; [`dry_run`] shows what an update would do
//!    to the live cluster. Neither writes to the live store or to the cloud.

mod binaries;
mod environment;
mod operations;
mod probe;
mod rehearsal;
mod runner;
mod scratch;

pub use binaries::{Arch, BinaryError, Kops, KopsBinaries, RELEASES, Source, SourceError};
pub use environment::Environment;
pub use operations::{UpdateScope, VersionError};
pub use rehearsal::{EngineError, Rehearsal, dry_run, not_previewed, rehearse};
pub use runner::{Channel, KopsFailed, Output, RunError, Runner, Timeouts};
pub use scratch::{Scratch, ScratchError};
