//! The decision: given what is recorded and what is seen, what to do next.
//!
//! One module per step: [`absorb`] takes in what became of the last commands, [`group`] leads a group through its steps,
//! [`gate`] holds it until the cluster is well, [`surge`] launches replacements first, [`instance`] and [`drain`] take one
//! instance out of service, [`unwind`] gives back what was not needed.

mod absorb;
mod drain;
mod gate;
mod group;
mod instance;
mod surge;
mod turn;
mod unwind;
mod view;
mod wait;

use jiff::{SignedDuration, Timestamp};

use crate::command::{Command, CommandResult};
use crate::control::Control;
use crate::event::{RollEvent, What};
use crate::invariants;
use crate::inventory::Inventory;
use crate::kubernetes::ClusterFacts;
use crate::spec::Role;
use crate::state::{GroupError, GroupPhase, GroupRoll, InstancePhase, Leftover, LeftoverReason, Origin, Outcome, RollState};
use turn::Turn;
use view::View;
pub use wait::{Until, WaitReason};

/// The pause before a look whose only purpose is to be newer than the last commands.
const MOMENT: SignedDuration = SignedDuration::from_millis(100);
/// When to look again where nothing else says it.
const SOON: SignedDuration = SignedDuration::from_secs(1);

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
    /// What to execute then, side by side if need be; ask again at once with the results.
    pub commands: Vec<Command>,
    /// Without commands: when to look and ask again. `None` too when the roll has ended.
    pub wait: Option<Until>,
    /// What happened, for the record: what the commands will do, and what was learnt.
    pub events: Vec<RollEvent>,
}

/// Decides what to do next.
///
/// The order is kOps': all bastion groups side by side, then control-plane groups, API servers and nodes one group after
/// the other by name. A bastion or control-plane instance that cannot be replaced stops the roll; one of another group
/// stops its group only, and the roll fails at its end. A cluster that does not validate in time, a group that does not
/// become complete, and an instance that cannot be taken out of its load balancers stop the roll.
///
/// Where the planner is stricter than kOps: the control plane is replaced strictly one by one, and only while all its
/// other members are in service and ready; with `wait_for_replacement` an instance that is about to go does not count as a
/// member any more, however long the cloud lists it; a first detachment that fails proves nothing.
pub fn next(state: &RollState, observation: &Observation<'_>) -> Decision {
    if state.outcome.is_final() {
        return Decision { state: state.clone(), commands: Vec::new(), wait: None, events: Vec::new() };
    }
    let view = View::new(observation);
    let mut next = state.clone();
    let mut turn = Turn::new(&state.options, observation, &view);
    turn.begin(&mut next);
    for group in &mut next.groups {
        turn.absorb(group);
    }
    turn.take_stock(&mut next);
    if let Some(reason) = observation.control.aborted.clone().or_else(|| turn.answered_abort()) {
        abort(&mut next, &mut turn, &reason);
    }
    let end = advance(&mut next, &mut turn);
    turn.put_back(&mut next);
    match end {
        Ok(Progress::Busy) => {}
        Ok(Progress::Over) => finish(&mut next, &mut turn),
        Err(Abort(reason)) => {
            turn.commands.clear();
            turn.events.retain(|event| !matches!(event.what, What::Effect { .. }));
            fail(&mut next, &mut turn, reason);
        }
    }
    let Turn { commands, wait, events, now, .. } = turn;
    let goes_on = commands.is_empty() && !next.outcome.is_final();
    let soon = || Until { at: later(now, SOON), reason: WaitReason::News { group: String::new() } };
    let wait = goes_on.then(|| wait.unwrap_or_else(soon));
    match invariants::check(state, &next, &commands, observation) {
        Ok(()) => Decision { state: next, commands, wait, events },
        Err(violation) => {
            let mut state = state.clone();
            state.finished = Some(observation.now);
            let reason = format!("stopped by a safety check, which is a defect of Kopsline: {violation}");
            let outcome = reason.clone();
            state.outcome = Outcome::Failed { reason };
            let events = vec![RollEvent { at: observation.now, group: None, instance: None, node: None, what: What::Ended { outcome } }];
            Decision { state, commands: Vec::new(), wait: None, events }
        }
    }
}

/// The whole roll must stop at once.
struct Abort(String);

enum Progress {
    /// Some group is being rolled.
    Busy,
    /// All groups are through.
    Over,
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(Timestamp::MAX)
}

/// Somebody stops the roll: what has begun is unwound, what has not begun is left.
fn abort(state: &mut RollState, turn: &mut Turn<'_>, reason: &str) {
    if state.outcome != Outcome::Running {
        return;
    }
    state.outcome = Outcome::Unwinding { reason: reason.to_owned(), aborted: true };
    turn.aborting = true;
    turn.tell(What::Unwinding { reason: reason.to_owned() });
    for group in state.groups.iter_mut().filter(|group| group.phase == GroupPhase::Rolling) {
        (group.gate, group.call) = (None, None);
        group.error.get_or_insert_with(|| GroupError { message: format!("aborted: {reason}"), stops_roll: true });
    }
}

