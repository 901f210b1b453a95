//! The decision: given what is recorded and what is seen, what to do next.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::command::{Action, Command, CommandResult, Refusal};
use crate::control::Control;
use crate::event::RollEvent;
use crate::invariants;
use crate::inventory::{CloudGroup, Instance, Inventory};
use crate::kubernetes::ClusterFacts;
use crate::options::RollOptions;
use crate::spec::{Manager, Role};
use crate::state::{
    Gate, GroupPhase, GroupRoll, InstancePhase, InstanceRoll, Leftover, LeftoverReason, Origin, Outcome, Replaced, RollState,
};

/// How often to look whether a group is complete again: after as long as it has been waited for already, within these
/// bounds. kOps validates every 30 s; one look costs two or three calls for the whole cluster.
const SHORTEST_POLL: SignedDuration = SignedDuration::from_secs(1);
const LONGEST_POLL: SignedDuration = SignedDuration::from_secs(10);
/// First pause before a failed call is decided on again; it doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: SignedDuration = SignedDuration::from_secs(5);
const MAX_BACKOFF: SignedDuration = SignedDuration::from_secs(60);

/// What the host sees.
#[derive(Debug, Clone, Copy)]
pub struct Observation<'a> {
    /// The time.
    pub now: Timestamp,
    /// The cloud. It may be as old as the last commands: those of them that succeeded are known from `results`.
    pub inventory: &'a Inventory,
    /// The Kubernetes API, or why it does not answer; not looked at under `cloudonly`.
    pub kubernetes: Result<&'a ClusterFacts, &'a str>,
    /// The results of the commands of the last decision; none if that decision was another process's. With results the
    /// rest may be as old as they are, so nothing is validated by it.
    pub results: &'a [CommandResult],
    /// What people want.
    pub control: &'a Control,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The state to store, before any command is executed.
    pub state: RollState,
    /// What to execute then; ask again at once with the results.
    pub commands: Vec<Command>,
    /// Without commands: when to look and ask again. `None` too when the roll has ended.
    pub wait: Option<Until>,
    /// What happened, for the record: what the commands will do, and what was learnt.
    pub events: Vec<RollEvent>,
}

/// When to look again, and what for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Until {
    /// Not before this.
    pub at: Timestamp,
    /// What the roll waits for.
    pub reason: WaitReason,
}

/// What a roll waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wait", rename_all = "snake_case")]
pub enum WaitReason {
    /// The interval after a termination.
    Interval {
        /// The instance group.
        group: String,
        /// The terminated instance.
        instance: String,
    },
    /// The group has too few instances in service.
    InService {
        /// The instance group that lacks instances.
        group: String,
        /// How many are in service.
        in_service: usize,
        /// How many should be.
        target: usize,
        /// When the roll gives up.
        deadline: Timestamp,
    },
    /// The group is not in the cloud's answer.
    Missing {
        /// The instance group.
        group: String,
        /// When the roll gives up.
        deadline: Timestamp,
    },
    /// A call failed and will be made again.
    Retry {
        /// The instance group.
        group: String,
        /// The instance.
        instance: String,
    },
}

impl std::fmt::Display for WaitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interval { group, instance } => write!(f, "the interval after terminating {instance} of {group}"),
            Self::InService { group, in_service, target, .. } => {
                write!(f, "{group} to be complete: {in_service} of {target} instances in service")
            }
            Self::Missing { group, .. } => write!(f, "{group} to appear in the cloud"),
            Self::Retry { group, instance } => write!(f, "another attempt to terminate {instance} of {group}"),
        }
    }
}

