//! Approvals: a question with a digest, and one answer.
//!
//! Before a stage the answers are yes and no. In the middle of a rolling update a question may have others: what to do
//! about a drain that does not end.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{InvalidId, RunId};

/// What an answer opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// `kops update cluster --yes`.
    Update,
    /// The rolling update.
    Roll,
    /// The rest of a rolling update that pauses after its first instances.
    Checkpoint,
    /// What becomes of a node whose drain does not end.
    Drain,
}

impl Gate {
    /// All gates.
    pub const ALL: [Self; 4] = [Self::Update, Self::Roll, Self::Checkpoint, Self::Drain];

    /// The answers that can be given.
    pub fn choices(self) -> &'static [Decision] {
        match self {
            Self::Update | Self::Roll | Self::Checkpoint => &[Decision::Approve, Decision::Reject],
            Self::Drain => &[Decision::Wait, Decision::Skip, Decision::Force, Decision::Fail, Decision::Abort],
        }
    }

    /// The gate's word in ids and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Roll => "roll",
            Self::Checkpoint => "checkpoint",
            Self::Drain => "drain",
        }
    }
}

/// An approval's id: `<run>.<gate>.<round>`. It is no secret: what guards an answer is who may start the `approve` state machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ApprovalId(String);

impl ApprovalId {
    /// The id of a run's `round`th question (1 is the first) at a gate.
    pub fn of(run: &RunId, gate: Gate, round: u32) -> Self {
        Self(format!("{run}.{}.{round}", gate.as_str()))
    }

    /// Checks an id that comes from outside.
    pub fn new(id: &str) -> Result<Self, InvalidId> {
        let mut parts = id.split('.');
        let well_formed = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(run), Some(gate), Some(round), None) => {
                Gate::ALL.iter().any(|known| known.as_str() == gate)
                    && RunId::new(run).is_ok()
                    && (1..=4).contains(&round.len())
                    && round.bytes().all(|b| b.is_ascii_digit())
            }
            _ => false,
        };
        if well_formed {
            Ok(Self(id.to_owned()))
        } else {
            Err(InvalidId {
                what: "approval id",
                value: id.chars().take(80).collect(),
                remedy: "use the id that `kopsline status` shows, such as \"<run>.update.1\"",
            })
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ApprovalId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for ApprovalId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

impl TryFrom<String> for ApprovalId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::new(&text)
    }
}

impl From<ApprovalId> for String {
    fn from(id: ApprovalId) -> String {
        id.0
    }
}

/// A person's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Go on.
    Approve,
    /// Do not.
    Reject,
    /// Of a drain: give it as much time again.
    Wait,
    /// Of a drain: leave the node in service and go on with the others.
    Skip,
    /// Of a drain: delete what is left on the node, whatever its budgets say.
    Force,
    /// Of a drain: stop with this instance group, as kops does.
    Fail,
    /// Of a drain: end the roll and give back what was not replaced.
    Abort,
}

impl Decision {
    /// The decision in the past, for messages.
    pub fn done(self) -> &'static str {
        match self {
            Self::Approve => "approved",
            Self::Reject => "rejected",
            Self::Wait => "given more time",
            Self::Skip => "skipped",
            Self::Force => "forced",
            Self::Fail => "failed",
            Self::Abort => "aborted",
        }
    }

    /// The decision's word, as it is typed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Reject => "reject",
            Self::Wait => "wait",
            Self::Skip => "skip",
            Self::Force => "force",
            Self::Fail => "fail",
            Self::Abort => "abort",
        }
    }
}

impl std::str::FromStr for Decision {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let known = Gate::ALL.iter().flat_map(|gate| gate.choices()).find(|choice| choice.as_str() == text);
        known.copied().ok_or_else(|| InvalidId {
            what: "answer",
            value: text.chars().take(80).collect(),
            remedy: "use approve or reject, or for a stuck drain wait, skip, force, fail or abort",
        })
    }
}

/// An answer with its circumstances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// One of the gate's choices.
    pub decision: Decision,
    /// Who says so, as far as the caller told.
    pub by: Option<String>,
    /// Their words.
    pub comment: Option<String>,
    /// When.
    pub at: Timestamp,
    /// The `approve` execution that brought it; `CloudTrail` knows who started that.
    pub execution: String,
}

/// A question to a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Its id.
    pub id: ApprovalId,
    /// The run that waits.
    pub run: RunId,
    /// The stage that it opens.
    pub gate: Gate,
    /// What is approved: the digest of the plan, or of the roll's preview; in the middle of a roll, the question's id.
    pub digest: String,
    /// One line for people.
    pub summary: String,
    /// When it was asked.
    pub asked_at: Timestamp,
    /// When the question lapses.
    pub expires_at: Timestamp,
    /// The answer, once.
    pub answer: Option<Answer>,
    /// Whether the run ended or asked anew before an answer came.
    #[serde(default)]
    pub withdrawn: bool,
}

