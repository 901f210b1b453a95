//! What can go wrong with a call to AWS.

use std::error::Error as StdError;

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use kopsline_core::{Classify, Failure, FailureKind};

/// A call to AWS that failed, after the retries of [`crate::AwsCloud`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum CloudError {
    /// The service answered with an error.
    #[error("{operation} of {target} was refused: {code}: {message}")]
    Refused {
        /// The API operation.
        operation: &'static str,
        /// What it was called for.
        target: String,
        /// AWS' error code.
        code: String,
        /// AWS' message.
        message: String,
        /// Whether the same call may succeed later.
        transient: bool,
    },
    /// There was no answer, or none that could be read.
    #[error("{operation} of {target} was not answered in {attempts} attempts: {reason}")]
    Unanswered {
        /// The API operation.
        operation: &'static str,
        /// What it was called for.
        target: String,
        /// How often it may have been tried.
        attempts: u32,
        /// What stood in the way.
        reason: String,
    },
}

impl CloudError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { transient, .. } => *transient,
            Self::Unanswered { .. } => true,
        }
    }

    pub(crate) fn has_code(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted)
    }

    /// Auto Scaling has one code for all that it finds wrong; only its message tells what.
    pub(crate) fn is_validation_of(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { code, message, .. } if code == "ValidationError" && message.contains(wanted))
    }

    pub(crate) fn new<E>(operation: &'static str, target: &str, attempts: u32, error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + StdError + 'static,
    {
        let target = target.to_owned();
        let Some(service) = error.as_service_error() else {
            return Self::Unanswered { operation, target, attempts, reason: innermost(error) };
        };
        let code = service.code().unwrap_or("Unknown").to_owned();
        let status = error.raw_response().map_or(0, |response| response.status().as_u16());
        let transient = status >= 500 || TRANSIENT_CODES.contains(&code.as_str());
        Self::Refused { operation, target, message: service.message().unwrap_or("no message").to_owned(), code, transient }
    }
}

impl Classify for CloudError {
    fn kind(&self) -> FailureKind {
        Failure::transient_or(self.is_transient(), FailureKind::Failed)
    }
}

/// Codes of EC2 and Auto Scaling that pass by themselves ("Error codes for the Amazon EC2 API", "Common errors").
const TRANSIENT_CODES: [&str; 11] = [
    "InternalError",
    "InternalFailure",
    "InsufficientInstanceCapacity",
    "RequestLimitExceeded",
    "RequestThrottled",
    "ResourceContention",
    "ScalingActivityInProgress",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "Unavailable",
];

/// The cause at the bottom says most ("connection refused"); the SDK's own levels say "dispatch failure".
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
