//! What people say to a roll, and what it asks them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What people want of a roll at the moment; a host reads it anew before each decision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Control {
    /// Start nothing new; what is in flight is finished.
    pub paused: bool,
    /// Stop for good, and who wanted it and why: what was not replaced is given back.
    pub aborted: Option<String>,
    /// The change window is closed until then: as `paused`.
    pub closed_until: Option<Timestamp>,
    /// Answers to questions, old ones included.
    pub answers: Vec<Answer>,
}

impl Control {
    /// The answer to a question, the first one if there are several.
    pub(crate) fn answer(&self, question: &str) -> Option<&Answer> {
        self.answers.iter().find(|answer| answer.question == question)
    }
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question's id.
    pub question: String,
    /// What to do; a choice that the question does not offer is no answer.
    pub choice: Choice,
    /// Who says so.
    #[serde(default)]
    pub by: String,
}

/// What may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// Wait for the drain for another `drain_timeout`.
    Wait,
    /// Leave the instance as it was before its turn, and go on.
    Skip,
    /// Delete the remaining pods and terminate the instance.
    Force,
    /// Stop the group, as kOps does; a control-plane group stops the roll.
    Fail,
    /// Stop the roll.
    Abort,
    /// Go on.
    Continue,
    /// Go on, and do not ask after each instance any more.
    Always,
}

/// Something that a person may decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Its id, unique within the roll.
    pub id: String,
    /// Since when it is open.
    pub asked: Timestamp,
    /// When it is decided without an answer; never, if unset.
    pub deadline: Option<Timestamp>,
    /// How it is decided then.
    pub default: Option<Choice>,
    /// The instance group.
    pub group: String,
    /// What it is about.
    #[serde(flatten)]
    pub about: About,
}

/// What a [`Question`] is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub enum About {
    /// A drain does not come to its end.
    StuckDrain {
        /// The instance.
        instance: String,
        /// Its node.
        node: String,
        /// A pod that is left, as `namespace/name`.
        pod: Option<String>,
        /// The budget that does not allow its eviction, as `namespace/name`.
        budget: Option<String>,
        /// How many pods are left.
        remaining: usize,
        /// Why the budget can never allow it, if that is so.
        hopeless: Option<String>,
    },
    /// So much is replaced as `pause_after` says.
    Checkpoint {
        /// Instances replaced.
        replaced: usize,
        /// Instances to replace.
        total: usize,
    },
    /// Whether to go on with the next instance (`interactive`).
    NextInstance {
        /// The instance that was replaced last.
        instance: String,
    },
}

impl Question {
    /// What may be answered.
    pub fn choices(&self) -> &'static [Choice] {
        match self.about {
            About::StuckDrain { .. } => &[Choice::Wait, Choice::Skip, Choice::Force, Choice::Fail, Choice::Abort],
            About::Checkpoint { .. } => &[Choice::Continue, Choice::Abort],
            About::NextInstance { .. } => &[Choice::Continue, Choice::Always, Choice::Abort],
        }
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.about {
            About::StuckDrain { instance, node, pod, budget, remaining, hopeless } => {
                write!(f, "the drain of node {node} ({instance} of {}) is stuck", self.group)?;
                if let Some(pod) = pod {
                    write!(f, " on pod {pod}")?;
                }
                if let Some(budget) = budget {
                    write!(f, ", whose PodDisruptionBudget {budget} does not allow its eviction")?;
                }
                if let Some(why) = hopeless {
                    write!(f, " and never will: {why}")?;
                }
                if *remaining > 1 { write!(f, "; {remaining} pods are left") } else { Ok(()) }
            }
            About::Checkpoint { replaced, total } => write!(f, "{replaced} of {total} instances are replaced; go on?"),
            About::NextInstance { instance } => write!(f, "{instance} of {} is replaced; go on with the next one?", self.group),
        }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Wait => "wait",
            Self::Skip => "skip",
            Self::Force => "force",
            Self::Fail => "fail",
            Self::Abort => "abort",
            Self::Continue => "continue",
            Self::Always => "always",
        })
    }
}