/// Steps the groups whose turn it is.
fn advance(state: &mut RollState, turn: &mut Turn<'_>) -> Result<Progress, Abort> {
    while let Some(first) = state.groups.iter().position(|group| !group.is_finished()) {
        let role = state.groups.get(first).map_or(Role::Node, |group| group.role);
        let side_by_side = if role == Role::Bastion { usize::MAX } else { 1 };
        turn.wait = None;
        let mut busy = false;
        for group in state.groups.iter_mut().filter(|group| group.role == role && !group.is_finished()).take(side_by_side) {
            if turn.aborting && group.phase == GroupPhase::Waiting {
                continue;
            }
            turn.group(group)?;
            busy |= !group.is_finished();
        }
        if busy {
            announce(state, turn, role);
            return Ok(Progress::Busy);
        }
        if turn.aborting {
            break;
        }
        stop_after_failure(state, role)?;
    }
    Ok(Progress::Over)
}

/// Says of a group that is being given back, and whose error stops the roll, that the roll is unwinding.
fn announce(state: &mut RollState, turn: &mut Turn<'_>, role: Role) {
    if state.outcome != Outcome::Running || role == Role::Bastion {
        return;
    }
    let stopping = state.groups.iter().find(|group| group.phase == GroupPhase::Unwinding && stops_roll(group));
    if let Some(group) = stopping {
        let message = group.error.as_ref().map(|error| error.message.clone()).unwrap_or_default();
        let reason = format!("instance group {:?}: {message}", group.name);
        turn.tell(What::Unwinding { reason: reason.clone() });
        state.outcome = Outcome::Unwinding { reason, aborted: false };
    }
}

fn stops_roll(group: &GroupRoll) -> bool {
    group.error.as_ref().is_some_and(|error| error.stops_roll || matches!(group.role, Role::Bastion | Role::ControlPlane))
}

/// A bastion that failed stops the roll once all bastions are through; a control-plane group stops it at once, another
/// group only for the errors that stop everything.
fn stop_after_failure(state: &RollState, role: Role) -> Result<(), Abort> {
    let of_role = || state.groups.iter().filter(|group| group.role == role);
    let what = match role {
        Role::Bastion => "bastion",
        Role::ControlPlane => "control plane",
        Role::ApiServer | Role::Node if of_role().any(stops_roll) => return Err(Abort(errors(state.groups.iter()))),
        Role::ApiServer | Role::Node => return Ok(()),
    };
    let errors = errors(of_role());
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

fn fail(state: &mut RollState, turn: &mut Turn<'_>, reason: String) {
    turn.tell(What::Ended { outcome: format!("failed: {reason}") });
    end(state, turn.now, Outcome::Failed { reason });
}

fn end(state: &mut RollState, now: Timestamp, outcome: Outcome) {
    state.finished = Some(now);
    state.questions.clear();
    state.outcome = outcome;
}

fn finish(state: &mut RollState, turn: &mut Turn<'_>) {
    if let Outcome::Unwinding { reason, aborted: true } = &state.outcome {
        let own = format!("aborted: {reason}");
        let problems = state.groups.iter().filter_map(|group| match &group.phase {
            GroupPhase::Failed { error } => Some(error.strip_prefix(&own).unwrap_or(error).trim_start_matches("; ")),
            _ => None,
        });
        let reason = problems.filter(|problem| !problem.is_empty()).fold(reason.clone(), |reason, problem| format!("{reason}; {problem}"));
        turn.tell(What::Ended { outcome: format!("aborted: {reason}") });
        return end(state, turn.now, Outcome::Aborted { reason });
    }
    let errors = errors(state.groups.iter());
    if !errors.is_empty() {
        return fail(state, turn, errors);
    }
    let still_need_update = leftovers(state, turn.inventory);
    turn.tell(What::Ended { outcome: format!("done, {} instances still need an update", still_need_update.len()) });
    end(state, turn.now, Outcome::Done { still_need_update });
}

/// What needs an update even so, and why.
fn leftovers(state: &RollState, inventory: &Inventory) -> Vec<Leftover> {
    use std::collections::{BTreeMap, HashSet};
    let mut condemned = HashSet::new();
    let mut reasons = BTreeMap::new();
    // Without the nodes and their annotations, what needed an update in the beginning still does.
    let mut needed = HashSet::new();
    let blind = !inventory.nodes_known && !state.options.cloudonly;
    for group in &state.groups {
        for instance in &group.instances {
            let id = instance.id.as_str();
            if blind && instance.origin == Origin::NeedsUpdate {
                needed.insert(id);
            }
            match instance.phase {
                InstancePhase::Skipped { .. } => drop(reasons.insert(id, (group.name.as_str(), LeftoverReason::Skipped))),
                _ if instance.phase.is_condemned() => drop(condemned.insert(id)),
                _ if group.phase == GroupPhase::Disabled => drop(reasons.insert(id, (group.name.as_str(), LeftoverReason::Disabled))),
                _ => {}
            }
        }
    }
    for left in &state.not_approved {
        reasons.insert(&left.instance, (left.group.as_str(), LeftoverReason::NotApproved));
    }
    let selected = state.options.selection.resolve(&inventory.cluster).unwrap_or_default();
    let mut leftovers = Vec::new();
    for (name, group) in inventory.groups.iter().filter(|(name, _)| selected.contains(*name)) {
        let needing = group.need_update.iter().map(|instance| (instance, true));
        for (instance, needs_update) in needing.chain(group.ready.iter().map(|instance| (instance, false))) {
            let reason = reasons.get(instance.id.as_str()).map(|(_, reason)| *reason);
            // Under force an up-to-date instance had to be replaced too.
            let wanted = needs_update || reason == Some(LeftoverReason::Skipped) || needed.contains(instance.id.as_str());
            if wanted && !condemned.contains(instance.id.as_str()) {
                leftovers.push(Leftover { group: name.clone(), instance: instance.id.clone(), why: reason.unwrap_or_default() });
            }
        }
    }
    leftovers
}
