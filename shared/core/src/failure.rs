//! Why a run ends, in the words that Step Functions routes by.

use serde::{Deserialize, Serialize};

/// The class of a failure. Its [`error_name`](Self::error_name) is what a state machine's `Retry` and `Catch` match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Something outside did not answer or was throttled; trying again may help.
    Transient,
    /// Manifests, configuration or an event are wrong; the author must change them.
    BadInput,
    /// Somebody else changed what this run was about to change; nothing was written.
    Conflict,
    /// kops itself refused or failed; its own words are in the cause.
    KopsFailed,
    /// The cluster's lock is no longer this run's.
    LockLost,
    /// Anything else.
    Failed,
}

impl FailureKind {
    /// The error's name in Step Functions.
    pub fn error_name(self) -> &'static str {
        match self {
            Self::Transient => "Kopsline.Transient",
            Self::BadInput => "Kopsline.BadInput",
            Self::Conflict => "Kopsline.Conflict",
            Self::KopsFailed => "Kopsline.KopsFailed",
            Self::LockLost => "Kopsline.LockLost",
            Self::Failed => "Kopsline.Failed",
        }
    }
}

/// A failure as a run records it and as a function answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Its class.
    pub kind: FailureKind,
    /// What happened, what was tried and what helps; free of secrets.
    pub message: String,
}

impl Failure {
    /// A failure of a class.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Shortcut for [`FailureKind::BadInput`].
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::new(FailureKind::BadInput, message)
    }

    /// Shortcut for [`FailureKind::LockLost`].
    pub fn lock_lost(message: impl Into<String>) -> Self {
        Self::new(FailureKind::LockLost, message)
    }
}
