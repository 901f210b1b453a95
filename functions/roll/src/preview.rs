//! What a rolling update would replace, for the person who approves it.

use jiff::{SignedDuration, Timestamp};
use kopsline_cloud::StepError;
use kopsline_core::{Failure, RunId, Stage, StageState};
use kopsline_rolling::{Preview, classify, preview};

use crate::{Answer, Approval, Roll, options};

impl Roll {
    /// Compares the cluster's instances with what their groups would launch today. Nothing is touched.
    pub(crate) async fn preview(&self, id: &RunId, now: Timestamp) -> Result<Answer, Failure> {
        let run = self.runs.read(id).await?;
        self.renew(&run, now, SignedDuration::ZERO).await?;
        self.runs.change(id, |record| record.enter(Stage::RollPreview, now)).await?;

        let options = options(&run)?;
        let cluster = self.cluster(&run).await?;
        let observed = (self.cloud)(&run.cluster.region).observe(&cluster.name).await?;
        let inventory = classify(&observed, &cluster).map_err(StepError::from)?;
        let preview = preview(&inventory, &options.selection, options.force).map_err(StepError::from)?;
        self.runs.put_text(id, "roll/preview.txt", preview.table()).await?;
        self.runs.put_document(id, "roll/preview.json", &preview).await?;

        let (note, now) = (note(&preview), Timestamp::now());
        self.runs.change(id, |record| record.leave(Stage::RollPreview, StageState::Succeeded, note.clone(), now)).await?;
        self.runs.event(id, now, Some(Stage::RollPreview), "roll-previewed", note).await?;
        if !preview.required {
            return Ok(Answer::Nothing);
        }
        let approvals = &run.cluster.approvals;
        Ok(Answer::Needed {
            gate: if approvals.roll.asks(false) { Approval::Manual } else { Approval::Automatic },
            approval_timeout_seconds: u64::try_from(approvals.timeout.as_secs()).unwrap_or(0),
        })
    }
}

fn note(preview: &Preview) -> String {
    let groups = preview.rows.iter().filter(|row| !row.replace.is_empty()).count();
    let instances: usize = preview.rows.iter().map(|row| row.replace.len()).sum();
    if preview.required { format!("{instances} instances of {groups} groups to replace") } else { "no instance needs an update".to_owned() }
}