/// Decides what to do next.
///
/// The order is kOps': all bastion groups side by side, then control-plane groups, API servers and nodes one group after
/// the other by name. A bastion or control-plane instance that cannot be replaced stops the roll; one of another group
/// stops its group only, and the roll fails at its end. A group that does not become complete in time stops the roll.
pub fn next(state: &RollState, observation: &Observation<'_>) -> Decision {
    if state.outcome != Outcome::Running {
        return Decision { state: state.clone(), commands: Vec::new(), wait: None, events: Vec::new() };
    }
    let mut next = state.clone();
    let mut commands = Vec::new();
    for group in &mut next.groups {
        absorb(group, &state.options, observation);
    }
    let mut wait = None;
    match advance(&mut next, observation, &mut commands) {
        Ok(Turn::Busy(until)) => wait = until.filter(|_| commands.is_empty()),
        Ok(Turn::Over) => finish(&mut next, observation),
        Err(Abort(reason)) => {
            commands.clear();
            fail(&mut next, observation.now, reason);
        }
    }
    match invariants::check(&next, &commands) {
        Ok(()) => Decision { state: next, commands, wait, events: Vec::new() },
        Err(violation) => {
            let mut state = state.clone();
            fail(&mut state, observation.now, format!("stopped by a safety check, which is a defect of Kopsline: {violation}"));
            Decision { state, commands: Vec::new(), wait: None, events: Vec::new() }
        }
    }
}

/// The whole roll must stop.
struct Abort(String);

enum Turn {
    /// Some group is being rolled; what it waits for unless there are commands.
    Busy(Option<Until>),
    /// All groups are through.
    Over,
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn fail(state: &mut RollState, now: Timestamp, reason: String) {
    state.finished = Some(now);
    state.outcome = Outcome::Failed { reason };
}

/// Records what became of the last commands, and what is seen of the group's instances.
fn absorb(group: &mut GroupRoll, options: &RollOptions, observation: &Observation<'_>) {
    let now = observation.now;
    let cloud = observation.inventory.groups.get(&group.name);
    let present: Option<BTreeSet<&str>> = cloud.map(|cloud| cloud.instances().map(|instance| instance.id.as_str()).collect());
    // A group that is missing altogether says nothing about its instances.
    let is_gone = |id: &str| present.as_ref().is_some_and(|present| !present.contains(id));
    let interval = options.interval(group.role);
    let mut lost_one = false;
    for instance in &mut group.instances {
        if let InstancePhase::Terminating { attempts, .. } = instance.phase {
            let result = observation
                .results
                .iter()
                .find(|result| matches!(&result.command.action, Action::Terminate { instance: id } if *id == instance.id));
            match result.map(|result| &result.result) {
                Some(Ok(())) => terminated(instance, now),
                Some(Err(error))
                    if error.kind != Refusal::Permanent
                        && now.duration_since(instance.started.unwrap_or(now)) < options.validation_timeout =>
                {
                    instance.phase = InstancePhase::Terminating { attempts, not_before: later(now, backoff(attempts)) };
                }
                Some(Err(error)) => instance.phase = InstancePhase::Failed { error: error.message.clone() },
                None if is_gone(&instance.id) => terminated(instance, now),
                None => {}
            }
        }
        match instance.phase {
            // It had its turn before, and the call seems to have been carried out.
            InstancePhase::Waiting if is_gone(&instance.id) && instance.started.is_some() => terminated(instance, now),
            InstancePhase::Waiting if is_gone(&instance.id) => {
                instance.phase = InstancePhase::Vanished;
                instance.gone = Some(now);
                lost_one = true;
            }
            InstancePhase::Terminated if now.duration_since(instance.terminated.unwrap_or(now)) >= interval => {
                instance.phase = InstancePhase::Done;
                lost_one |= instance.origin != Origin::WarmPool;
            }
            _ => {}
        }
        if instance.phase.is_condemned() && instance.gone.is_none() && is_gone(&instance.id) {
            instance.gone = Some(now);
        }
    }
    if lost_one && options.wait_for_replacement && group.phase == GroupPhase::Rolling {
        group.gate.get_or_insert(Gate::cloudonly(now));
    }
    if let Some(cloud) = cloud {
        match_replacements(group, cloud, now);
    }
}

fn terminated(instance: &mut InstanceRoll, now: Timestamp) {
    instance.terminated = Some(now);
    // kOps does not pause between the instances of a warm pool: they serve nobody.
    instance.phase = if instance.origin == Origin::WarmPool { InstancePhase::Done } else { InstancePhase::Terminated };
}

fn backoff(attempts: u32) -> SignedDuration {
    FIRST_BACKOFF.saturating_mul(2_i32.saturating_pow(attempts.saturating_sub(1))).min(MAX_BACKOFF)
}

/// Gives every new instance in service to the oldest loss of its zone, else to the oldest loss.
fn match_replacements(group: &mut GroupRoll, cloud: &CloudGroup, now: Timestamp) {
    let known: BTreeSet<&str> = group
        .instances
        .iter()
        .flat_map(|instance| std::iter::once(instance.id.as_str()).chain(instance.replaced.as_ref().map(|replaced| replaced.by.as_str())))
        .chain(group.bystanders.iter().map(String::as_str))
        .collect();
    let new: Vec<_> = cloud.instances().filter(|instance| instance.in_service && !known.contains(instance.id.as_str())).collect();
    for arrival in new {
        let lost = |instance: &&mut InstanceRoll| {
            instance.replaced.is_none()
                && (instance.terminated.is_some() || instance.phase == InstancePhase::Vanished)
                && !matches!(instance.origin, Origin::WarmPool | Origin::Detached)
        };
        let oldest = |instance: &&mut InstanceRoll| instance.terminated.or(instance.gone);
        let found = match group.instances.iter_mut().filter(lost).filter(|instance| instance.zone == arrival.zone).min_by_key(oldest) {
            Some(found) => Some(found),
            None => group.instances.iter_mut().filter(lost).min_by_key(oldest),
        };
        match found {
            Some(found) => found.replaced = Some(Replaced { by: arrival.id.clone(), at: now }),
            None => {
                group.bystanders.insert(arrival.id.clone());
            }
        }
    }
}

/// Steps the groups whose turn it is.
fn advance(state: &mut RollState, observation: &Observation<'_>, commands: &mut Vec<Command>) -> Result<Turn, Abort> {
    let options = state.options.clone();
    let mut service = Service::new(state, observation.inventory);
    while let Some(first) = state.groups.iter().position(|group| !group.is_finished()) {
        let role = state.groups.get(first).map_or(Role::Node, |group| group.role);
        let side_by_side = if role == Role::Bastion { usize::MAX } else { 1 };
        let mut wait: Option<Until> = None;
        let mut busy = false;
        let turn = state.groups.iter_mut().filter(|group| group.role == role && !group.is_finished()).take(side_by_side);
        for group in turn {
            let step = Step { options: &options, now: observation.now, inventory: observation.inventory };
            if let Some(until) = step.group(group, &mut service, commands)? {
                wait = Some(earliest(wait, until));
            }
            busy |= !group.is_finished();
        }
        if busy {
            return Ok(Turn::Busy(wait));
        }
        stop_after_failure(state, role)?;
    }
    Ok(Turn::Over)
}

/// A bastion that failed stops the roll once all bastions are through; a control-plane group stops it at once.
fn stop_after_failure(state: &RollState, role: Role) -> Result<(), Abort> {
    let what = match role {
        Role::Bastion => "bastion",
        Role::ControlPlane => "control plane",
        Role::ApiServer | Role::Node => return Ok(()),
    };
    let errors = errors(state.groups.iter().filter(|group| group.role == role));
    if errors.is_empty() { Ok(()) } else { Err(Abort(format!("{what} not replaced, stopping the rolling update: {errors}"))) }
}

fn errors<'a>(groups: impl Iterator<Item = &'a GroupRoll>) -> String {
    let errors: Vec<_> = groups
        .filter_map(|group| match &group.phase {
            GroupPhase::Failed { error } => Some(format!("instance group {:?}: {error}", group.name)),
            _ => None,
        })
        .collect();
    errors.join("; ")
}

