//! The roll's checkpoint in the run's record.

use async_trait::async_trait;
use kopsline_core::{Phase, RunId, keys};
use kopsline_roller::{CheckpointError, Checkpoints, Saved};
use kopsline_rolling::RollState;
use kopsline_state::{Condition, ETag, Runs, StoreError, WriteError};

/// `checkpoint.json` of a phase of a run; its version is the object's `ETag`.
pub(crate) struct RecordCheckpoints<'a> {
    runs: &'a Runs,
    key: String,
}

impl<'a> RecordCheckpoints<'a> {
    pub(crate) fn new(runs: &'a Runs, run: &RunId, phase: Phase) -> Self {
        Self { runs, key: keys::document(run, &phase.roll_document("checkpoint.json")) }
    }
}

#[async_trait]
impl Checkpoints for RecordCheckpoints<'_> {
    async fn load(&self) -> Result<Option<Saved>, CheckpointError> {
        let Some(object) = self.runs.documents().store().get(&self.key).await.map_err(failed)? else { return Ok(None) };
        Ok(Some(Saved { state: RollState::from_json(&object.bytes)?, version: object.etag.0 }))
    }

    async fn save(&self, state: &RollState, expected: Option<&str>) -> Result<String, CheckpointError> {
        let condition = expected.map_or(Condition::IfAbsent, |version| Condition::IfMatch(ETag(version.to_owned())));
        match self.runs.documents().store().put(&self.key, state.to_json()?, condition).await {
            Ok(etag) => Ok(etag.0),
            Err(WriteError::Precondition { .. }) => Err(CheckpointError::Conflict),
            Err(WriteError::Store(error)) => Err(failed(error)),
        }
    }
}

fn failed(error: StoreError) -> CheckpointError {
    CheckpointError::Store { transient: error.is_transient(), source: Box::new(error) }
}
