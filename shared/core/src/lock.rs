//! One writer per cluster: the lock's document and every decision about it.
//!
//! The document is written with conditional puts only, so of two runs that decide at once one wins and the other decides
//! again. It outlives its holder: the fencing token grows with every holder, and the last commit that was taken up stays
//! known, so that an older merge which comes late never undoes a newer one.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::ids::{CommitId, RunId};

/// How long a working stage holds the lock without renewing it: longer than Lambda lets a function run (15 minutes).
pub const WORKING_LEASE: SignedDuration = SignedDuration::from_mins(30);

/// A run as the lock knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The run.
    pub run: RunId,
    /// The commit that it brings.
    pub commit: CommitId,
    /// When its merge was received.
    pub received_at: Timestamp,
}

/// The run that may write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Who it is.
    #[serde(flatten)]
    pub claim: Claim,
    /// Its Step Functions execution, by which others see whether it still lives.
    pub execution: String,
    /// When the lock may be taken over.
    pub expires_at: Timestamp,
    /// Whether the state store has been changed for a plan that is not applied yet; whoever takes over must restore it first.
    pub unapplied: bool,
    /// A dead holder before this one whose unapplied change is to be restored first; cleared when that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restores: Option<Claim>,
}

/// The lock of one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterLock {
    /// Grows with every holder.
    pub fence: u64,
    /// Who holds it now.
    pub holder: Option<Holder>,
    /// The newest run that waits.
    pub waiting: Option<Claim>,
    /// The last run that held it.
    pub last: Option<Claim>,
    /// Somebody who works on the cluster from a shell: runs wait meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<ByHand>,
}

/// Somebody who works on a cluster from a shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByHand {
    /// Who, and on which machine.
    pub who: String,
    /// When it is over unless it is renewed.
    pub until: Timestamp,
}

/// How another run's commit stands to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It is an ancestor of ours.
    Older,
    /// It is ours.
    Same,
    /// Ours is an ancestor of it.
    Newer,
    /// Neither; the time of receipt decides.
    Unrelated,
}

/// What to do about a wanted lock. Documents are to be written on the condition that the read one is still there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquire {
    /// Write this and go on.
    Take {
        /// The lock with us as the holder.
        lock: ClusterLock,
        /// A dead holder that left an unapplied change behind.
        abandoned: Option<Claim>,
    },
    /// The lock is ours already (a repeated call); write this to renew it.
    Renew(ClusterLock),
    /// Somebody else holds it.
    Wait {
        /// The lock with us as the newest waiting run, when it must be written.
        lock: Option<ClusterLock>,
        /// Who holds it: a run, or somebody at a shell.
        holder: String,
    },
    /// A newer merge holds it, waits for it, or held it: there is nothing left to do for ours.
    Superseded {
        /// The newer run.
        by: RunId,
    },
}

/// Why a lock cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cluster's lock is held by {}: this run lost it and must not write", holder.as_ref().map_or("nobody", RunId::as_str))]
pub struct LockLost {
    /// Who holds it instead.
    pub holder: Option<RunId>,
}

