//! The cluster's lock in the run bucket, so that no run of the pipeline works beside a shell.

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use kopsline_core::ClusterConfig;
use kopsline_core::lock::ByHand;
use kopsline_state::{HeldBy, LockFile, UpdateError};

use super::STEP;
use crate::context::Context;

/// What is left of the hold when a step has taken its longest.
const SPARE: SignedDuration = SignedDuration::from_mins(5);

/// The lock, as far as there is one: without a run bucket nobody can tell what others do.
pub(crate) struct Hold {
    lock: Option<LockFile>,
    who: String,
    cluster: String,
}

impl Hold {
    /// Takes the lock; a run that holds it must not be worked against.
    pub(crate) async fn take(context: &Context, config: &ClusterConfig) -> anyhow::Result<Self> {
        let lock = context.runs().ok().map(|runs| LockFile::new(runs.documents().clone(), config));
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let user = std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned());
        let hold = Self { lock, who: format!("{user} at a shell on {}", machine.trim()), cluster: config.name.to_string() };
        hold.renew().await?;
        Ok(hold)
    }

    /// Keeps it for another step.
    pub(crate) async fn renew(&self) -> anyhow::Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        let now = Timestamp::now();
        let until = now.saturating_add(STEP.saturating_add(SPARE))?;
        match lock.take_by_hand(&ByHand { who: self.who.clone(), until }, now).await {
            Err(UpdateError::Refused(HeldBy(holder))) => bail!(
                "{} is held by {holder}: wait for it; of a run, `kopsline status {holder}` tells, and `kopsline abort {holder}` ends its roll",
                self.cluster
            ),
            result => Ok(result?),
        }
    }

    /// Gives it up.
    pub(crate) async fn release(&self) -> anyhow::Result<()> {
        match &self.lock {
            Some(lock) => Ok(lock.release_by_hand(&self.who).await?),
            None => Ok(()),
        }
    }
}
