//! What happened, in lines for people.

use std::fmt;

use crate::command::Action;
use crate::event::{RollEvent, What};
use crate::state::LeftoverReason;

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SuspendRebalance { auto_scaling_group } => write!(f, "suspend AZRebalance of {auto_scaling_group}"),
            Self::ResumeRebalance { auto_scaling_group } => write!(f, "resume AZRebalance of {auto_scaling_group}"),
            Self::Taint { node } => write!(f, "taint node {node}"),
            Self::Untaint { node } => write!(f, "untaint node {node}"),
            Self::Cordon { node } => write!(f, "cordon node {node}"),
            Self::Uncordon { node } => write!(f, "uncordon node {node}"),
            Self::ExcludeFromLoadBalancers { node } => write!(f, "exclude node {node} from load balancers"),
            Self::IncludeInLoadBalancers { node } => write!(f, "include node {node} in load balancers"),
            Self::Deregister { instance, .. } => write!(f, "deregister {instance} from its load balancers"),
            Self::Register { instance, .. } => write!(f, "register {instance} with its load balancers"),
            Self::Evict { pod } => write!(f, "evict pod {pod}"),
            Self::DeletePod { pod } => write!(f, "delete pod {pod}"),
            Self::MarkDetached { instance, .. } => write!(f, "tag {instance} as detached"),
            Self::Detach { auto_scaling_group, instance } => write!(f, "detach {instance} from {auto_scaling_group}"),
            Self::Terminate { instance } => write!(f, "terminate {instance}"),
        }
    }
}

impl RollEvent {
    /// A short word for what happened, as audit trails have it.
    pub fn word(&self) -> &'static str {
        match &self.what {
            What::Effect { .. } => "effect",
            What::Refused { .. } => "refused",
            What::Baseline { .. } => "baseline",
            What::GroupStarted { .. } => "group-started",
            What::ValidationPassed { .. } => "validated",
            What::ValidationFailed { .. } => "not-validated",
            What::ValidationIgnored { .. } => "validation-ignored",
            What::Drained => "drained",
            What::DrainIgnored { .. } => "drain-ignored",
            What::Terminated => "terminated",
            What::Vanished => "vanished",
            What::Joined { .. } => "joined",
            What::Skipped { .. } => "skipped",
            What::Asked { .. } => "asked",
            What::Decided { .. } => "decided",
            What::Withdrawn { .. } => "withdrawn",
            What::GroupEnded { .. } => "group-ended",
            What::Unwinding { .. } => "unwinding",
            What::Ended { .. } => "ended",
        }
    }
}

impl fmt::Display for RollEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(group) = &self.group {
            write!(f, "{group}: ")?;
        }
        let subject = self.node.as_deref().or(self.instance.as_deref()).unwrap_or("the instance");
        let instance = self.instance.as_deref().unwrap_or("the instance");
        match &self.what {
            What::Effect { effect } => effect.fmt(f),
            What::Refused { effect, message, .. } => write!(f, "could not {effect}: {message}"),
            What::Baseline { failures } if failures.is_empty() => f.write_str("the cluster is healthy"),
            What::Baseline { failures } => {
                write!(f, "{} failures were there before and do not block: ", failures.len())?;
                let texts: Vec<_> = failures.iter().map(|failure| failure.message.as_str()).collect();
                f.write_str(&texts.join("; "))
            }
            What::GroupStarted { instances: 1 } => f.write_str("1 instance to replace"),
            What::GroupStarted { instances } => write!(f, "{instances} instances to replace"),
            What::ValidationPassed { passed, wanted } => write!(f, "the cluster validated, {passed} of {wanted}"),
            What::ValidationFailed { failures } => write!(f, "the cluster does not validate: {}", failures.join("; ")),
            What::ValidationIgnored { failures } => {
                write!(f, "the cluster did not validate in time, going on as failOnValidateError says: {}", failures.join("; "))
            }
            What::Drained => write!(f, "{subject} is drained"),
            What::DrainIgnored { error } => write!(f, "{subject} was not drained and is terminated anyway: {error}"),
            What::Terminated => write!(f, "{instance} is terminated"),
            What::Vanished => write!(f, "{instance} went away before its turn"),
            What::Joined { by } => write!(f, "{by} took the place of {instance}"),
            What::Skipped { why } => write!(f, "{subject} stays as it was: {why}"),
            What::Asked { question, text } => write!(f, "question {question}: {text}"),
            What::Decided { question, choice, by } if by.is_empty() => write!(f, "question {question} was decided: {choice}"),
            What::Decided { question, choice, by } => write!(f, "question {question} was decided by {by}: {choice}"),
            What::Withdrawn { question } => write!(f, "question {question} has solved itself"),
            What::GroupEnded { error: None } => f.write_str("through"),
            What::GroupEnded { error: Some(error) } => write!(f, "stopped: {error}"),
            What::Unwinding { reason } => write!(f, "gives back what was not replaced: {reason}"),
            What::Ended { outcome } => write!(f, "the rolling update ended: {outcome}"),
        }
    }
}

impl fmt::Display for LeftoverReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Late => "launched from an old template meanwhile",
            Self::Disabled => "drainAndTerminate is false",
            Self::NotApproved => "not in the approved preview",
            Self::Skipped => "skipped",
        })
    }
}
