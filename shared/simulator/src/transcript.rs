//! What happened, as a text that people read.

use std::fmt::Write as _;

use kopsline_rolling::{Action, Refusal};

use crate::happening::{Happening, What};
use crate::world::Moment;

/// A transcript: a line for each happening, each with the time since the beginning.
pub fn transcript(happenings: &[Happening]) -> String {
    let mut text = String::new();
    let mut waited = None;
    for Happening { at, what } in happenings {
        // A roll that polls says the same again and again.
        if let What::Waits(reason) = what {
            if waited.as_ref() == Some(reason) {
                continue;
            }
            waited = Some(reason.clone());
        }
        if matches!(what, What::Stored | What::Told(_)) {
            continue;
        }
        let _ = writeln!(text, "{} {what}", clock(*at));
    }
    text
}

pub(crate) fn clock(at: Moment) -> String {
    let seconds = at.since(Moment::default()).as_secs();
    format!("{:>3}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command { command, changed, result } => {
                write!(f, "{}: {}", command.group, Words(&command.action))?;
                match (changed, result) {
                    (true, Ok(())) => Ok(()),
                    (false, Ok(())) => f.write_str(" (nothing to do)"),
                    (_, Err(error)) if error.kind == Refusal::Pending => write!(f, " ... {}", error.message),
                    (true, Err(error)) => write!(f, " (done, but the answer was lost: {})", error.message),
                    (false, Err(error)) => write!(f, " REFUSED: {}", error.message),
                }
            }
            Self::Stored => f.write_str("host: stored"),
            Self::Told(event) => event.fmt(f),
            Self::Killed => f.write_str("host: KILLED"),
            Self::Conflict => f.write_str("host: another one was first"),
            Self::Unobserved(why) => write!(f, "host: sees nothing: {why}"),
            Self::Waits(reason) => write!(f, "  waits for {reason}"),
            Self::Ended(outcome) => write!(f, "ended: {outcome}"),
            Self::Launched { instance, group } => write!(f, "    {group} launches {instance}"),
            Self::InService { instance, group } => write!(f, "    {instance} of {group} is in service"),
            Self::Joined { instance, node } => write!(f, "    {instance} joins as {node}"),
            Self::NodeReady { node } => write!(f, "    {node} is ready"),
            Self::NodeLost { node } => write!(f, "    {node} is not ready any more"),
            Self::NodeRemoved { node } => write!(f, "    {node} is removed"),
            Self::PodGone { pod } => write!(f, "    {pod} is gone"),
            Self::Died { instance, group } => write!(f, "    {instance} of {group} DIES"),
            Self::Rebalanced { instance, group } => write!(f, "    AZRebalance TERMINATES {instance} of {group}"),
            Self::Grew { group } => write!(f, "    {group} grows by one"),
            Self::ApiDown => f.write_str("    the Kubernetes API goes away"),
            Self::ApiUp => f.write_str("    the Kubernetes API is back"),
            Self::CertificateExpired => f.write_str("    the client certificate expires"),
        }
    }
}

struct Words<'a>(&'a Action);

impl std::fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Action::SuspendRebalance { auto_scaling_group } => write!(f, "suspend AZRebalance of {auto_scaling_group}"),
            Action::ResumeRebalance { auto_scaling_group } => write!(f, "resume AZRebalance of {auto_scaling_group}"),
            Action::Taint { node } => write!(f, "taint {node}"),
            Action::Untaint { node } => write!(f, "untaint {node}"),
            Action::Cordon { node } => write!(f, "cordon {node}"),
            Action::Uncordon { node } => write!(f, "uncordon {node}"),
            Action::ExcludeFromLoadBalancers { node } => write!(f, "exclude {node} from load balancers"),
            Action::IncludeInLoadBalancers { node } => write!(f, "include {node} in load balancers"),
            Action::Deregister { instance, .. } => write!(f, "deregister {instance}"),
            Action::Register { instance, .. } => write!(f, "register {instance}"),
            Action::Evict { pod } => write!(f, "evict {pod}"),
            Action::DeletePod { pod } => write!(f, "delete {pod}"),
            Action::MarkDetached { instance, .. } => write!(f, "tag {instance} as detached"),
            Action::Detach { instance, .. } => write!(f, "detach {instance}"),
            Action::Terminate { instance } => write!(f, "terminate {instance}"),
        }
    }
}