impl ClusterLock {
    /// Decides for a run that wants the lock.
    ///
    /// `relation` tells how another run's commit stands to ours; `alive` tells whether the present holder's execution
    /// still runs.
    pub fn acquire(&self, me: &Claim, execution: &str, now: Timestamp, alive: bool, relation: impl Fn(&CommitId) -> Relation) -> Acquire {
        if let Some(holder) = &self.holder
            && holder.claim.run == me.run
        {
            let mut lock = self.clone();
            if let Some(holder) = &mut lock.holder {
                execution.clone_into(&mut holder.execution);
                holder.expires_at = later(now, WORKING_LEASE);
            }
            return Acquire::Renew(lock);
        }
        let outdates_me = |other: &Claim| {
            other.run != me.run
                && match relation(&other.commit) {
                    Relation::Newer => true,
                    Relation::Older | Relation::Same => false,
                    Relation::Unrelated => (other.received_at, &other.run) > (me.received_at, &me.run),
                }
        };
        let holder = self.holder.as_ref().filter(|holder| alive && holder.expires_at > now);
        let newer = holder.map(|holder| &holder.claim).into_iter().chain(&self.last).chain(&self.waiting).find(|other| outdates_me(other));
        if let Some(newer) = newer {
            return Acquire::Superseded { by: newer.run.clone() };
        }
        let by_hand = self.by_hand.as_ref().filter(|by_hand| by_hand.until > now);
        if let Some(holder) = holder.map(|holder| holder.claim.run.to_string()).or_else(|| by_hand.map(|by_hand| by_hand.who.clone())) {
            let known = self.waiting.as_ref().is_some_and(|waiting| waiting.run == me.run);
            let lock = (!known).then(|| Self { waiting: Some(me.clone()), ..self.clone() });
            return Acquire::Wait { lock, holder };
        }
        // A holder that died before it restored what it found hands that on: its own change cannot have begun.
        let abandoned = self.holder.as_ref().and_then(|holder| match &holder.restores {
            Some(earlier) => Some(earlier.clone()),
            None => holder.unapplied.then(|| holder.claim.clone()),
        });
        let lock = Self {
            fence: self.fence.saturating_add(1),
            holder: Some(Holder {
                claim: me.clone(),
                execution: execution.to_owned(),
                expires_at: later(now, WORKING_LEASE),
                unapplied: false,
                restores: abandoned.clone(),
            }),
            waiting: self.waiting.clone().filter(|waiting| waiting.run != me.run),
            last: Some(me.clone()),
            by_hand: None,
        };
        Acquire::Take { lock, abandoned }
    }

    /// The lock renewed until `until` for a run that holds it; the guard before every effect.
    pub fn renew(&self, run: &RunId, until: Timestamp) -> Result<Self, LockLost> {
        self.held(run, |holder| holder.expires_at = holder.expires_at.max(until))
    }

    /// The lock with the mark that the state store holds an unapplied change, or holds none any more.
    pub fn mark_unapplied(&self, run: &RunId, unapplied: bool) -> Result<Self, LockLost> {
        self.held(run, |holder| holder.unapplied = unapplied)
    }

    /// The lock with the mark that what the holder found is restored.
    pub fn mark_restored(&self, run: &RunId) -> Result<Self, LockLost> {
        self.held(run, |holder| holder.restores = None)
    }

    /// The lock without its holder. `None` when the run does not hold it: releasing twice is no error.
    pub fn release(&self, run: &RunId) -> Option<Self> {
        let held = self.holder.as_ref().is_some_and(|holder| holder.claim.run == *run);
        let waits = self.waiting.as_ref().is_some_and(|waiting| waiting.run == *run);
        (held || waits).then(|| Self {
            holder: self.holder.clone().filter(|_| !held),
            waiting: self.waiting.clone().filter(|_| !waits),
            ..self.clone()
        })
    }

    /// The lock with somebody at a shell, whom runs wait for. `Err` says who holds it instead.
    pub fn take_by_hand(&self, by_hand: ByHand, now: Timestamp) -> Result<Self, String> {
        if let Some(holder) = self.holder.as_ref().filter(|holder| holder.expires_at > now) {
            return Err(holder.claim.run.to_string());
        }
        match &self.by_hand {
            Some(other) if other.until > now && other.who != by_hand.who => Err(other.who.clone()),
            _ => Ok(Self { by_hand: Some(by_hand), ..self.clone() }),
        }
    }

    /// The lock without them. `None` when they do not hold it: releasing twice is no error.
    pub fn release_by_hand(&self, who: &str) -> Option<Self> {
        self.by_hand.as_ref().is_some_and(|by_hand| by_hand.who == who).then(|| Self { by_hand: None, ..self.clone() })
    }

    fn held(&self, run: &RunId, change: impl FnOnce(&mut Holder)) -> Result<Self, LockLost> {
        let mut lock = self.clone();
        match &mut lock.holder {
            Some(holder) if holder.claim.run == *run => {
                change(holder);
                Ok(lock)
            }
            other => Err(LockLost { holder: other.as_ref().map(|holder| holder.claim.run.clone()) }),
        }
    }
}

