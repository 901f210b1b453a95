//! What can go wrong with a call to the Kubernetes API.

use std::error::Error as StdError;
use std::sync::Arc;

use kopsline_core::{Classify, Failure, FailureKind};
use kopsline_rolling::{CommandError, Refusal};
use kube::core::Status;

use crate::ConnectError;

/// How much of an answer that is not Kubernetes' own is told.
const LONGEST_MESSAGE: usize = 500;
/// The cause by which an eviction says that a budget refused it (Kubernetes 1.36 `policy/v1.DisruptionBudgetCause`).
const BUDGET_CAUSE: &str = "DisruptionBudget";
/// How an eviction says that it cannot tell which of several budgets counts
/// (Kubernetes 1.36 `pkg/registry/core/pod/storage/eviction.go`).
const SEVERAL_BUDGETS: &str = "more than one PodDisruptionBudget";
/// A namespace that is being deleted takes no evictions; its pods go with it.
const NAMESPACE_TERMINATING: &str = "NamespaceTerminating";

/// A call to the Kubernetes API that failed, after the retries of [`crate::KubeClient`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum KubeError {
    /// A `PodDisruptionBudget` does not allow an eviction now.
    #[error("{operation} of {target} is not allowed now: {message}")]
    Blocked {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        target: String,
        /// What the API says about the budget.
        message: String,
    },
    /// The API answered with an error.
    #[error("{operation} of {target} was refused, attempt {attempts}: {status} {reason}: {message}")]
    Refused {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        target: String,
        /// How often it was tried.
        attempts: u32,
        /// The HTTP status.
        status: u16,
        /// The API's word for it, such as `Forbidden`.
        reason: String,
        /// The API's message.
        message: String,
        /// Whether the same call may succeed later.
        transient: bool,
    },
    /// There was no answer.
    #[error("{operation} of {target} was not answered in {attempts} attempts: {reason}")]
    Unanswered {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        target: String,
        /// How often it was tried.
        attempts: u32,
        /// What stood in the way.
        reason: String,
    },
    /// The answer is not what the API's documentation promises.
    #[error("{operation} of {target} was answered with something that cannot be read: {reason}")]
    Unreadable {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        target: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There are no credentials for the API, or it cannot be connected to with them.
    #[error("{operation} of {target}: there is no way into the Kubernetes API")]
    Connect {
        /// What was asked for.
        operation: &'static str,
        /// What it was asked for.
        target: String,
        /// Why.
        #[source]
        source: Arc<ConnectError>,
    },
}

impl KubeError {
    /// What may come of it.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Blocked { .. } => Refusal::Blocked,
            _ if self.is_transient() => Refusal::Transient,
            _ => Refusal::Permanent,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Blocked { .. } | Self::Unanswered { .. } => true,
            Self::Refused { transient, .. } => *transient,
            Self::Unreadable { .. } => false,
            Self::Connect { source, .. } => source.is_transient(),
        }
    }
}

impl Classify for KubeError {
    fn kind(&self) -> FailureKind {
        Failure::transient_or(self.is_transient(), FailureKind::Failed)
    }
}

impl From<&KubeError> for CommandError {
    fn from(error: &KubeError) -> Self {
        let message = match error {
            KubeError::Connect { source, .. } => format!("{error}: {}", innermost(source.as_ref())),
            _ => error.to_string(),
        };
        Self { kind: error.refusal(), message }
    }
}

/// Why one attempt of a call failed.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The API's answer.
    Status(Box<Status>),
    /// No answer.
    Silence(String),
    /// No way in.
    Connect(ConnectError),
}