fn finish(state: &mut RollState, observation: &Observation<'_>) {
    let errors = errors(state.groups.iter());
    if !errors.is_empty() {
        return fail(state, observation.now, errors);
    }
    let condemned: BTreeSet<&str> = state
        .groups
        .iter()
        .flat_map(|group| &group.instances)
        .filter(|instance| instance.phase.is_condemned())
        .map(|instance| instance.id.as_str())
        .collect();
    let selected = state.options.selection.resolve(&observation.inventory.cluster).unwrap_or_default();
    let still_need_update = observation
        .inventory
        .groups
        .values()
        .filter(|group| selected.contains(&group.spec.name))
        .flat_map(|group| {
            group.need_update.iter().map(|instance| Leftover {
                group: group.spec.name.clone(),
                instance: instance.id.clone(),
                why: LeftoverReason::Late,
            })
        })
        .filter(|leftover| !condemned.contains(leftover.instance.as_str()))
        .collect();
    state.finished = Some(observation.now);
    state.outcome = Outcome::Done { still_need_update };
}

/// How many instances serve, leaving out those that the roll has condemned: the cloud may list them for a while.
struct Service<'a> {
    inventory: &'a Inventory,
    condemned: BTreeSet<String>,
}

/// A group with fewer instances in service than it should have.
struct Shortfall {
    group: String,
    in_service: usize,
    target: usize,
}

