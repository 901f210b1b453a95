//! What a rolling update would replace, for the person who approves it.

use jiff::{SignedDuration, Timestamp};
use kopsline_core::{Failure, FailureKind, Phase, RunId, Stage, StageState};
use kopsline_kube::Kubernetes as _;
use kopsline_roller::StepError;
use kopsline_rolling::{ClusterFacts, Preview, classify, preview};

use crate::{Answer, Approval, Roll, Target, options};

impl Roll {
    /// Compares the cluster's instances with what their groups would launch today. Nothing is touched.
    pub(crate) async fn preview(&self, id: &RunId, phase: Phase, now: Timestamp) -> Result<Answer, Failure> {
        let run = self.runs.read(id).await?;
        self.renew(&run, now, SignedDuration::ZERO).await?;
        self.runs
            .change(id, |record| {
                record.phase = phase;
                record.enter(Stage::RollPreview, now);
            })
            .await?;

        let Some(options) = options(&run, phase)? else {
            self.previewed(id, "no instance group of this phase is selected".to_owned(), now).await?;
            return Ok(Answer::Nothing);
        };
        let target = self.target(&run).await?;
        let facts = facts(&target).await?;
        let mut observed = target.cloud.observe(&target.cluster.name).await?;
        observed.kubernetes = facts;
        let inventory = classify(&observed, &target.cluster).map_err(StepError::from)?;
        let preview = preview(&inventory, &options.selection, options.force).map_err(StepError::from)?;
        self.runs.put_text(id, &phase.roll_document("preview.txt"), preview.table()).await?;
        self.runs.put_document(id, &phase.roll_document("preview.json"), &preview).await?;

        self.previewed(id, note(&preview), now).await?;
        if !preview.required {
            return Ok(Answer::Nothing);
        }
        let approvals = &run.cluster.approvals;
        Ok(Answer::Needed {
            gate: if approvals.roll.asks(false) { Approval::Manual } else { Approval::Automatic },
            approval_timeout_seconds: u64::try_from(approvals.timeout.as_secs()).unwrap_or(0),
        })
    }

    async fn previewed(&self, id: &RunId, note: String, now: Timestamp) -> Result<(), Failure> {
        self.runs.change(id, |record| record.leave(Stage::RollPreview, StageState::Succeeded, note.clone(), now)).await?;
        self.runs.event(id, now, Some(Stage::RollPreview), "roll-previewed", note).await?;
        Ok(())
    }
}

/// What the Kubernetes API says; none for a roll that does without. A new cluster's API may need a while.
async fn facts(target: &Target) -> Result<Option<ClusterFacts>, Failure> {
    let Some(kubernetes) = &target.kubernetes else { return Ok(None) };
    let facts = kubernetes.observe().await.map_err(|error| {
        let message = format!("{error}; without the Kubernetes API a roll cannot drain or validate (rollingUpdate.cloudonly rolls without both)");
        Failure::new(Failure::transient_or(error.is_transient(), FailureKind::Failed), message)
    })?;
    Ok(Some(facts))
}

fn note(preview: &Preview) -> String {
    let groups = preview.rows.iter().filter(|row| !row.replace.is_empty()).count();
    let instances: usize = preview.rows.iter().map(|row| row.replace.len()).sum();
    if preview.required { format!("{instances} instances of {groups} groups to replace") } else { "no instance needs an update".to_owned() }
}
