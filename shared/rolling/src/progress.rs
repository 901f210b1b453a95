//! How far a roll is, for people.

use std::fmt;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::control::Question;
use crate::forecast::{History, count, remaining};
use crate::spec::Role;
use crate::state::{GroupPhase, GroupRoll, InstancePhase, InstanceRoll, Outcome, RollState, Summary};

/// How far a roll and its groups are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollProgress {
    /// The instances of all groups, counted.
    pub summary: Summary,
    /// Whether and how it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The groups in the order of the roll.
    pub groups: Vec<GroupProgress>,
    /// Questions that are open.
    pub questions: Vec<Question>,
    /// About how long it still takes, waiting for people left out; `None` once it has ended or is being given up.
    pub remaining: Option<SignedDuration>,
}

/// How far a group is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupProgress {
    /// The instance group.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Where it stands, in a word.
    pub state: String,
    /// How many of its instances may be down at once.
    pub at_once: usize,
    /// Its instances, counted.
    pub summary: Summary,
    /// Its instances whose turn has come and that are not through, those that failed, and those that were left.
    pub instances: Vec<InstanceProgress>,
}

/// What becomes of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceProgress {
    /// The instance.
    pub id: String,
    /// Its node, if it is known.
    pub node: Option<String>,
    /// What is done to it or was.
    pub what: String,
}

impl RollState {
    /// How far it is. What is left is reckoned from what `history` and this roll itself took so far.
    pub fn progress(&self, history: &History) -> RollProgress {
        RollProgress {
            summary: self.summary(),
            outcome: self.outcome.clone(),
            groups: self.groups.iter().map(group).collect(),
            questions: self.questions.clone(),
            remaining: (self.outcome == Outcome::Running).then(|| remaining(self, history)),
        }
    }
}

fn group(group: &GroupRoll) -> GroupProgress {
    let tell =
        |instance: &InstanceRoll| InstanceProgress { id: instance.id.clone(), node: instance.node.clone(), what: instance.to_string() };
    let worth_telling = |instance: &&InstanceRoll| {
        let through = matches!(instance.phase, InstancePhase::Waiting | InstancePhase::Done | InstancePhase::Vanished);
        !through || (instance.phase == InstancePhase::Done && instance.replaced.is_none() && group.finished.is_none())
    };
    GroupProgress {
        name: group.name.clone(),
        role: group.role,
        state: group.phase.word().to_owned(),
        at_once: group.concurrency,
        summary: Summary::of(group.instances.iter()),
        instances: group.instances.iter().filter(worth_telling).map(tell).collect(),
    }
}

impl GroupPhase {
    /// Where the group stands, in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Rolling => "rolling",
            Self::Unwinding => "unwinding",
            Self::Disabled => "disabled",
            Self::Done => "done",
            Self::Failed { .. } => "failed",
        }
    }
}

impl fmt::Display for InstanceRoll {
    /// What is done to it, or was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.phase, &self.replaced) {
            (InstancePhase::Failed { error }, _) => write!(f, "not replaced: {error}"),
            (InstancePhase::Skipped { why }, _) => write!(f, "left as it was: {why}"),
            (InstancePhase::Returning { why, .. }, _) => write!(f, "is given back: {why}"),
            (_, Some(replaced)) => write!(f, "replaced by {}", replaced.by),
            (InstancePhase::Vanished, _) => f.write_str("went away before its turn"),
            (InstancePhase::Waiting, _) if self.is_detached() => f.write_str("is detached and waits"),
            (InstancePhase::Waiting, _) => f.write_str("waits"),
            (InstancePhase::Detaching { .. }, _) => f.write_str("is being detached"),
            (InstancePhase::Preparing { .. }, _) => f.write_str("is taken out of service"),
            (InstancePhase::Draining(drain), _) => {
                write!(f, "is being drained, {} left", count(drain.remaining, "pod"))?;
                match &drain.blocker {
                    Some(blocker) => write!(f, "; waits for {}", blocker.pod),
                    None => Ok(()),
                }
            }
            (InstancePhase::Settling { .. }, _) => f.write_str("is drained"),
            (InstancePhase::Terminating { .. }, _) => f.write_str("is being terminated"),
            (InstancePhase::Terminated | InstancePhase::Done, _) => f.write_str("terminated"),
        }
    }
}