impl Fault {
    pub(crate) fn of(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Status(status),
            other => Self::Silence(innermost(&other)),
        }
    }

    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Status(status) => status.code,
            Self::Silence(_) | Self::Connect(_) => 0,
        }
    }

    /// Whether the same call may succeed in a moment. A budget's refusal stands for longer than a moment.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Status(status) => !is_blocked(status) && passes(status),
            Self::Silence(_) => true,
            Self::Connect(error) => error.is_transient(),
        }
    }

    /// How long the API asks to wait, in seconds; 0 where it does not say.
    pub(crate) fn retry_after_seconds(&self) -> u32 {
        match self {
            Self::Status(status) => status.details.as_ref().map_or(0, |details| details.retry_after_seconds),
            Self::Silence(_) | Self::Connect(_) => 0,
        }
    }

    pub(crate) fn into_error(self, operation: &'static str, target: &str, attempts: u32) -> KubeError {
        let target = target.to_owned();
        match self {
            Self::Status(status) if is_blocked(&status) => KubeError::Blocked { operation, target, message: budget_words(&status) },
            Self::Status(status) => KubeError::Refused {
                operation,
                target,
                attempts,
                status: status.code,
                transient: passes(&status),
                message: shortened(&status.message),
                reason: status.reason,
            },
            Self::Silence(reason) => KubeError::Unanswered { operation, target, attempts, reason },
            Self::Connect(source) => KubeError::Connect { operation, target, source: Arc::new(source) },
        }
    }
}

/// The API's own limits and outages, an object that changed meanwhile, a namespace that is going.
fn passes(status: &Status) -> bool {
    matches!(status.code, 408 | 409 | 425 | 429 | 500..) || has_cause(status, NAMESPACE_TERMINATING)
}

fn is_blocked(status: &Status) -> bool {
    (status.code == 429 && has_cause(status, BUDGET_CAUSE)) || (status.code == 500 && status.message.contains(SEVERAL_BUDGETS))
}

fn has_cause(status: &Status, reason: &str) -> bool {
    status.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == reason)
}

fn budget_words(status: &Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes).filter(|cause| cause.reason == BUDGET_CAUSE);
    let words: Vec<_> = causes.map(|cause| cause.message.as_str()).filter(|message| !message.is_empty()).collect();
    if words.is_empty() { shortened(&status.message) } else { shortened(&words.join("; ")) }
}

/// What a proxy between may answer can be a whole page.
fn shortened(message: &str) -> String {
    match message.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}...", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}

/// The cause at the bottom says most ("connection refused"); the levels above say "service error".
pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> KubeError {
        Fault::Status(Box::new(serde_json::from_str(json).unwrap())).into_error("evicting", "pod a/b", 2)
    }

    #[test]
    fn refusals_are_what_they_are() {
        // As kube-apiserver 1.36 answers.
        for (json, refusal, text) in [
            (
                r#"{"code": 429, "reason": "TooManyRequests", "message": "Cannot evict pod as it would violate the pod's disruption budget.",
                    "details": {"causes": [{"reason": "DisruptionBudget", "message": "The disruption budget web needs 5 healthy pods and has 5 currently"}]}}"#,
                Refusal::Blocked,
                "evicting of pod a/b is not allowed now: The disruption budget web needs 5 healthy pods and has 5 currently",
            ),
            (
                r#"{"code": 500, "message": "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."}"#,
                Refusal::Blocked,
                "evicting of pod a/b is not allowed now: This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ),
            (
                r#"{"code": 429, "reason": "TooManyRequests", "message": "too many requests, please try again later", "details": {"retryAfterSeconds": 1}}"#,
                Refusal::Transient,
                "evicting of pod a/b was refused, attempt 2: 429 TooManyRequests: too many requests, please try again later",
            ),
            (
                r#"{"code": 403, "reason": "Forbidden", "message": "no", "details": {"causes": [{"reason": "NamespaceTerminating"}]}}"#,
                Refusal::Transient,
                "evicting of pod a/b was refused, attempt 2: 403 Forbidden: no",
            ),
            (
                r#"{"code": 403, "reason": "Forbidden", "message": "no"}"#,
                Refusal::Permanent,
                "evicting of pod a/b was refused, attempt 2: 403 Forbidden: no",
            ),
            (
                r#"{"code": 401, "reason": "Unauthorized"}"#,
                Refusal::Permanent,
                "evicting of pod a/b was refused, attempt 2: 401 Unauthorized: ",
            ),
            (r#"{"code": 503, "message": "etcd"}"#, Refusal::Transient, "evicting of pod a/b was refused, attempt 2: 503 : etcd"),
        ] {
            let error = error(json);
            assert_eq!((error.refusal(), error.to_string().as_str()), (refusal, text));
        }
    }

    #[test]
    fn pages_of_proxies_are_cut() {
        let error = error(&format!(r#"{{"code": 502, "message": "{}"}}"#, "ä".repeat(10_000)));
        assert!(error.to_string().chars().count() < 600 && error.is_transient());
    }
}
