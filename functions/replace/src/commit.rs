//! The manifests of a commit into the live state store.

use std::time::Duration;

use jiff::Timestamp;
use kopsline_core::lock::Claim;
use kopsline_core::{Failure, Run, RunId, Stage, StageState};
use kopsline_gitlab::Source;
use kopsline_kops::rehearse;
use kopsline_lambda::{Deadline, clients};
use kopsline_manifests::{ManifestSet, PinnedKops, Problem, SourceFile, check_against_live, parse};
use kopsline_plan::scrub;
use kopsline_state::transaction::{Journal, JournalState};
use kopsline_state::{ClusterState, Condition, RunError};

use crate::lock::Turn;
use crate::restore::note;
use crate::{Answer, Replace};

/// What is kept of the invocation's time for committing and recording.
const RESERVE: Duration = Duration::from_mins(1);

impl Replace {
    /// Takes the lock, checks, and commits. Killed anywhere and run again, it goes on from the journal.
    pub(crate) async fn commit(&self, id: &RunId, execution: &str, deadline: Deadline, now: Timestamp) -> Result<Answer, Failure> {
        let run = self
            .runs
            .change(id, |record| {
                record.execution = Some(execution.to_owned());
                record.enter(Stage::Replace, now);
            })
            .await?;
        let source = self.origin.source(&run.merge.project).await?;
        let abandoned = match self.take_turn(&run, execution, &*source, now).await? {
            Turn::Ours { abandoned } => abandoned,
            Turn::Answer(answer) => return Ok(answer),
        };
        if let Some(abandoned) = abandoned {
            self.restore_abandoned(&run, &abandoned, now).await?;
        }

        let transaction = self.transaction(id);
        let journal = match transaction.journal().await? {
            // A call before this one began to write: only its own intent says what was there before.
            Some(journal) if journal.state != JournalState::Prepared => journal,
            _ => {
                let journal = self.intent(&run, &*source, deadline).await?;
                if journal.is_empty() {
                    return self.done(id, Answer::Unchanged, "the state store has these manifests already".into()).await;
                }
                journal
            }
        };
        self.lock(&run).mark_unapplied(id, true).await?;
        transaction.prepare(journal).await?;
        let committed = transaction.commit().await?;
        let objects = committed.written.len();
        let note = format!("{objects} objects written: {}", committed.written.join(", "));
        self.done(id, Answer::Replaced { objects }, note).await
    }

    async fn done(&self, id: &RunId, answer: Answer, note: String) -> Result<Answer, Failure> {
        let now = Timestamp::now();
        self.runs.change(id, |record| record.leave(Stage::Replace, StageState::Succeeded, note.clone(), now)).await?;
        self.runs.event(id, now, Some(Stage::Replace), "replaced", note).await?;
        Ok(answer)
    }

    /// Puts back what a run left behind that died between its commit and its update.
    async fn restore_abandoned(&self, run: &Run, abandoned: &Claim, now: Timestamp) -> Result<(), Failure> {
        let restored = self.transaction(&abandoned.run).restore().await?;
        self.lock(run).mark_restored(&run.id).await?;
        let message = format!("{} ended without applying its change: {}", abandoned.run, note(&restored));
        self.runs.event(&run.id, now, Some(Stage::Replace), "abandoned-restored", message).await?;
        Ok(())
    }

    /// What is to be written, after every check.
    async fn intent(&self, run: &Run, source: &dyn Source, deadline: Deadline) -> Result<Journal, Failure> {
        let checked = async {
            let live =
                async { ClusterState::read(&*self.stores, &run.cluster.state_store, &run.cluster.name).await.map_err(Failure::from) };
            let (manifests, live) = tokio::try_join!(self.manifests(run, source), live)?;
            let version = run.cluster.kops.version.to_string();
            let pinned = PinnedKops { version: &version, file: kopsline_core::config::FILE_NAME, line: 1 };
            refuse(&check_against_live(&manifests, &live.for_checks(), &pinned))?;
            Ok::<_, Failure>((manifests, live))
        };
        // kops is fetched and verified meanwhile.
        let runner = clients::kops_runner(&self.kops, &run.cluster, deadline.remaining(RESERVE));
        let ((manifests, live), runner) = tokio::try_join!(checked, runner)?;
        let rehearsal = rehearse(&runner, &live, &manifests).await.map_err(|error| {
            let failure = Failure::from(error);
            Failure::new(failure.kind, scrub(&failure.message))
        })?;
        refuse(&rehearsal.problems)?;
        if !rehearsal.notices.is_empty() {
            self.runs.put_document(&run.id, "notices.json", &rehearsal.notices).await?;
        }
        // A new cluster's stores are those that its manifest names.
        let places = kopsline_state::registry::Places::of(&run.cluster.state_store, &run.cluster.name, &manifests.stores())?;
        Ok(Journal::new(run.cluster.name.clone(), &places, rehearsal.changes))
    }

    /// The manifests at the commit, checked; kept in the run's record as they were.
    async fn manifests(&self, run: &Run, source: &dyn Source) -> Result<ManifestSet, Failure> {
        let texts = source.files(&run.cluster.sources, &run.merge.commit).await?;
        let mut files = Vec::new();
        for (path, text) in run.cluster.sources.iter().zip(texts) {
            let key = kopsline_core::keys::document(&run.id, &format!("sources/{path}"));
            let kept = self.runs.documents().store().put(&key, text.clone().into_bytes(), Condition::Unconditional);
            kept.await.map_err(RunError::from)?;
            files.push(SourceFile { path: path.clone(), text });
        }
        parse(&files, run.cluster.name.as_str()).map_err(|problems| bad_input(&problems))
    }
}

fn refuse(problems: &[Problem]) -> Result<(), Failure> {
    if problems.is_empty() { Ok(()) } else { Err(bad_input(problems)) }
}

fn bad_input(problems: &[Problem]) -> Failure {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    Failure::bad_input(lines.join("\n"))
}
