//! What must hold before a group loses its next instance: the cluster validates so many times in a row, and the group has
//! its instances in service (kOps 1.36 `pkg/instancegroups/instancegroups.go`, `validateClusterWithTimeout`).

use jiff::{SignedDuration, Timestamp};

use super::turn::Turn;
use super::view::{Incomplete, Shortfall};
use super::wait::WaitReason;
use super::{Abort, MOMENT, later};
use crate::control::{About, Question};
use crate::event::What;
use crate::spec::Role;
use crate::state::{Gate, GateAfter, GroupError, GroupRoll, InstancePhase};
use crate::validation::shortened;

/// The pause between two validations of which the first passed.
const RECHECK: SignedDuration = SignedDuration::from_secs(10);
/// The pause after one that did not: as long as it has been waited for already, within these bounds. kOps' pause is always
/// the longest.
const SHORTEST_RETRY: SignedDuration = SignedDuration::from_secs(5);
const LONGEST_RETRY: SignedDuration = SignedDuration::from_secs(30);
/// Under `cloudonly`, how often to look whether a group is complete again: after as long as it has been waited for already,
/// within these bounds. One look costs two or three calls for the whole cluster.
const SHORTEST_POLL: SignedDuration = SignedDuration::from_secs(1);
const LONGEST_POLL: SignedDuration = SignedDuration::from_secs(10);

/// What a look at the cluster gave.
#[derive(Default)]
struct Look {
    /// What does not validate, shortened.
    failures: Vec<String>,
    /// What is missing even so: instances in service, or control-plane members.
    incomplete: Option<Incomplete>,
    weak: Option<String>,
}

impl Look {
    fn is_well(&self) -> bool {
        self.failures.is_empty() && self.incomplete.is_none() && self.weak.is_none()
    }

    fn words(&self) -> Vec<String> {
        let mut words = self.failures.clone();
        words.extend(self.incomplete.as_ref().map(Incomplete::to_string));
        words.extend(self.weak.clone());
        words
    }
}

impl std::fmt::Display for Incomplete {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(group) => write!(f, "instance group {group:?} is missing from the cloud"),
            Self::Short(Shortfall { group, in_service, target }) => {
                write!(f, "instance group {group:?} has {in_service} of {target} instances in service")
            }
        }
    }
}

