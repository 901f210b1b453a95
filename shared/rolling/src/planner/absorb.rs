//! What became of the last commands, and what is seen of a group's instances.

use std::collections::{BTreeSet, HashMap};

use super::later;
use super::turn::{Turn, backoff};
use crate::command::{Action, Refusal};
use crate::event::What;
use crate::inventory::{CloudGroup, Status};
use crate::state::{Gate, GateAfter, GroupError, GroupPhase, GroupRoll, InstancePhase, InstanceRoll, Origin, Replaced};

impl Turn<'_> {
    /// Records what is known by now.
    pub(super) fn absorb(&mut self, group: &mut GroupRoll) {
        let before = group.in_flight();
        let unwinding = group.phase == GroupPhase::Unwinding;
        let mut completed = 0;
        let mut vanished = false;
        for index in 0..group.instances.len() {
            let Some(instance) = group.instances.get_mut(index) else { break };
            // A termination may be known to have failed before the instance is looked for.
            if let InstancePhase::Terminating { .. } = instance.phase
                && let Some(error) = self.termination(&group.name, instance)
            {
                group.error.get_or_insert(GroupError { message: error, stops_roll: false });
            }
            self.look_at(instance);
            vanished |= self.look_for(&group.name, instance);
            let interval = self.options.interval(group.role);
            // Where nothing comes after it there is nothing to pause for.
            let over = unwinding || self.now.duration_since(instance.terminated.unwrap_or(self.now)) >= interval;
            if instance.phase == InstancePhase::Terminated && over {
                instance.phase = InstancePhase::Done;
                completed += usize::from(instance.origin != Origin::WarmPool);
            }
        }
        if completed > 0 || vanished {
            self.after_loss(group, before, completed, vanished);
        }
        if let Some(cloud) = self.inventory.groups.get(&group.name) {
            self.match_replacements(group, cloud);
        }
    }

    /// The result of a termination; an error that stops the group.
    fn termination(&mut self, group: &str, instance: &mut InstanceRoll) -> Option<String> {
        let InstancePhase::Terminating { attempts, .. } = instance.phase else { return None };
        let action = Action::Terminate { instance: instance.id.clone() };
        let since = instance.drained.max(instance.started).unwrap_or(self.now);
        match self.result(&action) {
            Some(Ok(())) => self.terminated(group, instance),
            Some(Err(error)) => {
                self.refused(group, Some(instance), &action, error);
                let may_pass = error.kind != Refusal::Permanent && self.now.duration_since(since) < self.options.validation_timeout;
                if may_pass {
                    instance.phase = InstancePhase::Terminating { attempts, not_before: later(self.now, backoff(attempts)) };
                } else {
                    // Of the only attempt it is known what became of it.
                    instance.condemned = instance.condemned.filter(|_| error.kind != Refusal::Permanent || attempts > 1);
                    instance.phase = InstancePhase::Failed { error: error.message.clone() };
                    return Some(format!("{} could not be terminated: {}", instance.id, error.message));
                }
            }
            None => {}
        }
        None
    }

    /// Sees that an instance was detached, though the roll does not know that its call went through.
    fn look_at(&mut self, instance: &mut InstanceRoll) {
        let known = instance.is_detached() || instance.phase != InstancePhase::Waiting;
        if !known && self.view.instance(&instance.id).is_some_and(|seen| seen.status == Status::Detached) {
            instance.detached = Some(self.now);
        }
    }

    /// Concludes what an instance's absence means. Says whether it went away before its turn.
    fn look_for(&mut self, group: &str, instance: &mut InstanceRoll) -> bool {
        if !self.view.is_gone(group, &instance.id) {
            return false;
        }
        let mut vanished = false;
        match instance.phase {
            InstancePhase::Terminating { .. } => self.terminated(group, instance),
            // It was given back, since it was still seen, or given up; the call was carried out even so.
            InstancePhase::Waiting | InstancePhase::Failed { .. } if instance.condemned.is_some() => self.terminated(group, instance),
            // It had its turn before, and the call seems to have been carried out.
            InstancePhase::Waiting if instance.started.is_some() && !self.aborting => self.terminated(group, instance),
            // Between its tag and its detachment it may be in neither answer for a moment: it keeps its turn.
            InstancePhase::Waiting | InstancePhase::Detaching { .. } if instance.is_detached() => {}
            InstancePhase::Detaching { marked: true, .. } => {}
            InstancePhase::Waiting | InstancePhase::Detaching { .. } | InstancePhase::Returning { .. } => {
                instance.phase = InstancePhase::Vanished;
                instance.gone = Some(self.now);
                self.tell_of(group, Some(instance), What::Vanished);
                vanished = true;
            }
            // It went away in the middle of its drain, as it was to.
            _ if instance.phase.is_draining() => self.terminated(group, instance),
            _ => {}
        }
        if instance.phase.is_condemned() && instance.gone.is_none() {
            instance.gone = Some(self.now);
        }
        vanished
    }

    fn terminated(&mut self, group: &str, instance: &mut InstanceRoll) {
        instance.terminated = Some(self.now);
        // kOps does not pause between the instances of a warm pool: they serve nobody.
        instance.phase = if instance.origin == Origin::WarmPool { InstancePhase::Done } else { InstancePhase::Terminated };
        self.tell_of(group, Some(instance), What::Terminated);
        self.withdraw_questions_about(&instance.id);
    }

    /// Closes the gate after an instance was replaced. As in kOps: while others wait or every slot was taken, after each
    /// one; at the end once all are through. Those that end while the gate is closed are swept up by it.
    pub(super) fn after_loss(&mut self, group: &mut GroupRoll, before: usize, completed: usize, vanished: bool) {
        if group.phase != GroupPhase::Rolling || group.error.is_some() {
            return;
        }
        if self.options.cloudonly {
            if self.options.wait_for_replacement {
                group.gate.get_or_insert(Gate::cloudonly(self.now));
            }
            return;
        }
        group.unvalidated |= completed > 0;
        let waiting = group.instances.iter().any(|instance| instance.phase == InstancePhase::Waiting);
        let full = before >= group.limit(self.options);
        if group.gate.is_none() && (waiting || full || vanished || group.in_flight() == 0) {
            group.gate = Some(self.new_gate(GateAfter::Terminating));
            group.unvalidated = false;
        }
    }

    /// Gives every new instance in service to the oldest loss of its zone, else to the oldest loss.
    fn match_replacements(&mut self, group: &mut GroupRoll, cloud: &CloudGroup) {
        let known: BTreeSet<&str> = group
            .instances
            .iter()
            .flat_map(|instance| {
                std::iter::once(instance.id.as_str()).chain(instance.replaced.as_ref().map(|replaced| replaced.by.as_str()))
            })
            .chain(group.bystanders.iter().map(String::as_str))
            .collect();
        let arrivals: Vec<_> = cloud.instances().filter(|instance| instance.in_service && !known.contains(instance.id.as_str())).collect();
        if arrivals.is_empty() {
            return;
        }
        // The oldest loss last, so that it can be popped.
        let mut lost: Vec<usize> = (0..group.instances.len()).filter(|index| group.instances.get(*index).is_some_and(is_lost)).collect();
        lost.sort_by_key(|index| {
            std::cmp::Reverse(group.instances.get(*index).map(|loss| (loss.detached.or(loss.terminated).or(loss.gone), *index)))
        });
        let mut by_zone: HashMap<&str, Vec<usize>> = HashMap::new();
        for index in &lost {
            if let Some(loss) = group.instances.get(*index) {
                by_zone.entry(&loss.zone).or_default().push(*index);
            }
        }
        let mut taken = BTreeSet::new();
        let mut matched = Vec::new();
        for arrival in arrivals {
            let mut oldest = |losses: &mut Vec<usize>| std::iter::from_fn(|| losses.pop()).find(|index| taken.insert(*index));
            let found = by_zone.get_mut(arrival.zone.as_str()).and_then(&mut oldest).or_else(|| oldest(&mut lost));
            matched.push((found, arrival.id.clone()));
        }
        for (index, by) in matched {
            if let Some(loss) = index.and_then(|index| group.instances.get_mut(index)) {
                loss.replaced = Some(Replaced { by: by.clone(), at: self.now });
                self.tell_of(&group.name, Some(loss), What::Joined { by });
            } else {
                group.bystanders.insert(by);
            }
        }
    }
}

/// Whether something must come in its place. A detached instance is replaced before it goes.
fn is_lost(instance: &InstanceRoll) -> bool {
    let replaceable = !matches!(instance.origin, Origin::WarmPool | Origin::Detached);
    let left = instance.terminated.is_some() || instance.detached.is_some() || instance.phase == InstancePhase::Vanished;
    instance.replaced.is_none() && replaceable && left
}

impl GroupRoll {
    /// How many instances of the group may be down at once: one until the first replacement has worked out, or until the
    /// pause after the first instance is over.
    pub(crate) fn limit(&self, options: &crate::RollOptions) -> usize {
        let done = || self.instances.iter().any(|instance| instance.origin != Origin::WarmPool && instance.phase == InstancePhase::Done);
        let proven = !self.first_alone || self.proven || done();
        let paused = options.pause_after == Some(crate::PauseAfter::FirstOfEachGroup) && !self.checkpoint_passed;
        if proven && !paused { self.concurrency } else { 1 }
    }
}