enum Incomplete {
    Missing(String),
    Short(Shortfall),
}

impl<'a> Service<'a> {
    fn new(state: &RollState, inventory: &'a Inventory) -> Self {
        let condemned = state.groups.iter().flat_map(|group| &group.instances).filter(|instance| instance.phase.is_condemned());
        Self { inventory, condemned: condemned.map(|instance| instance.id.clone()).collect() }
    }

    fn serves(&self, instance: &Instance) -> bool {
        instance.in_service && !self.condemned.contains(&instance.id)
    }

    /// The groups that must be complete before `group` loses an instance: for the control plane all groups of its role,
    /// since their members form one etcd cluster.
    fn relevant(&self, group: &GroupRoll) -> Result<Vec<&'a CloudGroup>, Incomplete> {
        let own = self.inventory.groups.get(&group.name).ok_or_else(|| Incomplete::Missing(group.name.clone()))?;
        Ok(if group.role == Role::ControlPlane {
            self.inventory.groups.values().filter(|other| other.spec.role == Role::ControlPlane).collect()
        } else {
            vec![own]
        })
    }

    fn shortfall(&self, group: &CloudGroup) -> Option<Shortfall> {
        // The size of a Karpenter group is not known here, so its replacements cannot be awaited.
        let target = if group.spec.manager == Manager::Karpenter { 0 } else { group.target as usize };
        let in_service = group.instances().filter(|instance| self.serves(instance)).count();
        (in_service < target).then(|| Shortfall { group: group.spec.name.clone(), in_service, target })
    }

    fn complete(&self, group: &GroupRoll) -> Result<(), Incomplete> {
        match self.relevant(group)?.into_iter().find_map(|group| self.shortfall(group)) {
            Some(shortfall) => Err(Incomplete::Short(shortfall)),
            None => Ok(()),
        }
    }

    /// How many instances are missing.
    fn down(&self, group: &GroupRoll) -> Result<usize, Incomplete> {
        Ok(self.relevant(group)?.into_iter().filter_map(|group| self.shortfall(group)).map(|short| short.target - short.in_service).sum())
    }
}

struct Step<'a> {
    options: &'a RollOptions,
    now: Timestamp,
    inventory: &'a Inventory,
}

