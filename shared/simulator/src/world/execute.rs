//! What the host's commands do. Each may be executed again: the second time changes nothing.

use jiff::SignedDuration;
use kopsline_rolling::{Action, Command, CommandError, PodRef, Refusal};

use super::{Balancer, Event, Kind, Phase, World, place};
use crate::arena::{GroupId, InstanceId, Key, NodeId, PodId};
use crate::happening::What;

/// How long the load balancer, EC2 or Auto Scaling says no after it said no.
const THROTTLED: SignedDuration = SignedDuration::from_secs(10);
const REBALANCE: &str = "AZRebalance";

/// What became of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Executed {
    /// What the host is told.
    pub result: Result<(), CommandError>,
    /// What changed, which the host may not be told.
    pub effect: Option<Effect>,
}

/// A change that a command made.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// `AZRebalance` was suspended.
    Suspended(GroupId),
    /// It was resumed.
    Resumed(GroupId),
    /// A node was tainted.
    Tainted(NodeId),
    /// The taint was taken away.
    Untainted(NodeId),
    /// A node was made unschedulable.
    Cordoned(NodeId),
    /// It was made schedulable.
    Uncordoned(NodeId),
    /// A node was excluded from load balancers.
    Excluded(NodeId),
    /// It was included again.
    Included(NodeId),
    /// An instance is being taken out of its load balancers.
    Deregistered(InstanceId),
    /// It was put back.
    Registered(InstanceId),
    /// A pod was evicted.
    Evicted(PodId),
    /// A pod was deleted past its budgets.
    Deleted(PodId),
    /// An instance was tagged as detached.
    Marked(InstanceId),
    /// An instance was detached.
    Detached(InstanceId),
    /// An instance was terminated.
    Terminated {
        /// The instance.
        instance: InstanceId,
        /// Pods on it that a drain would have evicted.
        left: Vec<PodId>,
    },
}

type Outcome = Result<Option<Effect>, CommandError>;

fn refuse(kind: Refusal, message: &str) -> Outcome {
    Err(CommandError { kind, message: message.to_owned() })
}

fn is_kubernetes(action: &Action) -> bool {
    match action {
        Action::Taint { .. }
        | Action::Untaint { .. }
        | Action::Cordon { .. }
        | Action::Uncordon { .. }
        | Action::ExcludeFromLoadBalancers { .. }
        | Action::IncludeInLoadBalancers { .. }
        | Action::Evict { .. }
        | Action::DeletePod { .. } => true,
        Action::SuspendRebalance { .. }
        | Action::ResumeRebalance { .. }
        | Action::Deregister { .. }
        | Action::Register { .. }
        | Action::MarkDetached { .. }
        | Action::Detach { .. }
        | Action::Terminate { .. } => false,
    }
}

impl World {
    /// Executes a command, faults included.
    pub fn execute(&mut self, command: &Command) -> Executed {
        let mut executed = match self.reach(&command.action).and_then(|()| self.perform(&command.action)) {
            Ok(effect) => Executed { result: Ok(()), effect },
            Err(error) => Executed { result: Err(error), effect: None },
        };
        // A drain of connections has begun, and takes its time.
        if let Some(Effect::Deregistered(instance)) = executed.effect
            && self.instances[instance].balancer == Balancer::Draining
        {
            executed.result = Err(CommandError { kind: Refusal::Pending, message: "connections are being drained".to_owned() });
        }
        if executed.result.is_ok() && self.faulty() && self.strikes(self.faults.answer_lost) {
            executed.result = Err(CommandError { kind: Refusal::Transient, message: "the connection was reset".to_owned() });
        }
        if executed.effect.is_some() {
            self.changed();
            self.settle();
        }
        let (changed, result) = (executed.effect.is_some(), executed.result.clone());
        self.tell(|_| What::Command { command: command.clone(), changed, result });
        executed
    }

