//! Approvals: a question with a digest, and one answer.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{InvalidId, RunId};

/// The stage that an approval opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// `kops update cluster --yes`.
    Update,
    /// The rolling update.
    Roll,
}

impl Gate {
    /// The gate's word in ids and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Roll => "roll",
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
            (Some(run), Some("update" | "roll"), Some(round), None) => {
                RunId::new(run).is_ok() && (1..=4).contains(&round.len()) && round.bytes().all(|b| b.is_ascii_digit())
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
}

impl Decision {
    /// The decision in the past, for messages.
    pub fn done(self) -> &'static str {
        match self {
            Self::Approve => "approved",
            Self::Reject => "rejected",
        }
    }
}

/// An answer with its circumstances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Yes or no.
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
    /// What is approved: the digest of the plan, or of the roll's preview.
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

impl Approval {
    /// The approval with an answer. The same decision again is no error and changes nothing, so a second click or a repeated
    /// call is harmless.
    pub fn decide(&self, answer: Answer) -> Result<Self, DecideError> {
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
    fn ids_are_checked() {
        let id = approval().id;
        assert_eq!(ApprovalId::new(id.as_str()).unwrap(), id);
        for bad in ["", "demo", "demo.update", "demo.update.x", "demo.update.1.2", "../x.update.1", "demo.prune.1"] {
            assert!(ApprovalId::new(bad).is_err(), "{bad}");
        }
    }
}