impl Step<'_> {
    /// One group, in kOps' order: initial check, warm pool, then instances as the concurrency allows. Returns what an
    /// unfinished group waits for.
    fn group(&self, group: &mut GroupRoll, service: &mut Service<'_>, commands: &mut Vec<Command>) -> Result<Option<Until>, Abort> {
        if group.phase == GroupPhase::Waiting {
            group.phase = GroupPhase::Rolling;
            group.started = Some(self.now);
            if group.instances.iter().all(|instance| instance.phase == InstancePhase::Vanished) {
                group.phase = GroupPhase::Done;
                group.finished = Some(self.now);
                return Ok(None);
            }
            // Bastions are not part of the cluster, so nothing is checked before the first one.
            if self.options.wait_for_replacement && group.role != Role::Bastion {
                group.gate = Some(Gate::cloudonly(self.now));
            }
        }
        let mut wait = self.repeat(group, service, commands);
        if let Some(error) = first_error(group) {
            if !group.instances.iter().any(|instance| instance.phase.is_in_flight()) {
                group.phase = GroupPhase::Failed { error };
                group.finished = Some(self.now);
            }
            return Ok(wait);
        }
        if let Some(closed) = self.gate(group, service)? {
            return Ok(Some(earliest(wait, closed)));
        }
        if self.warm_pool(group, service, commands) {
            return Ok(wait);
        }
        if !group.settings.drain_and_terminate {
            group.phase = GroupPhase::Disabled;
            group.finished = Some(self.now);
            return Ok(None);
        }
        if let Some(blocked) = self.start(group, service, commands)? {
            wait = Some(earliest(wait, blocked));
        }
        if group.gate.is_none()
            && group.instances.iter().all(|instance| matches!(instance.phase, InstancePhase::Done | InstancePhase::Vanished))
        {
            group.phase = GroupPhase::Done;
            group.finished = Some(self.now);
        }
        Ok(wait)
    }

    /// Decides again on terminations whose result is not known (the process was killed) or was a failure that may pass,
    /// and waits for the intervals of the others.
    fn repeat(&self, group: &mut GroupRoll, service: &mut Service<'_>, commands: &mut Vec<Command>) -> Option<Until> {
        self.withdraw(group, service);
        let interval = self.options.interval(group.role);
        let mut wait = None;
        for instance in &mut group.instances {
            match &mut instance.phase {
                InstancePhase::Terminating { attempts, not_before } if *not_before <= self.now => {
                    *attempts += 1;
                    *not_before = self.now;
                    commands.push(terminate(&group.name, &instance.id));
                }
                InstancePhase::Terminating { not_before, .. } => {
                    let reason = WaitReason::Retry { group: group.name.clone(), instance: instance.id.clone() };
                    wait = Some(earliest(wait, Until { at: *not_before, reason }));
                }
                InstancePhase::Terminated => {
                    let reason = WaitReason::Interval { group: group.name.clone(), instance: instance.id.clone() };
                    wait = Some(earliest(wait, Until { at: later(instance.terminated.unwrap_or(self.now), interval), reason }));
                }
                _ => {}
            }
        }
        wait
    }

    /// Takes back intents that are due again, not carried out as far as can be seen, and would by now leave the group with
    /// too few instances: others may have gone away since. They have their turn when the group is complete again.
    fn withdraw(&self, group: &mut GroupRoll, service: &mut Service<'_>) {
        if !self.options.wait_for_replacement {
            return;
        }
        let serving = self.serving(group);
        let due = |instance: &InstanceRoll| {
            let is_due = matches!(instance.phase, InstancePhase::Terminating { not_before, .. } if not_before <= self.now);
            is_due && instance.origin != Origin::WarmPool && serving.as_ref().is_none_or(|serving| serving.contains(instance.id.as_str()))
        };
        let limit = limit(group);
        for instance in group.instances.iter().filter(|instance| due(instance)) {
            service.condemned.remove(&instance.id);
        }
        let mut down = service.down(group).ok();
        for instance in group.instances.iter_mut().filter(|instance| due(instance)) {
            match &mut down {
                Some(down) if *down < limit => {
                    *down += 1;
                    service.condemned.insert(instance.id.clone());
                }
                _ => {
                    instance.phase = InstancePhase::Waiting;
                    group.gate.get_or_insert(Gate::cloudonly(self.now));
                }
            }
        }
    }

    /// The instances of the group that the cloud lists in service; `None` where it does not list the group.
    fn serving(&self, group: &GroupRoll) -> Option<BTreeSet<&str>> {
        let cloud = self.inventory.groups.get(&group.name)?;
        Some(cloud.instances().filter(|instance| instance.in_service).map(|instance| instance.id.as_str()).collect())
    }

    /// Opens the group's gate if it may be opened; else says what to wait for, or that it took too long. As in kOps there
    /// is at least one look, even after the deadline.
    fn gate(&self, group: &mut GroupRoll, service: &Service<'_>) -> Result<Option<Until>, Abort> {
        let Some(gate) = group.gate else { return Ok(None) };
        let Err(incomplete) = service.complete(group) else {
            group.gate = None;
            return Ok(None);
        };
        let deadline = later(gate.since, self.options.validation_timeout);
        if self.now >= deadline {
            return Err(self.too_late(group, &incomplete));
        }
        let reason = match incomplete {
            Incomplete::Missing(group) => WaitReason::Missing { group, deadline },
            Incomplete::Short(Shortfall { group, in_service, target }) => WaitReason::InService { group, in_service, target, deadline },
        };
        let poll = self.now.duration_since(gate.since).clamp(SHORTEST_POLL, LONGEST_POLL);
        Ok(Some(Until { at: later(self.now, poll).min(deadline), reason }))
    }

    fn too_late(&self, group: &GroupRoll, incomplete: &Incomplete) -> Abort {
        let after = match group
            .instances
            .iter()
            .rev()
            .filter(|instance| instance.terminated.is_some())
            .max_by_key(|instance| instance.terminated)
        {
            Some(instance) => format!("after terminating {}", instance.id),
            None => "before its first instance was touched".to_owned(),
        };
        let timeout = self.options.validation_timeout;
        Abort(match incomplete {
            Incomplete::Missing(name) => {
                format!("instance group {name:?} was missing from the cloud for {timeout:#} {after}; nothing further was touched")
            }
            Incomplete::Short(Shortfall { group: name, in_service, target }) => {
                let suspended = self.inventory.groups.get(name).map(|group| group.suspended_processes.join(", ")).unwrap_or_default();
                let hint = if suspended.is_empty() {
                    "look at the scaling activities of its Auto Scaling group".to_owned()
                } else {
                    format!("its Auto Scaling group has suspended processes: {suspended}")
                };
                format!(
                    "instance group {name:?} had {in_service} of {target} instances in service for {timeout:#} {after}; nothing further was touched; {hint}"
                )
            }
        })
    }

    /// Deletes the warm pool's old instances, all at once and first, as kOps does; they serve nobody. Says whether any is
    /// left.
    fn warm_pool(&self, group: &mut GroupRoll, service: &mut Service<'_>, commands: &mut Vec<Command>) -> bool {
        let mut left = false;
        for instance in group.instances.iter_mut().filter(|instance| instance.origin == Origin::WarmPool) {
            if instance.phase == InstancePhase::Waiting {
                commands.push(self.condemn(&group.name, instance, service));
            }
            left |= instance.phase.is_in_flight();
        }
        left
    }

    /// Starts as many replacements as may be down at once.
    fn start(&self, group: &mut GroupRoll, service: &mut Service<'_>, commands: &mut Vec<Command>) -> Result<Option<Until>, Abort> {
        let limit = limit(group);
        let mut in_flight = group.in_flight();
        // kOps does not look here; without a wish to wait, neither does Kopsline.
        let mut down = if self.options.wait_for_replacement { service.down(group) } else { Ok(0) };
        let serving = self.serving(group).unwrap_or_default();
        let mut blocked = false;
        for instance in group.instances.iter_mut().filter(|instance| instance.phase == InstancePhase::Waiting) {
            if in_flight >= limit {
                break;
            }
            match &mut down {
                // An instance that does not serve can be replaced without taking anything away.
                Ok(down) if self.options.wait_for_replacement && serving.contains(instance.id.as_str()) => {
                    if *down >= limit {
                        blocked = true;
                        break;
                    }
                    *down += 1;
                }
                Ok(_) => {}
                Err(_) => {
                    blocked = true;
                    break;
                }
            }
            in_flight += 1;
            commands.push(self.condemn(&group.name, instance, service));
        }
        if blocked && in_flight == 0 {
            group.gate = Some(Gate::cloudonly(self.now));
            return self.gate(group, service);
        }
        Ok(None)
    }

    fn condemn(&self, group: &str, instance: &mut InstanceRoll, service: &mut Service<'_>) -> Command {
        instance.phase = InstancePhase::Terminating { attempts: 1, not_before: self.now };
        instance.started = Some(self.now);
        service.condemned.insert(instance.id.clone());
        terminate(group, &instance.id)
    }
}

fn terminate(group: &str, instance: &str) -> Command {
    Command { group: group.to_owned(), action: Action::Terminate { instance: instance.to_owned() } }
}

/// How many instances of the group may be down at once: one until the first replacement has worked out.
fn limit(group: &GroupRoll) -> usize {
    let proven = !group.first_alone
        || group.instances.iter().any(|instance| instance.origin != Origin::WarmPool && instance.phase == InstancePhase::Done);
    if proven { group.concurrency } else { 1 }
}

fn first_error(group: &GroupRoll) -> Option<String> {
    group.instances.iter().find_map(|instance| match &instance.phase {
        InstancePhase::Failed { error } => Some(format!("{} could not be terminated: {error}", instance.id)),
        _ => None,
    })
}

fn earliest(one: Option<Until>, other: Until) -> Until {
    match one {
        Some(one) if one.at <= other.at => one,
        _ => other,
    }
}