impl Turn<'_> {
    pub(super) fn new_gate(&self, after: GateAfter) -> Gate {
        if self.options.cloudonly {
            return Gate::cloudonly(self.now);
        }
        Gate { since: self.now, wanted: self.options.validate_count, passed: 0, not_before: None, after }
    }

    /// Opens the group's gate if it may be opened; else waits, or says that it took too long. As in kOps there is at least
    /// one look, even after the deadline. Says whether the gate is open.
    pub(super) fn gate(&mut self, group: &mut GroupRoll) -> Result<bool, Abort> {
        let Some(gate) = group.gate else { return Ok(true) };
        if self.options.cloudonly {
            return self.cloudonly_gate(group, gate).map(|()| group.gate.is_none());
        }
        match gate.not_before {
            // Whoever looks in between, such as a host that begins again, must find it well too.
            Some(not_before) if not_before > self.now && (gate.passed == 0 || !self.fresh || self.see(group, &gate).is_well()) => {
                self.wait(not_before, self.pause(group, &gate));
            }
            _ if !self.fresh => self.wait(later(self.now, MOMENT), WaitReason::News { group: group.name.clone() }),
            _ => self.look(group, gate),
        }
        Ok(group.gate.is_none() && group.error.is_none())
    }

    /// What the pause before the next look is for.
    fn pause(&self, group: &GroupRoll, gate: &Gate) -> WaitReason {
        let name = group.name.clone();
        if gate.passed > 0 {
            return WaitReason::Validated { group: name, passed: gate.passed, wanted: gate.wanted };
        }
        let look = self.see(group, gate);
        if gate.since > self.now || look.is_well() {
            let last = group.instances.iter().filter(|instance| instance.detached.is_some()).max_by_key(|instance| instance.detached);
            return WaitReason::Interval { group: name, instance: last.map(|instance| instance.id.clone()).unwrap_or_default() };
        }
        WaitReason::Validation { group: name, failures: look.words(), deadline: self.deadline(gate) }
    }

    fn deadline(&self, gate: &Gate) -> Timestamp {
        later(gate.since, self.options.validation_timeout)
    }

    fn see(&self, group: &GroupRoll, gate: &Gate) -> Look {
        // Without the API nothing can be drained, whatever else is asked for.
        let validates = gate.wanted > 0 || (self.facts.is_err() && group.role != Role::Bastion);
        let failures = if validates { shortened(self.failures(group).iter()) } else { Vec::new() };
        let mut look = Look { failures, ..Look::default() };
        if self.options.wait_for_replacement {
            look.incomplete = self.complete(group).err();
        }
        if group.role == Role::ControlPlane {
            let next = group.instances.iter().find(|instance| instance.phase == InstancePhase::Waiting);
            look.weak = next.and_then(|next| self.weakness(&next.id));
        }
        look
    }

    /// Looks once.
    fn look(&mut self, group: &mut GroupRoll, gate: Gate) {
        let look = self.see(group, &gate);
        if look.is_well() {
            let gate = Gate { passed: gate.passed.saturating_add(1), ..gate };
            if gate.wanted > 0 {
                self.tell_of(&group.name, None, What::ValidationPassed { passed: gate.passed, wanted: gate.wanted });
            }
            if gate.passed >= gate.wanted {
                return self.open(group, gate);
            }
            let at = later(self.now, RECHECK);
            group.gate = Some(Gate { not_before: Some(at), ..gate });
            return self.wait(at, WaitReason::Validated { group: group.name.clone(), passed: gate.passed, wanted: gate.wanted });
        }
        let words = look.words();
        if gate.wanted > 0 {
            self.tell_of(&group.name, None, What::ValidationFailed { failures: words.clone() });
        }
        let deadline = self.deadline(&gate);
        if self.now < deadline {
            let pause = self.now.duration_since(gate.since).clamp(SHORTEST_RETRY, LONGEST_RETRY);
            let at = later(self.now, pause).min(deadline);
            group.gate = Some(Gate { not_before: Some(at), passed: 0, ..gate });
            return self.wait(at, WaitReason::Validation { group: group.name.clone(), failures: words, deadline });
        }
        let answers = self.facts.is_ok() || group.role == Role::Bastion;
        if answers && look.incomplete.is_none() && look.weak.is_none() && !self.options.fail_on_validate_error {
            self.tell_of(&group.name, None, What::ValidationIgnored { failures: words });
            return self.open(group, gate);
        }
        let after = last_touched(group, gate.after);
        let hint = look.incomplete.as_ref().map(|incomplete| self.hint(incomplete)).unwrap_or_default();
        let timeout = self.options.validation_timeout;
        let failures = words.join("; ");
        let message = format!("the cluster did not validate within {timeout:#} {after}: {failures}; nothing further was touched{hint}");
        group.gate = None;
        group.error = Some(GroupError { message, stops_roll: true });
    }

    fn open(&mut self, group: &mut GroupRoll, gate: Gate) {
        // What ended while it was closed is swept up.
        (group.gate, group.unvalidated) = (None, false);
        // What was detached was replaced by something usable.
        group.proven |= gate.after == GateAfter::Detaching && group.instances.iter().any(|instance| instance.detached.is_some());
        let last = group.instances.iter().filter(|instance| instance.terminated.is_some()).max_by_key(|instance| instance.terminated);
        let more = group.instances.iter().any(|instance| instance.phase == InstancePhase::Waiting);
        if let Some(last) = last
            && more
            && gate.after == GateAfter::Terminating
            && self.options.interactive
            && !self.asks_no_more
        {
            let about = About::NextInstance { instance: last.id.clone() };
            let id = format!("next-{}", last.id);
            let question = Question { id, asked: self.now, deadline: None, default: None, group: group.name.clone(), about };
            self.ask(Some(&last.clone()), question);
        }
    }

    /// What `--cloudonly` lacks: waits until the group has its instances in service again.
    fn cloudonly_gate(&mut self, group: &mut GroupRoll, gate: Gate) -> Result<(), Abort> {
        let Err(incomplete) = self.complete(group) else {
            group.gate = None;
            return Ok(());
        };
        let deadline = self.deadline(&gate);
        if self.now >= deadline {
            return Err(self.too_late(group, &incomplete));
        }
        let reason = match incomplete {
            Incomplete::Missing(group) => WaitReason::Missing { group, deadline },
            Incomplete::Short(Shortfall { group, in_service, target }) => WaitReason::InService { group, in_service, target, deadline },
        };
        let poll = self.now.duration_since(gate.since).clamp(SHORTEST_POLL, LONGEST_POLL);
        self.wait(later(self.now, poll).min(deadline), reason);
        Ok(())
    }

    fn too_late(&self, group: &GroupRoll, incomplete: &Incomplete) -> Abort {
        let after = last_touched(group, GateAfter::Terminating);
        let timeout = self.options.validation_timeout;
        let hint = self.hint(incomplete);
        Abort(match incomplete {
            Incomplete::Missing(name) => {
                format!("instance group {name:?} was missing from the cloud for {timeout:#} {after}; nothing further was touched")
            }
            Incomplete::Short(Shortfall { group: name, in_service, target }) => format!(
                "instance group {name:?} had {in_service} of {target} instances in service for {timeout:#} {after}; nothing further was touched{hint}"
            ),
        })
    }

    /// Where to look for the reason.
    fn hint(&self, incomplete: &Incomplete) -> String {
        let Incomplete::Short(short) = incomplete else { return String::new() };
        let suspended = self.inventory.groups.get(&short.group).map(|group| group.suspended_processes.as_slice()).unwrap_or_default();
        // That one is suspended by the roll itself, and keeps nothing from being launched.
        let suspended: Vec<_> = suspended.iter().map(String::as_str).filter(|process| *process != "AZRebalance").collect();
        if suspended.is_empty() {
            "; look at the scaling activities of its Auto Scaling group".to_owned()
        } else {
            format!("; its Auto Scaling group has suspended processes: {}", suspended.join(", "))
        }
    }
}

/// What was done before the roll had to wait.
fn last_touched(group: &GroupRoll, after: GateAfter) -> String {
    let instances = group.instances.iter();
    let (verb, last) = match after {
        GateAfter::Detaching => {
            ("detaching", instances.filter(|instance| instance.detached.is_some()).max_by_key(|instance| instance.detached))
        }
        GateAfter::Start | GateAfter::Terminating => {
            ("terminating", instances.filter(|instance| instance.terminated.is_some()).max_by_key(|instance| instance.terminated))
        }
    };
    match last {
        Some(instance) => match &instance.node {
            Some(node) => format!("after {verb} {} (node {node})", instance.id),
            None => format!("after {verb} {}", instance.id),
        },
        None => "before its first instance was touched".to_owned(),
    }
}
