//! Checks of every decision, independent of how it came about. They guard against defects of the planner.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::command::{Action, Command};
use crate::inventory::{CloudGroup, Status};
use crate::planner::Observation;
use crate::spec::Role;
use crate::state::{GroupPhase, GroupRoll, InstancePhase, InstanceRoll, Origin, Outcome, RollState};
use crate::validation::{FailureKind, Leaving, validate};

/// Refuses a decision that would break a promise: more instances of a group down than its settings allow, two
/// control-plane instances at a time or one beside a weak member, a role before its turn, an instance started while the
/// cluster does not validate, or a command without a recorded intent.
pub(crate) fn check(before: &RollState, after: &RollState, commands: &[Command], observation: &Observation<'_>) -> Result<(), String> {
    if after.outcome.is_final() && !commands.is_empty() {
        return Err("commands after the end".to_owned());
    }
    if !commands.is_empty() {
        intents(after, commands)?;
    }
    numbers(after)?;
    order(after)?;
    starts(before, after, observation)
}

/// Every command is backed by what the state says.
fn intents(state: &RollState, commands: &[Command]) -> Result<(), String> {
    let groups: HashMap<&str, &GroupRoll> = state.groups.iter().map(|group| (group.name.as_str(), group)).collect();
    let mut instances: HashMap<(&str, &str), &InstanceRoll> = HashMap::new();
    for group in &state.groups {
        for instance in &group.instances {
            instances.insert((&group.name, &instance.id), instance);
            if let Some(node) = &instance.node {
                instances.insert((&group.name, node), instance);
            }
        }
    }
    for Command { group: name, action } in commands {
        let group = groups.get(name.as_str()).ok_or_else(|| format!("a command for {name}, which is not rolled"))?;
        let of = |subject: &str| instances.get(&(name.as_str(), subject)).copied();
        let intended = match action {
            Action::SuspendRebalance { .. } | Action::ResumeRebalance { .. } => group.holds_rebalance,
            Action::Taint { node } | Action::Untaint { node } => of(node).is_some_and(|instance| instance.held.tainted),
            Action::Cordon { node } => of(node).is_some_and(|instance| instance.held.cordoned && is_preparing(instance)),
            Action::Uncordon { node } => of(node).is_some_and(|instance| instance.held.cordoned && !is_preparing(instance)),
            Action::ExcludeFromLoadBalancers { node } => of(node).is_some_and(|instance| instance.held.excluded && is_preparing(instance)),
            Action::IncludeInLoadBalancers { node } => of(node).is_some_and(|instance| instance.held.excluded && !is_preparing(instance)),
            Action::Deregister { instance, .. } => {
                of(instance).is_some_and(|instance| instance.held.deregistered && is_preparing(instance))
            }
            Action::Register { instance, .. } => of(instance).is_some_and(|instance| instance.held.deregistered && !is_preparing(instance)),
            Action::Evict { .. } => drains(group, false),
            Action::DeletePod { .. } => drains(group, true),
            Action::MarkDetached { instance, .. } => of(instance).is_some_and(|instance| is_detaching(instance, false)),
            Action::Detach { instance, .. } => of(instance).is_some_and(|instance| is_detaching(instance, true)),
            Action::Terminate { instance } => {
                let is_due = |instance: &InstanceRoll| matches!(instance.phase, InstancePhase::Terminating { .. });
                group.phase == GroupPhase::Rolling && of(instance).is_some_and(is_due)
            }
        };
        if !intended {
            return Err(format!("{action:?} of {name} is to be done without a recorded intent"));
        }
    }
    Ok(())
}

fn is_preparing(instance: &InstanceRoll) -> bool {
    matches!(instance.phase, InstancePhase::Preparing { .. })
}

fn is_detaching(instance: &InstanceRoll, is_marked: bool) -> bool {
    matches!(instance.phase, InstancePhase::Detaching { marked, .. } if marked == is_marked)
}

fn drains(group: &GroupRoll, by_force: bool) -> bool {
    let is_draining =
        |instance: &InstanceRoll| matches!(&instance.phase, InstancePhase::Draining(drain) if drain.forced.is_some() == by_force);
    group.instances.iter().any(is_draining)
}

