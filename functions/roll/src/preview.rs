//! What a rolling update would replace, for the person who approves it.

use jiff::{SignedDuration, Timestamp};
use kopsline_core::{Failure, Phase, Run, RunId, Stage, StageState};
use kopsline_plan::PlanDocument;
use kopsline_roller::StepError;
use kopsline_rolling::{Forecast, Preview, forecast, preview};

use crate::{Answer, Approval, Roll, history, options};

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
        let (inventory, facts) = target.look().await?;
        let preview = preview(&inventory, &options.selection, options.force).map_err(StepError::from)?;
        self.runs.put_text(id, &phase.roll_document("preview.txt"), preview.table()).await?;
        self.runs.put_document(id, &phase.roll_document("preview.json"), &preview).await?;
        if preview.required {
            let history = history::read(&self.runs, &run).await?;
            let forecast = forecast(&inventory, facts.as_ref(), &options, Some(&preview), &history).map_err(StepError::from)?;
            self.keep(id, &phase.roll_document("forecast"), &forecast).await?;
        }

        self.previewed(id, note(&preview), Timestamp::now()).await?;
        if !preview.required {
            return Ok(Answer::Nothing);
        }
        let approvals = &run.cluster.approvals;
        Ok(Answer::Needed {
            gate: if approvals.roll.asks(false) { Approval::Manual } else { Approval::Automatic },
            approval_timeout_seconds: u64::try_from(approvals.timeout.as_secs()).unwrap_or(0),
        })
    }

    /// What the roll will be like once the plan is applied. A plan can be approved without it, so it touches no stage.
    pub(crate) async fn forecast(&self, id: &RunId) -> Result<Answer, Failure> {
        let run = self.runs.read(id).await?;
        if let Err(failure) = self.foresee(&run).await {
            let message = format!("what the rolling update will be like cannot be said now: {failure}");
            self.runs.event(id, Timestamp::now(), Some(Stage::Plan), "no-forecast", message).await?;
        }
        Ok(Answer::Forecast)
    }

    async fn foresee(&self, run: &Run) -> Result<(), Failure> {
        let id = &run.id;
        let plan: Option<PlanDocument> = self.runs.document(id, "plan.json").await?;
        let changed = plan.map(|plan| plan.changed_groups).unwrap_or_default();
        let Some(options) = options(run, Phase::All)? else { return Ok(()) };
        let target = self.target(run).await?;
        let (inventory, facts) = target.look().await?;
        let inventory = inventory.expecting(&changed);
        let history = history::read(&self.runs, run).await?;
        let forecast = forecast(&inventory, facts.as_ref(), &options, None, &history).map_err(StepError::from)?;
        if forecast.groups.is_empty() {
            return Ok(());
        }
        self.keep(id, "forecast", &forecast).await
    }

    /// Keeps a forecast for people and for programs.
    async fn keep(&self, id: &RunId, name: &str, forecast: &Forecast) -> Result<(), Failure> {
        self.runs.put_text(id, &format!("{name}.txt"), forecast.to_string()).await?;
        Ok(self.runs.put_document(id, &format!("{name}.json"), forecast).await?)
    }

    async fn previewed(&self, id: &RunId, note: String, now: Timestamp) -> Result<(), Failure> {
        self.runs.change(id, |record| record.leave(Stage::RollPreview, StageState::Succeeded, note.clone(), now)).await?;
        self.runs.event(id, now, Some(Stage::RollPreview), "roll-previewed", note).await?;
        Ok(())
    }
}

fn note(preview: &Preview) -> String {
    let groups = preview.rows.iter().filter(|row| !row.replace.is_empty()).count();
    let instances: usize = preview.rows.iter().map(|row| row.replace.len()).sum();
    if preview.required { format!("{instances} instances of {groups} groups to replace") } else { "no instance needs an update".to_owned() }
}
