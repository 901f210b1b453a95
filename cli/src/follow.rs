//! Following a run: what changed in its record since the last look.

use jiff::{SignedDuration, Timestamp};
use kopsline_core::{Run, RunId, RunState, Stage, StageRecord, StageState};
use kopsline_state::Runs;

use crate::output::{self, Paint, Style};

/// The width of the column of times, which lines without a time leave empty.
pub(crate) const GUTTER: usize = 12;

/// Something that happened in a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// A stage began.
    Entered {
        /// Which.
        stage: Stage,
        /// When; unknown for a stage that was entered again, whose record keeps its first start.
        at: Option<Timestamp>,
    },
    /// A stage tells how far it is or what it waits for.
    Note {
        /// Which.
        stage: Stage,
        /// Its words.
        note: String,
    },
    /// A stage ended.
    Left {
        /// Its record.
        record: StageRecord,
    },
    /// The run ended.
    Ended {
        /// How.
        state: RunState,
        /// From the delivery to the end.
        took: Option<SignedDuration>,
    },
}

/// What happened between two looks at a run, in order.
pub(crate) fn changes(before: Option<&Run>, after: &Run) -> Vec<Change> {
    let mut changes = Vec::new();
    for record in &after.stages {
        let old = before.and_then(|run| run.stage(record.stage));
        // A stage that polls (a busy lock, a step of a roll) is entered again and again; only one that had ended begins anew.
        let anew = old.is_some_and(|old| old.state.is_final() && record.entered > old.entered);
        let entered = old.is_none() || anew;
        if entered {
            changes.push(Change::Entered { stage: record.stage, at: (!anew && record.entered == 1).then_some(record.started_at) });
        }
        if record.state.is_final() {
            if entered || old.is_some_and(|old| !old.state.is_final()) {
                changes.push(Change::Left { record: record.clone() });
            }
        } else if !record.note.is_empty() && old.is_none_or(|old| old.note != record.note) {
            changes.push(Change::Note { stage: record.stage, note: record.note.clone() });
        }
    }
    if after.state.is_final() && !before.is_some_and(|run| run.state.is_final()) {
        changes.push(Change::Ended { state: after.state, took: after.ended_at.map(|ended| ended.duration_since(after.received_at)) });
    }
    changes
}

/// A change as a line, its time counted from the run's delivery.
pub(crate) fn line(run: &Run, change: &Change, now: Timestamp, style: Style) -> String {
    let at = |at: Timestamp| {
        style.paint(Paint::Dim, &format!("{:>GUTTER$}", format!("+{}", output::duration(at.duration_since(run.received_at)))))
    };
    match change {
        Change::Entered { stage, at: started } => format!("{}  {:<14}  started", at(started.unwrap_or(now)), stage.as_str()),
        Change::Note { stage, note } => format!("{}  {:<14}  {}", at(now), stage.as_str(), output::one_line(note)),
        Change::Left { record } => {
            let ended = record.ended_at.unwrap_or(now);
            let took = output::duration(ended.duration_since(record.started_at));
            let state = style.paint(Paint::of_stage(record.state), record.state.as_str());
            let note = if record.note.is_empty() { String::new() } else { format!(": {}", output::one_line(&record.note)) };
            let took = if record.state == StageState::Skipped { String::new() } else { format!(" in {took}") };
            format!("{}  {:<14}  {state}{took}{note}", at(ended), record.stage.as_str())
        }
        Change::Ended { state, took } => {
            let word = style.paint(Paint::of_run(*state), state.as_str());
            let took = took.map_or_else(String::new, |took| format!(" after {}", output::duration(took)));
            format!("{}  {:<14}  {word}{took}", at(run.ended_at.unwrap_or(now)), "run")
        }
    }
}

/// What a run waits for now, in one line; empty when it is over.
pub(crate) fn waits_for(run: &Run) -> String {
    if run.state.is_final() {
        return String::new();
    }
    let Some(current) = run.current() else {
        return if run.state == RunState::Queued { "its execution to start".to_owned() } else { String::new() };
    };
    let asks = matches!(current.stage, Stage::ApproveUpdate | Stage::ApproveRoll);
    match run.approvals.last() {
        Some(approval) if asks && current.state == StageState::Waiting => format!("kopsline approve {approval}"),
        _ => output::one_line(&current.note),
    }
}

/// A run and the last look at it.
#[derive(Debug)]
pub(crate) struct Follower {
    runs: Runs,
    id: RunId,
    last: Option<Run>,
}

impl Follower {
    /// Follows a run from its beginning.
    pub(crate) fn new(runs: Runs, id: RunId) -> Self {
        Self { runs, id, last: None }
    }

