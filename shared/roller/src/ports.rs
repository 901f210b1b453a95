//! What a roll works with besides the cloud and the Kubernetes API.

use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use kopsline_rolling::{Control, RollEvent, RollState, StateError};

/// A stored state and the version under which it was stored (an S3 `ETag`, for example).
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// The state.
    pub state: RollState,
    /// Its version, to be given back when it is replaced.
    pub version: String,
}

/// Why a checkpoint was not loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Someone else has stored another state since.
    #[error("the checkpoint was changed by someone else")]
    Conflict,
    /// The stored state cannot be used.
    #[error("the checkpoint cannot be used")]
    State(#[from] StateError),
    /// The store failed, after its own retries.
    #[error("the checkpoint could not be read or written")]
    Store {
        /// Whether it may work later.
        transient: bool,
        /// What the store said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where the state of one rolling update is kept.
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// The newest state, if the roll has begun.
    async fn load(&self) -> Result<Option<Saved>, CheckpointError>;

    /// Replaces the state of version `expected` (`None`: there is none yet) and returns the new version;
    /// [`CheckpointError::Conflict`] if the stored version is another.
    async fn save(&self, state: &RollState, expected: Option<&str>) -> Result<String, CheckpointError>;
}

/// What people said could not be read, or what happened could not be told.
#[derive(Debug, thiserror::Error)]
#[error("the roll's record could not be read or written")]
pub struct DeskError {
    /// Whether it may work later.
    pub transient: bool,
    /// What the store said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Where people speak to a roll, and where it tells them what happened.
#[async_trait]
pub trait Desk: Send + Sync {
    /// What people want at `now`.
    async fn control(&self, now: Timestamp) -> Result<Control, DeskError>;

    /// Tells what happened. Called after the state is stored; after a kill in between, what happened is not told twice but
    /// may not be told at all: the state itself has the times that matter.
    async fn tell(&self, events: &[RollEvent]) -> Result<(), DeskError>;
}

/// The time.
#[async_trait]
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
    /// Waits.
    async fn sleep(&self, duration: SignedDuration);
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[async_trait]
impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    async fn sleep(&self, duration: SignedDuration) {
        tokio::time::sleep(Duration::try_from(duration).unwrap_or_default()).await;
    }
}
