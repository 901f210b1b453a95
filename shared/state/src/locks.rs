//! The cluster's lock in the run bucket.

use jiff::Timestamp;
use kopsline_core::lock::{Acquire, ByHand, Claim, ClusterLock, LockLost, Relation};
use kopsline_core::{Classify, ClusterConfig, CommitId, Failure, FailureKind, RunId, keys};

use crate::documents::{Documents, Update, UpdateError};

/// How often a decision is made anew because others changed the lock meanwhile.
const MAX_DECISIONS: u32 = 8;

/// What has to be asked of others before the lock can decide.
pub trait Facts {
    /// The failure of asking.
    type Error: From<UpdateError>;
    /// Whether the holder's execution still runs.
    fn alive(&self, execution: &str) -> impl Future<Output = Result<bool, Self::Error>> + Send;
    /// How a commit stands to ours.
    fn relation(&self, commit: &CommitId) -> impl Future<Output = Result<Relation, Self::Error>> + Send;
}

/// The cluster's lock is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cluster is held by {0}")]
pub struct HeldBy(pub String);

impl Classify for UpdateError<LockLost> {
    fn kind(&self) -> FailureKind {
        Failure::transient_or(self.is_transient(), FailureKind::LockLost)
    }
}

impl Classify for UpdateError {
    fn kind(&self) -> FailureKind {
        Failure::transient_or(self.is_transient(), FailureKind::Failed)
    }
}

/// The lock of one cluster.
#[derive(Debug, Clone)]
pub struct LockFile {
    documents: Documents,
    key: String,
}

impl LockFile {
    /// The lock of a cluster.
    pub fn new(documents: Documents, cluster: &ClusterConfig) -> Self {
        Self { documents, key: keys::lock(&cluster.state_store, &cluster.name) }
    }

    /// The lock as it is.
    pub async fn read(&self) -> Result<ClusterLock, UpdateError> {
        Ok(self.documents.read(&self.key).await?.map(|found| found.value).unwrap_or_default())
    }

    /// Tries to take the lock. What the answer says is written already.
    pub async fn acquire<F: Facts>(&self, me: &Claim, execution: &str, now: Timestamp, facts: &F) -> Result<Acquire, F::Error> {
        for _ in 0..MAX_DECISIONS {
            let seen = self.read().await?;
            let alive = match &seen.holder {
                Some(holder) if holder.claim.run != me.run => facts.alive(&holder.execution).await?,
                _ => true,
            };
            let mut relations = Vec::new();
            let others = seen.holder.iter().map(|holder| &holder.claim).chain(&seen.waiting).chain(&seen.last);
            for other in others.filter(|other| other.run != me.run) {
                relations.push((other.commit.clone(), facts.relation(&other.commit).await?));
            }
            let relation = |commit: &CommitId| {
                relations.iter().find(|(other, _)| other == commit).map_or(Relation::Unrelated, |(_, relation)| *relation)
            };
            let decision = seen.acquire(me, execution, now, alive, relation);
            let write = match &decision {
                Acquire::Take { lock, .. } | Acquire::Renew(lock) | Acquire::Wait { lock: Some(lock), .. } => lock.clone(),
                Acquire::Wait { lock: None, .. } | Acquire::Superseded { .. } => return Ok(decision),
            };
            let written = self
                .documents
                .update(&self.key, |current: Option<ClusterLock>| {
                    let unchanged = current.unwrap_or_default() == seen;
                    Ok::<_, std::convert::Infallible>(if unchanged { Update::Put(write.clone(), true) } else { Update::Keep(false) })
                })
                .await?;
            if written {
                return Ok(decision);
            }
        }
        Err(UpdateError::Contended { place: self.documents.store().place(&self.key) }.into())
    }

    /// Renews the lock until `until`, and is the guard before every effect: it fails when the lock is not the run's any more.
    pub async fn renew(&self, run: &RunId, until: Timestamp) -> Result<ClusterLock, UpdateError<LockLost>> {
        self.change(|lock| lock.renew(run, until)).await
    }

    /// Marks that the state store holds a change which is not applied yet, or holds none any more.
    pub async fn mark_unapplied(&self, run: &RunId, unapplied: bool) -> Result<ClusterLock, UpdateError<LockLost>> {
        self.change(|lock| lock.mark_unapplied(run, unapplied)).await
    }

    /// Marks that what a dead holder left behind is restored.
    pub async fn mark_restored(&self, run: &RunId) -> Result<ClusterLock, UpdateError<LockLost>> {
        self.change(|lock| lock.mark_restored(run)).await
    }