    /// Whether a call gets through.
    fn reach(&mut self, action: &Action) -> Result<(), CommandError> {
        let passing = |message: &str| Err(CommandError { kind: Refusal::Transient, message: message.to_owned() });
        if is_kubernetes(action)
            && let Some(silent) = self.silent()
        {
            return passing(silent);
        }
        if !self.faulty() {
            return Ok(());
        }
        if self.strikes(self.faults.refused) {
            return passing("InternalError");
        }
        if self.now < self.throttled_until {
            return passing("RequestLimitExceeded");
        }
        if self.strikes(self.faults.throttled) {
            self.throttled_until = self.now.after(THROTTLED);
            return passing("RequestLimitExceeded");
        }
        Ok(())
    }

    fn perform(&mut self, action: &Action) -> Outcome {
        match action {
            Action::SuspendRebalance { auto_scaling_group } => Ok(self
                .auto_scaling_group(auto_scaling_group)
                .and_then(|group| self.groups[group].suspended.insert(REBALANCE.to_owned()).then_some(Effect::Suspended(group)))),
            Action::ResumeRebalance { auto_scaling_group } => Ok(self.auto_scaling_group(auto_scaling_group).and_then(|group| {
                self.unbalanced.insert(group);
                self.groups[group].suspended.remove(REBALANCE).then_some(Effect::Resumed(group))
            })),
            Action::Taint { node } => {
                Ok(self.node(node).filter(|&id| !std::mem::replace(&mut self.nodes[id].tainted, true)).map(Effect::Tainted))
            }
            Action::Untaint { node } => {
                Ok(self.node(node).filter(|&id| std::mem::take(&mut self.nodes[id].tainted)).map(Effect::Untainted))
            }
            Action::Cordon { node } => {
                Ok(self.node(node).filter(|&id| !std::mem::replace(&mut self.nodes[id].cordoned, true)).map(Effect::Cordoned))
            }
            Action::Uncordon { node } => {
                let changed = self.node(node).filter(|&id| std::mem::take(&mut self.nodes[id].cordoned));
                self.schedulable |= changed.is_some();
                Ok(changed.map(Effect::Uncordoned))
            }
            Action::ExcludeFromLoadBalancers { node } => {
                Ok(self.node(node).filter(|&id| !std::mem::replace(&mut self.nodes[id].excluded, true)).map(Effect::Excluded))
            }
            Action::IncludeInLoadBalancers { node } => {
                Ok(self.node(node).filter(|&id| std::mem::take(&mut self.nodes[id].excluded)).map(Effect::Included))
            }
            Action::Deregister { instance, .. } => self.deregister(instance),
            Action::Register { instance, .. } => Ok(self.register(instance)),
            Action::Evict { pod } => self.evict(pod),
            Action::DeletePod { pod } => Ok(self.named(pod).map(|id| {
                self.delete_pod(id);
                Effect::Deleted(id)
            })),
            Action::MarkDetached { instance, .. } => {
                Ok(self.living(instance).filter(|&id| !std::mem::replace(&mut self.instances[id].marked, true)).map(Effect::Marked))
            }
            Action::Detach { instance, .. } => self.detach(instance),
            Action::Terminate { instance } => self.terminate(instance),
        }
    }

    fn auto_scaling_group(&self, name: &str) -> Option<GroupId> {
        self.groups.iter().find(|(_, group)| group.auto_scaling_group == name).map(|(id, _)| id)
    }

    fn living(&self, id: &str) -> Option<InstanceId> {
        self.instance(id).filter(|&id| self.instances[id].alive())
    }

    /// The pod that a command names, unless it is gone.
    pub fn pod(&self, wanted: &PodRef) -> Option<PodId> {
        let place: u32 = wanted.uid.strip_prefix("uid-")?.parse().ok()?;
        let id = PodId::new(place);
        ((place as usize) < self.pods.len() && self.live_pods.contains(&id)).then_some(id)
    }

    /// The pod that a command names, unless it is gone or going.
    fn named(&self, wanted: &PodRef) -> Option<PodId> {
        self.pod(wanted).filter(|id| self.pods[*id].deleting.is_none())
    }

