//! Checks of every decision, independent of how it came about. They guard against defects of the planner.

use crate::command::{Action, Command};
use crate::spec::Role;
use crate::state::{GroupPhase, InstancePhase, Origin, Outcome, RollState};

/// Refuses a decision that would break a promise: more instances of a group down than its settings allow, two
/// control-plane instances at a time, a role before its turn, or an instance that is not to be replaced.
pub(crate) fn check(state: &RollState, commands: &[Command]) -> Result<(), String> {
    if state.outcome != Outcome::Running && !commands.is_empty() {
        return Err("commands after the end".to_owned());
    }
    for Command { group: name, action } in commands {
        let Action::Terminate { instance: id } = action else { continue };
        let intended = state
            .groups
            .iter()
            .filter(|group| group.name == *name && group.phase == GroupPhase::Rolling)
            .flat_map(|group| &group.instances)
            .any(|instance| instance.id == *id && matches!(instance.phase, InstancePhase::Terminating { .. }));
        if !intended {
            return Err(format!("{id} of {name} is to be terminated without a recorded intent"));
        }
    }
    let mut control_plane = 0;
    for group in &state.groups {
        let in_flight = group.in_flight();
        if in_flight > group.concurrency {
            return Err(format!("{in_flight} instances of {} in progress, {} allowed", group.name, group.concurrency));
        }
        let joined = || group.instances.iter().filter(|instance| instance.origin != Origin::WarmPool);
        if group.first_alone && in_flight > 1 && !joined().any(|instance| instance.phase == InstancePhase::Done) {
            return Err(format!("{in_flight} instances of {} in progress before the first replacement", group.name));
        }
        if group.role == Role::ControlPlane {
            control_plane += in_flight;
        }
    }
    if control_plane > 1 {
        return Err(format!("{control_plane} control-plane instances in progress"));
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