    /// Takes the lock, or renews it, for somebody at a shell, whom runs wait for; the error says who holds it instead.
    pub async fn take_by_hand(&self, by_hand: &ByHand, now: Timestamp) -> Result<(), UpdateError<HeldBy>> {
        self.documents
            .update(&self.key, |lock: Option<ClusterLock>| {
                let taken = lock.unwrap_or_default().take_by_hand(by_hand.clone(), now).map_err(HeldBy)?;
                Ok(Update::Put(taken, ()))
            })
            .await
    }

    /// Gives up what somebody at a shell held.
    pub async fn release_by_hand(&self, who: &str) -> Result<(), UpdateError> {
        self.documents
            .update(&self.key, |lock: Option<ClusterLock>| {
                let released = lock.and_then(|lock| lock.release_by_hand(who));
                Ok(released.map_or(Update::Keep(()), |lock| Update::Put(lock, ())))
            })
            .await
    }

    /// Gives the lock up; giving up what one does not hold is no error.
    pub async fn release(&self, run: &RunId) -> Result<(), UpdateError> {
        self.documents
            .update(&self.key, |lock: Option<ClusterLock>| {
                let released = lock.and_then(|lock| lock.release(run));
                Ok(released.map_or(Update::Keep(()), |lock| Update::Put(lock, ())))
            })
            .await
    }

    async fn change(&self, change: impl Fn(&ClusterLock) -> Result<ClusterLock, LockLost>) -> Result<ClusterLock, UpdateError<LockLost>> {
        self.documents
            .update(&self.key, |lock: Option<ClusterLock>| {
                let before = lock.unwrap_or_default();
                let after = change(&before)?;
                Ok(if after == before { Update::Keep(after) } else { Update::Put(after.clone(), after) })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::MemoryStore;

    /// Commits are numbered along one branch; every execution lives.
    struct Line(u32);

    impl Facts for Line {
        type Error = UpdateError;
        async fn alive(&self, _execution: &str) -> Result<bool, UpdateError> {
            tokio::task::yield_now().await;
            Ok(true)
        }
        async fn relation(&self, commit: &CommitId) -> Result<Relation, UpdateError> {
            tokio::task::yield_now().await;
            Ok(match commit.cmp(&commit_id(self.0)) {
                std::cmp::Ordering::Less => Relation::Older,
                std::cmp::Ordering::Equal => Relation::Same,
                std::cmp::Ordering::Greater => Relation::Newer,
            })
        }
    }

    fn commit_id(n: u32) -> CommitId {
        CommitId::new(&format!("{n:040x}")).unwrap()
    }

    fn claim(n: u32) -> Claim {
        Claim { run: RunId::new(&format!("run-{n}")).unwrap(), commit: commit_id(n), received_at: Timestamp::UNIX_EPOCH }
    }

    fn lock_file() -> LockFile {
        LockFile { documents: Documents::new(Arc::new(MemoryStore::default())), key: "locks/a.json".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_at_once_exactly_one_takes_it() {
        let file = lock_file();
        let now = Timestamp::now();
        let tries = (1..=6).map(|n| {
            let file = file.clone();
            tokio::spawn(async move { file.acquire(&claim(n), "arn", now, &Line(n)).await.unwrap() })
        });
        let mut taken = 0;
        for one in tries.collect::<Vec<_>>() {
            taken += u32::from(matches!(one.await.unwrap(), Acquire::Take { .. }));
        }
        assert_eq!(taken, 1);
        assert_eq!(file.read().await.unwrap().fence, 1);
    }

    #[tokio::test]
    async fn a_lost_lock_guards_nothing_any_more() {
        let file = lock_file();
        let now = Timestamp::now();
        file.acquire(&claim(1), "arn", now, &Line(1)).await.unwrap();
        file.renew(&claim(1).run, now).await.unwrap();
        file.release(&claim(1).run).await.unwrap();
        file.release(&claim(1).run).await.unwrap();
        file.acquire(&claim(2), "arn", now, &Line(2)).await.unwrap();
        let lost = file.mark_unapplied(&claim(1).run, true).await.unwrap_err();
        assert!(matches!(lost, UpdateError::Refused(LockLost { holder: Some(_) })), "{lost}");
        assert!(matches!(file.acquire(&claim(1), "arn", now, &Line(1)).await.unwrap(), Acquire::Superseded { .. }));
    }
}