/// Why an answer is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// The gate does not have this answer.
    #[error("{id} cannot be answered with {given:?}; answer {}", choices(*gate))]
    NotAChoice {
        /// The approval.
        id: ApprovalId,
        /// Its gate.
        gate: Gate,
        /// The answer given.
        given: &'static str,
    },
    /// Somebody answered otherwise before.
    #[error("{id} was already {} by {by} at {at}", decision.done())]
    AlreadyDecided {
        /// The approval.
        id: ApprovalId,
        /// The decision that stands.
        decision: Decision,
        /// Who made it.
        by: String,
        /// When.
        at: Timestamp,
    },
    /// It came too late.
    #[error("{id} expired at {at}: start a new run to be asked again")]
    Expired {
        /// The approval.
        id: ApprovalId,
        /// When it lapsed.
        at: Timestamp,
    },
    /// The run no longer waits for it.
    #[error("{id} is no longer asked: its run ended or asks with a newer plan; `kopsline status` shows what it waits for")]
    Withdrawn {
        /// The approval.
        id: ApprovalId,
    },
}

fn choices(gate: Gate) -> String {
    gate.choices().iter().map(|choice| choice.as_str()).collect::<Vec<_>>().join(" or ")
}

impl Approval {
    /// The approval with an answer. The same decision again is no error and changes nothing, so a second click or a repeated
    /// call is harmless.
    pub fn decide(&self, answer: Answer) -> Result<Self, DecideError> {
        if !self.gate.choices().contains(&answer.decision) {
            return Err(DecideError::NotAChoice { id: self.id.clone(), gate: self.gate, given: answer.decision.as_str() });
        }
        match &self.answer {
            Some(before) if before.decision == answer.decision => Ok(self.clone()),
            Some(before) => Err(DecideError::AlreadyDecided {
                id: self.id.clone(),
                decision: before.decision,
                by: before.by.clone().unwrap_or_else(|| before.execution.clone()),
                at: before.at,
            }),
            None if self.withdrawn => Err(DecideError::Withdrawn { id: self.id.clone() }),
            None if answer.at >= self.expires_at => Err(DecideError::Expired { id: self.id.clone(), at: self.expires_at }),
            None => Ok(Self { answer: Some(answer), ..self.clone() }),
        }
    }

    /// Whether an answer is still wanted.
    pub fn is_open(&self, now: Timestamp) -> bool {
        self.answer.is_none() && !self.withdrawn && now < self.expires_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn approval() -> Approval {
        let run = RunId::new("demo-1").unwrap();
        Approval {
            id: ApprovalId::of(&run, Gate::Update, 1),
            run,
            gate: Gate::Update,
            digest: "d".into(),
            summary: "2 to modify".into(),
            asked_at: at(0),
            expires_at: at(100),
            answer: None,
            withdrawn: false,
        }
    }

    fn answer(decision: Decision, second: i64) -> Answer {
        Answer { decision, by: Some("ann".into()), comment: None, at: at(second), execution: "arn".into() }
    }

    #[test]
    fn one_answer_counts() {
        let decided = approval().decide(answer(Decision::Approve, 1)).unwrap();
        assert_eq!(decided.decide(answer(Decision::Approve, 2)).unwrap(), decided);
        let error = decided.decide(answer(Decision::Reject, 3)).unwrap_err();
        assert!(error.to_string().contains("already approved by ann"), "{error}");
        assert!(!decided.is_open(at(1)));
    }

    #[test]
    fn late_and_withdrawn_questions_take_none() {
        assert!(matches!(approval().decide(answer(Decision::Approve, 100)), Err(DecideError::Expired { .. })));
        let withdrawn = Approval { withdrawn: true, ..approval() };
        assert!(matches!(withdrawn.decide(answer(Decision::Approve, 1)), Err(DecideError::Withdrawn { .. })));
        assert!(approval().is_open(at(99)) && !approval().is_open(at(100)));
    }

    #[test]
    fn a_gate_takes_its_own_answers_alone() {
        let drain = Approval { gate: Gate::Drain, ..approval() };
        assert!(drain.decide(answer(Decision::Skip, 1)).is_ok());
        let error = drain.decide(answer(Decision::Approve, 1)).unwrap_err().to_string();
        assert!(error.ends_with("cannot be answered with \"approve\"; answer wait or skip or force or fail or abort"), "{error}");
        assert!(matches!(approval().decide(answer(Decision::Force, 1)), Err(DecideError::NotAChoice { .. })));
    }

    #[test]
    fn ids_are_checked() {
        let id = approval().id;
        assert_eq!(ApprovalId::new(id.as_str()).unwrap(), id);
        for bad in ["", "demo", "demo.update", "demo.update.x", "demo.update.1.2", "../x.update.1", "demo.prune.1"] {
            assert!(ApprovalId::new(bad).is_err(), "{bad}");
        }
    }
}
