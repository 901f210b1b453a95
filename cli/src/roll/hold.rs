//! The cluster's lock in the run bucket, so that no run of the pipeline works beside a shell.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use kopsline_core::ClusterConfig;
use kopsline_core::lock::ByHand;
use kopsline_state::{HeldBy, LockFile, UpdateError};

use crate::context::Context;

/// How often the hold is renewed.
const RENEW_EVERY: Duration = Duration::from_mins(5);
/// For how long it is taken: what a shell leaves behind that was killed lapses.
const HELD_FOR: SignedDuration = SignedDuration::from_mins(15);

/// The lock, as far as there is one: without a run bucket nobody can tell what others do.
pub(crate) struct Hold {
    lock: Option<LockFile>,
    who: String,
    cluster: String,
}

impl Hold {
    /// Takes it; a run that holds it must not be worked against.
    pub(crate) async fn take(context: &Context, config: &ClusterConfig) -> anyhow::Result<Self> {
        let lock = context.runs().ok().map(|runs| LockFile::new(runs.documents().clone(), config));
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let user = std::env::var("USER").unwrap_or_else(|_| "somebody".to_owned());
        let hold = Self { lock, who: format!("{user} at a shell on {}", machine.trim()), cluster: config.name.to_string() };
        hold.renew().await?;
        Ok(hold)
    }

    /// Keeps it until it cannot be kept.
    pub(crate) async fn keep(&self) -> anyhow::Result<Infallible> {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            self.renew().await?;
        }
    }

    async fn renew(&self) -> anyhow::Result<()> {
        let Some(lock) = &self.lock else { return Ok(()) };
        let now = Timestamp::now();
        let until = now.saturating_add(HELD_FOR)?;
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