/// Never more at a time than allowed.
fn numbers(state: &RollState) -> Result<(), String> {
    let mut control_plane = 0;
    for group in &state.groups {
        let in_flight = group.in_flight();
        if in_flight > group.concurrency {
            return Err(format!("{in_flight} instances of {} in progress, {} allowed", group.name, group.concurrency));
        }
        let done = |instance: &InstanceRoll| instance.origin != Origin::WarmPool && instance.phase == InstancePhase::Done;
        if group.first_alone && !group.proven && in_flight > 1 && !group.instances.iter().any(done) {
            return Err(format!("{in_flight} instances of {} in progress before the first replacement", group.name));
        }
        if group.role == Role::ControlPlane {
            control_plane += in_flight;
        }
    }
    if control_plane > 1 { Err(format!("{control_plane} control-plane instances in progress")) } else { Ok(()) }
}

/// Roles in their order, and groups of one role one after the other, but for bastions.
fn order(state: &RollState) -> Result<(), String> {
    if matches!(state.outcome, Outcome::Aborted { .. } | Outcome::Unwinding { aborted: true, .. }) {
        return Ok(());
    }
    let mut unfinished = state.groups.iter().filter(|group| !group.is_finished());
    if let Some(first) = unfinished.next()
        && let Some(early) =
            unfinished.find(|group| group.phase != GroupPhase::Waiting && !(group.role == Role::Bastion && first.role == Role::Bastion))
    {
        return Err(format!("{} was started before {} was through", early.name, first.name));
    }
    Ok(())
}

/// What is started is started in a healthy cluster, and beside a complete control plane.
fn starts(before: &RollState, after: &RollState, observation: &Observation<'_>) -> Result<(), String> {
    let options = &after.options;
    if options.cloudonly {
        return Ok(());
    }
    let mut started: Vec<(&GroupRoll, &InstanceRoll)> = Vec::new();
    for (old, new) in before.groups.iter().zip(&after.groups).filter(|(_, new)| new.role != Role::Bastion) {
        let pairs = old.instances.iter().zip(&new.instances);
        let begun = pairs.filter(|(old, new)| old.phase == InstancePhase::Waiting && new.phase.is_in_flight());
        started.extend(begun.filter(|(_, instance)| instance.origin != Origin::WarmPool).map(|(_, instance)| (new, instance)));
    }
    // Terminations that are found out, not decided.
    started.retain(|(_, instance)| instance.phase != InstancePhase::Terminated);
    if started.is_empty() {
        return Ok(());
    }
    let mut gone = BTreeMap::new();
    let pairs = before.groups.iter().zip(&after.groups).flat_map(|(old, new)| old.instances.iter().zip(&new.instances));
    for (old, instance) in pairs {
        // What is only now decided on was looked at as it stood before.
        let is_known = instance.terminated.is_some() || old.phase.is_condemned();
        if instance.phase.is_condemned() && is_known {
            gone.insert(instance.id.clone(), Leaving::Terminated);
        } else if instance.detached.is_some() {
            gone.insert(instance.id.clone(), Leaving::Detached);
        }
    }
    if options.fail_on_validate_error && options.validate_count > 0 {
        let facts =
            observation.kubernetes.map_err(|message| format!("an instance is started while Kubernetes does not answer: {message}"))?;
        let failures = validate(observation.inventory, facts, &gone, 0);
        let baseline: HashSet<(FailureKind, &str)> =
            after.baseline.iter().flatten().map(|failure| (failure.kind, failure.name.as_str())).collect();
        for (group, instance) in &started {
            let stands = failures.iter().find(|failure| {
                let known = baseline.contains(&(failure.kind, failure.name.as_str())) && failure.is_excusable(observation.inventory);
                failure.concerns(&group.name, observation.inventory) && !known
            });
            if let Some(failure) = stands {
                return Err(format!("{} of {} is started although {failure}", instance.id, group.name));
            }
        }
    }
    let Some((_, member)) = started.iter().find(|(group, _)| group.role == Role::ControlPlane) else { return Ok(()) };
    let ready = |id: &str| match observation.kubernetes {
        Ok(facts) => facts.nodes.iter().any(|node| node.ready && node.instance() == id),
        Err(_) => false,
    };
    let groups = observation.inventory.groups.values().filter(|group| group.spec.role == Role::ControlPlane);
    let others = groups.flat_map(CloudGroup::instances).filter(|other| other.id != member.id && !gone.contains_key(&other.id));
    let weak = others.filter(|other| !other.warm && other.status != Status::Detached).find(|other| !other.in_service || !ready(&other.id));
    match weak {
        Some(weak) => Err(format!("control-plane instance {} is started beside {}, which is not well", member.id, weak.id)),
        None => Ok(()),
    }
}
