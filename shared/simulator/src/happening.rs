//! What happened in a world, for people.

use kopsline_rolling::{Command, CommandError, RollEvent};

use crate::world::Moment;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Happening {
    /// When.
    pub at: Moment,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The host did something, with or without effect.
    Command {
        /// What.
        command: Command,
        /// Whether anything changed by it.
        changed: bool,
        /// What the other side said.
        result: Result<(), CommandError>,
    },
    /// The host stored a checkpoint.
    Stored,
    /// The planner told something, which was stored with a checkpoint.
    Told(RollEvent),
    /// The host was killed.
    Killed,
    /// The host found that another one had stored a checkpoint.
    Conflict,
    /// The host could not observe.
    Unobserved(String),
    /// The host waits.
    Waits(String),
    /// The roll ended.
    Ended(String),
    /// A group launched an instance.
    Launched {
        /// The instance.
        instance: String,
        /// Its group.
        group: String,
    },
    /// An instance came in service.
    InService {
        /// The instance.
        instance: String,
        /// Its group.
        group: String,
    },
    /// An instance joined as a node.
    Joined {
        /// The instance.
        instance: String,
        /// Its node.
        node: String,
    },
    /// A node became ready.
    NodeReady {
        /// The node.
        node: String,
    },
    /// A node is not ready any more.
    NodeLost {
        /// The node.
        node: String,
    },
    /// A node was removed.
    NodeRemoved {
        /// The node.
        node: String,
    },
    /// A pod is gone.
    PodGone {
        /// Its namespace and name.
        pod: String,
    },
    /// An instance died by itself.
    Died {
        /// The instance.
        instance: String,
        /// Its group.
        group: String,
    },
    /// `AZRebalance` terminated an instance.
    Rebalanced {
        /// The instance.
        instance: String,
        /// Its group.
        group: String,
    },
    /// An autoscaler enlarged a group.
    Grew {
        /// The group.
        group: String,
    },
    /// The Kubernetes API went away.
    ApiDown,
    /// It came back.
    ApiUp,
    /// The host's client certificate expired.
    CertificateExpired,
}