fn later(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Commits are numbered along one branch: a higher number is newer.
    fn commit(n: u32) -> CommitId {
        CommitId::new(&format!("{n:040x}")).unwrap()
    }

    fn claim(n: u32, received: i64) -> Claim {
        Claim { run: RunId::new(&format!("run-{n}")).unwrap(), commit: commit(n), received_at: at(received) }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn line(n: u32) -> impl Fn(&CommitId) -> Relation {
        move |other| match other.cmp(&commit(n)) {
            std::cmp::Ordering::Less => Relation::Older,
            std::cmp::Ordering::Equal => Relation::Same,
            std::cmp::Ordering::Greater => Relation::Newer,
        }
    }

    fn take(lock: &ClusterLock, n: u32, now: i64) -> ClusterLock {
        match lock.acquire(&claim(n, now), "arn", at(now), true, line(n)) {
            Acquire::Take { lock, .. } => lock,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_second_waits_and_runs_after_the_first() {
        let first = take(&ClusterLock::default(), 1, 0);
        assert_eq!(first.fence, 1);
        let Acquire::Wait { lock: Some(lock), holder } = first.acquire(&claim(2, 1), "arn", at(1), true, line(2)) else { panic!() };
        assert_eq!(holder, "run-1");
        assert!(matches!(lock.acquire(&claim(2, 1), "arn", at(2), true, line(2)), Acquire::Wait { lock: None, .. }));
        let free = lock.release(&claim(1, 0).run).unwrap();
        let second = take(&free, 2, 3);
        assert_eq!((second.fence, second.waiting), (2, None));
    }

    #[test]
    fn a_shell_and_a_run_wait_for_each_other() {
        let ann = |until| ByHand { who: "ann at her shell".to_owned(), until: at(until) };
        let held = take(&ClusterLock::default(), 1, 0);
        assert_eq!(held.take_by_hand(ann(60), at(1)), Err("run-1".to_owned()));
        let free = held.release(&claim(1, 0).run).unwrap();
        let by_hand = free.take_by_hand(ann(60), at(1)).unwrap();
        assert_eq!(by_hand.take_by_hand(ByHand { who: "ben".to_owned(), until: at(9) }, at(2)), Err("ann at her shell".to_owned()));
        let Acquire::Wait { lock: Some(waiting), holder } = by_hand.acquire(&claim(2, 2), "arn", at(2), true, line(2)) else { panic!() };
        assert_eq!(holder, "ann at her shell");
        let renewed = waiting.take_by_hand(ann(90), at(3)).unwrap();
        assert!(renewed.release_by_hand("ben").is_none());
        let again = renewed.release_by_hand("ann at her shell").unwrap();
        assert!(matches!(again.acquire(&claim(2, 2), "arn", at(4), true, line(2)), Acquire::Take { .. }));
        assert!(matches!(renewed.acquire(&claim(2, 2), "arn", at(91), true, line(2)), Acquire::Take { .. }), "it is not for ever");
    }

    #[test]
    fn only_the_newest_waits() {
        let first = take(&ClusterLock::default(), 1, 0);
        let Acquire::Wait { lock: Some(lock), .. } = first.acquire(&claim(3, 1), "arn", at(1), true, line(3)) else { panic!() };
        // Delivered late, though received after: the commit counts, not the delivery.
        let late = lock.acquire(&claim(2, 9), "arn", at(9), true, line(2));
        assert_eq!(late, Acquire::Superseded { by: claim(3, 1).run });
    }

    #[test]
    fn an_older_merge_never_follows_a_newer_one() {
        let newer = take(&ClusterLock::default(), 2, 0);
        assert!(matches!(newer.acquire(&claim(1, 5), "arn", at(5), true, line(1)), Acquire::Superseded { .. }));
        let free = newer.release(&claim(2, 0).run).unwrap();
        assert!(matches!(free.acquire(&claim(1, 5), "arn", at(5), true, line(1)), Acquire::Superseded { .. }));
    }

    #[test]
    fn unrelated_commits_go_by_the_time_of_receipt() {
        let first = take(&ClusterLock::default(), 7, 10);
        let earlier = first.acquire(&claim(8, 5), "arn", at(11), true, |_| Relation::Unrelated);
        assert!(matches!(earlier, Acquire::Superseded { .. }));
        let later = first.acquire(&claim(8, 20), "arn", at(21), true, |_| Relation::Unrelated);
        assert!(matches!(later, Acquire::Wait { .. }));
    }

    #[test]
    fn a_dead_or_expired_holder_is_replaced_and_its_change_restored() {
        let held = take(&ClusterLock::default(), 1, 0).mark_unapplied(&claim(1, 0).run, true).unwrap();
        for (alive, now) in [(false, 1), (true, 3600)] {
            let Acquire::Take { lock, abandoned } = held.acquire(&claim(2, 1), "arn", at(now), alive, line(2)) else { panic!() };
            assert_eq!((lock.fence, abandoned), (2, Some(claim(1, 0))));
            // The next one dies, too, before it has restored anything.
            let Acquire::Take { abandoned, .. } = lock.acquire(&claim(3, 2), "arn", at(now), false, line(3)) else { panic!() };
            assert_eq!(abandoned, Some(claim(1, 0)));
            let restored = lock.mark_restored(&claim(2, 1).run).unwrap();
            let Acquire::Take { abandoned: None, .. } = restored.acquire(&claim(3, 2), "arn", at(now), false, line(3)) else { panic!() };
            assert_eq!(lock.renew(&claim(1, 0).run, at(9999)), Err(LockLost { holder: Some(claim(2, 1).run) }));
        }
        let Acquire::Take { abandoned: None, .. } = take(&ClusterLock::default(), 1, 0).acquire(&claim(2, 1), "arn", at(1), false, line(2))
        else {
            panic!()
        };
    }

    #[test]
    fn the_same_run_takes_it_again() {
        let held = take(&ClusterLock::default(), 1, 0);
        let Acquire::Renew(again) = held.acquire(&claim(1, 0), "arn-2", at(100), true, line(1)) else { panic!() };
        assert_eq!(again.fence, 1);
        assert!(again.holder.unwrap().expires_at > held.holder.unwrap().expires_at);
    }

    #[test]
    fn release_is_idempotent() {
        let held = take(&ClusterLock::default(), 1, 0);
        let free = held.release(&claim(1, 0).run).unwrap();
        assert_eq!(free.release(&claim(1, 0).run), None);
        assert_eq!(held.release(&claim(2, 0).run), None);
    }

    proptest! {
        /// Whatever the order of arrivals, retries, deaths and releases: fences grow, and the last holder is the newest of all who ever held.
        #[test]
        fn the_cluster_ends_at_the_newest(steps in proptest::collection::vec((1u32..6, 0u8..3), 1..60)) {
            let mut lock = ClusterLock::default();
            let mut newest_held = 0;
            for (now, (n, what)) in steps.into_iter().enumerate() {
                let now = i64::try_from(now).unwrap();
                let before = lock.fence;
                match what {
                    0 | 1 => match lock.acquire(&claim(n, now), "arn", at(now), what == 0, line(n)) {
                        Acquire::Take { lock: next, .. } => {
                            prop_assert!(n >= newest_held, "{n} after {newest_held}");
                            newest_held = n;
                            lock = next;
                        }
                        Acquire::Renew(next) | Acquire::Wait { lock: Some(next), .. } => lock = next,
                        Acquire::Wait { lock: None, .. } | Acquire::Superseded { .. } => {}
                    },
                    _ => lock = lock.release(&claim(n, 0).run).unwrap_or(lock),
                }
                prop_assert!(lock.fence >= before);
                prop_assert_eq!(lock.last.as_ref().map_or(0, |last| u32::from_str_radix(last.commit.as_str(), 16).unwrap()), newest_held);
            }
        }
    }
}
