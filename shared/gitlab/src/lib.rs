//! GitLab: deliveries and their verification, sources at a commit, commit statuses.
//!
//! [`delivery`] and [`event`] are pure: they are given headers, bytes and the time. [`Source`] is where manifests come from,
//! read at one exact commit: from GitLab's REST API ([`GitLabSource`]) or from a git repository on disk
//! ([`GitRepository`]); both answer the same questions alike, which `tests/sources/conformance.rs` checks.

pub mod delivery;
pub mod event;

mod client;
mod gitlab_source;
mod repository;
mod source;

pub use client::{CommitState, CommitStatus, GitLab, GitLabError, Retry};
pub use delivery::{Authenticated, Mode, Rejected, Verifier};
pub use event::{BadEvent, Event, Project, Push};
pub use gitlab_source::GitLabSource;
pub use repository::GitRepository;
pub use source::{Ancestry, Changes, CommitInfo, MAX_FILE_BYTES, Source, SourceError};
