//! What people order while a rolling update runs: pause, resume, abort, and answers to its questions.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::approval::Decision;

/// The orders' document in the run's record.
pub const DOCUMENT: &str = "roll/orders.json";

/// An order to a rolling update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Begin nothing new; what was begun is finished.
    Pause,
    /// Go on.
    Resume,
    /// Begin nothing new, give back what was not replaced, and end.
    Abort,
}

impl Order {
    /// The order in the past, for messages.
    pub fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Resume => "resumed",
            Self::Abort => "aborted",
        }
    }
}

/// An order with its circumstances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// What was ordered.
    pub order: Order,
    /// Who ordered it, as far as the caller told.
    pub by: Option<String>,
    /// Their words.
    pub comment: Option<String>,
    /// When.
    pub at: Timestamp,
    /// The `approve` execution that brought it; `CloudTrail` knows who started that.
    pub execution: String,
}

/// An answer to a question of the roll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// What was decided.
    pub decision: Decision,
    /// Who decided it, as far as the caller told.
    pub by: Option<String>,
}

/// All orders of a run's rolling update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollOrders {
    /// Whether nothing new may be begun.
    #[serde(default)]
    pub paused: bool,
    /// Whether the roll must end; for good.
    #[serde(default)]
    pub aborted: bool,
    /// Answers to the roll's questions, by the question's id.
    #[serde(default)]
    pub answers: BTreeMap<String, Answered>,
    /// Every order that changed something, oldest first.
    #[serde(default)]
    pub history: Vec<Ordered>,
}

impl RollOrders {
    /// Takes an order. One that changes nothing leaves no trace, so that repeating it is harmless.
    #[must_use]
    pub fn take(mut self, ordered: Ordered) -> Self {
        let before = (self.paused, self.aborted);
        match ordered.order {
            Order::Pause => self.paused = true,
            Order::Resume => self.paused = false,
            Order::Abort => self.aborted = true,
        }
        if before != (self.paused, self.aborted) {
            self.history.push(ordered);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(order: Order, second: i64) -> Ordered {
        Ordered { order, by: Some("ann".into()), comment: None, at: Timestamp::from_second(second).unwrap(), execution: "arn".into() }
    }

    #[test]
    fn orders_are_taken_once_and_an_abort_stays() {
        let orders = RollOrders::default().take(ordered(Order::Resume, 1));
        assert_eq!(orders, RollOrders::default(), "nothing to resume");
        let orders = orders.take(ordered(Order::Pause, 2)).take(ordered(Order::Pause, 3)).take(ordered(Order::Abort, 4));
        let orders = orders.take(ordered(Order::Resume, 5));
        assert!(orders.aborted && !orders.paused);
        let told: Vec<_> = orders.history.iter().map(|ordered| (ordered.order, ordered.at.as_second())).collect();
        assert_eq!(told, [(Order::Pause, 2), (Order::Abort, 4), (Order::Resume, 5)]);
    }
}