    /// Looks again: the run as it is now, and what happened since the last look.
    pub(crate) async fn look(&mut self) -> anyhow::Result<(Run, Vec<Change>)> {
        let run = self.runs.read(&self.id).await?;
        let changes = changes(self.last.as_ref(), &run);
        self.last = Some(run.clone());
        Ok((run, changes))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use kopsline_core::{ApprovalId, Gate};

    use super::*;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + second).unwrap()
    }

    pub(crate) fn run() -> Run {
        serde_json::from_value(serde_json::json!({
            "id": "demo-k8s-example-com-111111111111-0a1b2c3d", "delivery": "d", "received_at": at(0), "state": "queued",
            "cluster": {"name": "demo.k8s.example.com", "stateStore": "s3://state", "region": "us-east-1", "kops": {"version": "1.36.2"}, "sources": ["cluster.yaml"]},
            "merge": {"project_id": 15, "project": "platform/clusters", "branch": "main", "commit": "1".repeat(40), "before": "0".repeat(40),
                      "title": "Merge branch 'batch-nodes'", "user": "jsmith", "url": "https://gitlab.example.com/platform/clusters/-/commit/1"},
        }))
        .unwrap()
    }

    fn lines(before: Option<&Run>, after: &Run) -> Vec<String> {
        changes(before, after).iter().map(|change| line(after, change, at(55), Style::plain())).collect()
    }

    #[test]
    fn a_run_is_told_once_in_order() {
        let queued = run();
        assert!(changes(None, &queued).is_empty());
        let mut busy = queued.clone();
        busy.enter(Stage::Replace, at(1));
        busy.leave(Stage::Replace, StageState::Waiting, "the lock is held by run x", at(2));
        assert_eq!(
            lines(Some(&queued), &busy),
            ["      +1.0 s  replace         started", "       +55 s  replace         the lock is held by run x"]
        );
        // The lock is still busy: entered again, nothing new to tell.
        let mut again = busy.clone();
        again.enter(Stage::Replace, at(5));
        again.leave(Stage::Replace, StageState::Waiting, "the lock is held by run x", at(5));
        assert!(changes(Some(&busy), &again).is_empty());
        let mut done = again.clone();
        done.enter(Stage::Replace, at(8));
        done.leave(Stage::Replace, StageState::Succeeded, "7 objects", at(9));
        done.enter(Stage::Plan, at(10));
        done.leave(Stage::Plan, StageState::Succeeded, "12 to create", at(15));
        assert_eq!(
            lines(Some(&again), &done),
            [
                "      +9.0 s  replace         succeeded in 8.0 s: 7 objects",
                "       +10 s  plan            started",
                "       +15 s  plan            succeeded in 5.0 s: 12 to create",
            ]
        );
        let mut replanned = done.clone();
        replanned.enter(Stage::Plan, at(20));
        assert_eq!(lines(Some(&done), &replanned), ["       +55 s  plan            started"]);
        replanned.end(RunState::Failed, None, at(30));
        assert_eq!(
            lines(Some(&done), &replanned),
            [
                "       +55 s  plan            started",
                "       +30 s  plan            failed in 20 s",
                "       +30 s  run             failed after 30 s"
            ]
        );
        assert!(changes(Some(&replanned), &replanned).is_empty());
    }

    #[test]
    fn a_skipped_stage_takes_no_time() {
        let mut run = run();
        run.leave(Stage::ApproveRoll, StageState::Skipped, "nothing to roll", at(3));
        assert_eq!(lines(None, &run), ["      +3.0 s  approve roll    started", "      +3.0 s  approve roll    skipped: nothing to roll"]);
    }

    #[test]
    fn a_run_says_what_it_waits_for() {
        let mut run = run();
        assert_eq!(waits_for(&run), "its execution to start");
        run.enter(Stage::Replace, at(1));
        run.leave(Stage::Replace, StageState::Waiting, "the lock is held by x", at(1));
        assert_eq!(waits_for(&run), "the lock is held by x");
        run.leave(Stage::Replace, StageState::Succeeded, "", at(2));
        run.enter(Stage::ApproveUpdate, at(3));
        run.leave(Stage::ApproveUpdate, StageState::Waiting, "waits for a person", at(3));
        run.approvals.push(ApprovalId::of(&run.id, Gate::Update, 1));
        assert_eq!(waits_for(&run), "kopsline approve demo-k8s-example-com-111111111111-0a1b2c3d.update.1");
        run.end(RunState::Expired, None, at(9));
        assert_eq!(waits_for(&run), "");
    }
}
