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

/// An error that knows its class, so that `?` turns it into a [`Failure`].
pub trait Classify: std::error::Error {
    /// Its class.
    fn kind(&self) -> FailureKind;
}

impl<E: Classify> From<E> for Failure {
    /// The error and its causes on one line.
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Errors that show their cause themselves are not told twice.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self { kind: error.kind(), message }
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

    /// The class for an error of an adapter: worth a retry or not.
    pub fn transient_or(transient: bool, otherwise: FailureKind) -> FailureKind {
        if transient { FailureKind::Transient } else { otherwise }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the store failed")]
    struct Outer(#[source] std::io::Error);

    impl Classify for Outer {
        fn kind(&self) -> FailureKind {
            Failure::transient_or(true, FailureKind::Failed)
        }
    }

    #[test]
    fn causes_are_told_once() {
        let failure = Failure::from(Outer(std::io::Error::other("no route")));
        assert_eq!((failure.kind.error_name(), failure.message.as_str()), ("Kopsline.Transient", "the store failed: no route"));
    }
}
