//! The state store as it was before a run.

use jiff::Timestamp;
use kopsline_core::lock::WORKING_LEASE;
use kopsline_core::{Failure, RunId, Stage, StageState};
use kopsline_state::transaction::Restored;

use crate::{Answer, Replace};

impl Replace {
    /// Puts back what a run committed, wherever nobody else changed it since. A run whose update was begun is left alone:
    /// then the cloud follows the new state store, and only a new merge leads back.
    pub(crate) async fn restore(&self, id: &RunId, reason: &str, now: Timestamp) -> Result<Answer, Failure> {
        let run = self.runs.read(id).await?;
        if run.update_begun || self.transaction(id).journal().await?.is_none() {
            return Ok(Answer::Restored { objects: 0 });
        }
        // Whoever took the lock over from us restored our change, or found that there was none.
        let lease = now.saturating_add(WORKING_LEASE).unwrap_or(Timestamp::MAX);
        self.lock(&run).renew(id, lease).await?;
        self.runs.change(id, |record| record.enter(Stage::Restore, now)).await?;
        let restored = self.transaction(id).restore().await?;
        self.lock(&run).mark_unapplied(id, false).await?;
        let note = note(&restored);
        self.runs.change(id, |record| record.leave(Stage::Restore, StageState::Succeeded, note.clone(), now)).await?;
        self.runs.event(id, now, Some(Stage::Restore), "restored", format!("{note} ({reason})")).await?;
        Ok(Answer::Restored { objects: restored.restored.len() })
    }
}

pub(crate) fn note(restored: &Restored) -> String {
    let mut note = format!("{} objects of the state store are as before", restored.restored.len());
    if !restored.conflicts.is_empty() {
        note.push_str("; changed by somebody else meanwhile and left so: ");
        note.push_str(&restored.conflicts.join(", "));
    }
    note
}