    fn deregister(&mut self, instance: &str) -> Outcome {
        let Some(id) = self.living(instance) else { return Ok(None) };
        match self.instances[id].balancer {
            Balancer::Out => Ok(None),
            Balancer::Draining => refuse(Refusal::Pending, "connections are being drained"),
            Balancer::In => {
                if self.groups[self.instances[id].group].refuses.contains(&Refused::Deregister) {
                    return refuse(Refusal::Permanent, "AccessDenied: DeregisterTargets");
                }
                let takes = self.takes(self.pace.deregister, place(id), 7);
                self.instances[id].balancer = Balancer::Draining;
                self.later(takes, Event::Drained(id));
                Ok(Some(Effect::Deregistered(id)))
            }
        }
    }

    fn register(&mut self, instance: &str) -> Option<Effect> {
        let id = self.living(instance)?;
        let balanced = self.groups[self.instances[id].group].balanced;
        let member = &mut self.instances[id];
        if !balanced || !member.attached || member.balancer == Balancer::In {
            return None;
        }
        member.balancer = Balancer::In;
        Some(Effect::Registered(id))
    }

    fn evict(&mut self, pod: &PodRef) -> Outcome {
        let Some(id) = self.named(pod) else { return Ok(None) };
        let found = &self.pods[id];
        let workload = &self.workloads[found.workload];
        // Pods that do not run have no budget to respect.
        if found.phase == Phase::Running {
            match workload.budgets.as_slice() {
                [] => {}
                [budget] => {
                    let says = self.allowance(*budget);
                    let sick_beside_healthy = !found.ready && says.desired > 0 && says.healthy >= says.desired;
                    if says.allowed <= 0 && !sick_beside_healthy {
                        return refuse(Refusal::Blocked, "Cannot evict pod as it would violate the pod's disruption budget.");
                    }
                }
                _ => return refuse(Refusal::Transient, "This pod has more than one PodDisruptionBudget"),
            }
        }
        self.delete_pod(id);
        Ok(Some(Effect::Evicted(id)))
    }

    fn detach(&mut self, instance: &str) -> Outcome {
        let Some(id) = self.living(instance) else { return Ok(None) };
        let group = self.instances[id].group;
        if !self.instances[id].attached {
            return Ok(None);
        }
        if self.groups[group].refuses.contains(&Refused::Detach) {
            return refuse(Refusal::Permanent, "ValidationError: the instance is protected");
        }
        let member = &mut self.instances[id];
        (member.attached, member.balancer) = (false, Balancer::Out);
        self.unbalanced.insert(group);
        self.changed();
        self.launch(group);
        Ok(Some(Effect::Detached(id)))
    }

    fn terminate(&mut self, instance: &str) -> Outcome {
        let Some(id) = self.living(instance) else { return Ok(None) };
        if self.instances[id].protected {
            return refuse(Refusal::Permanent, "OperationNotPermitted: the instance may not be terminated");
        }
        let left = self.instances[id].node.map(|node| self.undrained(node)).unwrap_or_default();
        self.die(id, true);
        Ok(Some(Effect::Terminated { instance: id, left }))
    }

    /// Pods of a node that a drain would have evicted.
    pub fn undrained(&self, node: NodeId) -> Vec<PodId> {
        let evictable = |pod: &PodId| {
            let pod = &self.pods[*pod];
            self.workloads[pod.workload].plan.kind.is_evictable() && pod.phase != Phase::Succeeded
        };
        self.nodes[node].pods.iter().copied().filter(evictable).collect()
    }

    /// Whether a pod's controller makes another one in its place.
    pub fn is_managed(&self, pod: PodId) -> bool {
        !matches!(self.workloads[self.pods[pod].workload].plan.kind, Kind::Bare | Kind::Job)
    }
}

/// What a group does not let happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// To detach an instance.
    Detach,
    /// To take an instance out of its load balancers.
    Deregister,
}
