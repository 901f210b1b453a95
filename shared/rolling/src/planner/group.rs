//! One group, in kOps' order (kOps 1.36 `pkg/instancegroups/instancegroups.go`).

use std::collections::HashSet;

use super::turn::{Called, Site, Turn};
use super::{Abort, later};
use crate::command::{Action, Refusal};
use crate::control::{About, Choice, Question};
use crate::event::What;
use crate::inventory::{CloudGroup, Status};
use crate::options::PauseAfter;
use crate::spec::{Manager, Role};
use crate::state::{Call, Gate, GateAfter, GroupError, GroupPhase, GroupRoll, GroupStep, InstancePhase, InstanceRoll, Origin, Preparation};

/// How many nodes are tainted between two looks at the time and at what people want.
const TAINTS_AT_ONCE: usize = 200;
/// The process of an Auto Scaling group that terminates instances to balance zones.
const REBALANCE: &str = "AZRebalance";

impl Turn<'_> {
    /// Leads a group on as far as it goes now.
    pub(super) fn group(&mut self, group: &mut GroupRoll) -> Result<(), Abort> {
        if group.phase == GroupPhase::Waiting && !self.start_group(group) {
            return Ok(());
        }
        let site = self.site(group);
        if group.phase == GroupPhase::Rolling {
            self.withdraw(group);
            self.in_flight(&site, group);
            let through = group.error.is_none() && self.roll_on(&site, group)?;
            // As kOps: after an error what is in flight is finished first.
            let stopped = group.error.is_some() && !group.instances.iter().any(InstanceRoll::is_busy);
            if !through && !stopped {
                return Ok(());
            }
        }
        self.unwind(&site, group);
        Ok(())
    }

    /// The steps of a group and then its instances. Says whether it is through.
    fn roll_on(&mut self, site: &Site, group: &mut GroupRoll) -> Result<bool, Abort> {
        if !self.gate(group)? {
            return Ok(false);
        }
        while group.step != GroupStep::Replace {
            if !self.step(site, group) {
                return Ok(false);
            }
            group.step = match group.step {
                GroupStep::Suspend => GroupStep::Taint,
                GroupStep::Taint => GroupStep::WarmPool,
                GroupStep::WarmPool => GroupStep::Surge,
                GroupStep::Surge | GroupStep::Replace => GroupStep::Replace,
            };
        }
        if !group.settings.drain_and_terminate {
            return Ok(true);
        }
        self.start(site, group)?;
        let through = |instance: &InstanceRoll| {
            matches!(instance.phase, InstancePhase::Done | InstancePhase::Vanished | InstancePhase::Skipped { .. })
        };
        if group.gate.is_some() || !group.instances.iter().all(through) {
            return Ok(false);
        }
        if std::mem::take(&mut group.unvalidated) {
            group.gate = Some(self.new_gate(GateAfter::Terminating));
            return self.gate(group);
        }
        Ok(true)
    }

    /// The group's turn has come. Says whether there is something to do.
    fn start_group(&mut self, group: &mut GroupRoll) -> bool {
        let all_vanished = group.instances.iter().all(|instance| instance.phase == InstancePhase::Vanished);
        if !all_vanished && self.held_back() {
            return false;
        }
        group.started = Some(self.now);
        if all_vanished {
            group.phase = GroupPhase::Done;
            group.finished = Some(self.now);
            return false;
        }
        group.phase = GroupPhase::Rolling;
        self.tell_of(&group.name, None, What::GroupStarted { instances: group.instances.len() });
        // Bastions are not part of the cluster, so nothing is checked before the first one.
        if group.role != Role::Bastion && (!self.options.cloudonly || self.options.wait_for_replacement) {
            let wanted = u32::from(!self.options.cloudonly);
            group.gate = Some(Gate { wanted, ..self.new_gate(GateAfter::Start) });
        }
        true
    }

    /// Carries on what is in flight.
    fn in_flight(&mut self, site: &Site, group: &mut GroupRoll) {
        let is_detaching = |instance: &InstanceRoll| matches!(instance.phase, InstancePhase::Detaching { .. });
        // The surge goes from the end of the list to its beginning.
        for instance in group.instances.iter_mut().rev().filter(|instance| is_detaching(instance)) {
            if let InstancePhase::Detaching { marked, call } = instance.phase {
                // What can be seen not to be detached need not be.
                let is_attached = self.view.instance(&instance.id).is_some_and(|seen| seen.status != Status::Detached);
                if self.aborting && (!marked || call.attempts == 0 || (self.fresh && is_attached)) {
                    instance.phase = InstancePhase::Waiting;
                    continue;
                }
                self.detach(site, instance, marked, call);
                group.unvalidated |= !is_detaching(instance);
            }
        }
        let before = group.in_flight();
        let mut skipped = 0;
        for instance in group.instances.iter_mut().filter(|instance| instance.phase.is_in_flight()) {
            if let Err(error) = self.instance(site, instance) {
                group.error.get_or_insert(error);
            }
            skipped += usize::from(matches!(instance.phase, InstancePhase::Skipped { .. }));
        }
        if skipped > 0 {
            self.after_loss(group, before, skipped, false);
        }
    }

    /// Takes back intents that are due again, not carried out as far as can be seen, and would by now leave the group with
    /// too few instances, or touch a cluster that is not well: others may have gone away since. They have their turn when
    /// all is well again.
    fn withdraw(&mut self, group: &mut GroupRoll) {
        let due: HashSet<String> = group
            .instances
            .iter()
            .filter(|instance| self.is_due_again(&group.name, instance))
            .map(|instance| instance.id.clone())
            .collect();
        let waits = self.options.wait_for_replacement;
        if due.is_empty() || (self.options.cloudonly && !waits) {
            return;
        }
        self.condemned.retain(|id| !due.contains(id));
        let limit = group.limit(self.options);
        let mut down = if waits { self.missing(group, &due) } else { Some(0) };
        let unwell = self.unwell(group);
        let gate = self.gate_again(unwell);
        for instance in group.instances.iter_mut().filter(|instance| due.contains(&instance.id)) {
            let holds = match &instance.phase {
                InstancePhase::Detaching { .. } => !unwell,
                // It is drained: nothing but the number of instances speaks against its end.
                InstancePhase::Terminating { .. } => self.may_lose(group.role, &instance.id, down, limit),
                _ => !unwell && self.may_lose(group.role, &instance.id, down, limit),
            };
            if !holds {
                instance.phase = InstancePhase::Waiting;
                group.gate.get_or_insert(gate);
            } else if !matches!(instance.phase, InstancePhase::Detaching { .. }) {
                self.condemned.insert(instance.id.clone());
                down = down.map(|down| down + usize::from(waits));
            }
        }
    }

    /// Whether a call that takes the instance out of service would be made again now: its result is not known, or it failed.
    fn is_due_again(&self, group: &str, instance: &InstanceRoll) -> bool {
        let is_due = |call: &Call| call.attempts > 0 && call.not_before <= self.now;
        let asg = || self.inventory.groups.get(group).map(|cloud| cloud.auto_scaling_group.clone()).unwrap_or_default();
        match &instance.phase {
            InstancePhase::Terminating { not_before, .. } => {
                // Under cloudonly a detached instance counts for nothing.
                let seen = if self.options.cloudonly { self.is_in_service(&instance.id) } else { self.is_still_there(&instance.id) };
                let may_be_there = !self.inventory.groups.contains_key(group) || seen;
                *not_before <= self.now && instance.origin != Origin::WarmPool && may_be_there
            }
            // A node that was cordoned before is taken by its next call.
            InstancePhase::Preparing { step: Preparation::Exclude, call } if !instance.held.cordoned => {
                let action = Action::ExcludeFromLoadBalancers { node: instance.node.clone().unwrap_or_default() };
                is_due(call) && self.result(&action).is_none()
            }
            InstancePhase::Preparing { step: Preparation::Deregister, call } if !instance.held.cordoned => {
                let action = Action::Deregister { auto_scaling_group: asg(), instance: instance.id.clone() };
                is_due(call) && self.result(&action).is_none()
            }
            InstancePhase::Preparing { step: Preparation::Cordon, call } => {
                let node = instance.node.clone().unwrap_or_default();
                let is_so = self.view.node(&node).is_some_and(|node| node.unschedulable);
                is_due(call) && !is_so && self.result(&Action::Cordon { node }).is_none()
            }
            InstancePhase::Detaching { marked: false, call } => {
                let action = Action::MarkDetached { auto_scaling_group: asg(), instance: instance.id.clone() };
                is_due(call) && self.result(&action).is_none()
            }
            InstancePhase::Detaching { marked: true, call } => {
                let is_so = self.view.instance(&instance.id).is_none_or(|seen| seen.status == Status::Detached);
                let action = Action::Detach { auto_scaling_group: asg(), instance: instance.id.clone() };
                is_due(call) && !is_so && self.result(&action).is_none()
            }
            _ => false,
        }
    }

    /// The gate of a group that had to stop before its next instance.
    pub(super) fn gate_again(&self, unwell: bool) -> Gate {
        let gate = self.new_gate(GateAfter::Terminating);
        Gate { wanted: if unwell { gate.wanted.max(1) } else { 0 }, ..gate }
    }

    /// Whether the cluster does not validate for the group at the moment, where that counts.
    pub(super) fn unwell(&self, group: &GroupRoll) -> bool {
        // Without validations after each instance the one before the first remains.
        let touched = |instance: &InstanceRoll| instance.origin != Origin::WarmPool && instance.terminated.is_some();
        let counts = self.options.validate_count > 0 || !group.instances.iter().any(touched);
        let validates = !self.options.cloudonly && self.options.fail_on_validate_error && counts;
        validates && group.role != Role::Bastion && !self.failures(group).is_empty()
    }

    /// How many instances a group lacks, those included that are on their way out, but for `others`; `None` where that is
    /// not known. Detached ones are not missed by the cloud, but they served.
    fn missing(&self, group: &GroupRoll, others: &HashSet<String>) -> Option<usize> {
        let leaving = |instance: &&InstanceRoll| {
            let detached = instance.is_detached() && instance.phase.is_in_flight() && !self.options.cloudonly;
            (detached || self.is_half_done(instance)) && !others.contains(&instance.id)
        };
        let leaving = group.instances.iter().filter(leaving).count();
        self.down(group).ok().map(|down| down + leaving)
    }

    /// Whether an instance was begun, has to wait for another turn or is given up, and serves as far as the cloud knows: its
    /// node may be cordoned or even drained.
    fn is_half_done(&self, instance: &InstanceRoll) -> bool {
        instance.is_left() && instance.started.is_some() && self.serves_now(instance)
    }

    /// Whether the group would lose an instance by losing this one. A detached one serves, though the cloud does not count it.
    fn serves_now(&self, instance: &InstanceRoll) -> bool {
        if instance.is_detached() { !self.options.cloudonly } else { self.is_in_service(&instance.id) }
    }

    /// Whether a group of which so many are `down` may lose this instance too; `None` where that is not known.
    fn may_lose(&self, role: Role, id: &str, down: Option<usize>, limit: usize) -> bool {
        let strong = self.options.cloudonly || role != Role::ControlPlane || self.weakness(id).is_none();
        down.is_some_and(|down| !self.options.wait_for_replacement || down < limit) && strong
    }

    /// One step before the replacements. Says whether it is done.
    fn step(&mut self, site: &Site, group: &mut GroupRoll) -> bool {
        let idle = group.call.is_none() && !group.instances.iter().any(InstanceRoll::is_busy);
        if idle && self.held_back() {
            return false;
        }
        match group.step {
            GroupStep::Suspend => self.suspend(site, group),
            GroupStep::Taint => self.taint(site, group),
            GroupStep::WarmPool => self.warm_pool(site, group),
            GroupStep::Surge => self.surge(site, group),
            GroupStep::Replace => true,
        }
    }

    /// Suspends `AZRebalance` unless it is suspended already. That it cannot be is told, and stops nothing: kOps leaves it.
    fn suspend(&mut self, site: &Site, group: &mut GroupRoll) -> bool {
        let wanted = self.options.suspend_rebalance && !self.options.cloudonly && site.manager == Manager::CloudGroup;
        let is_suspended = |cloud: &CloudGroup| cloud.suspended_processes.iter().any(|process| process == REBALANCE);
        let suspended = self.inventory.groups.get(&site.name).is_some_and(is_suspended);
        if !wanted || (suspended && group.call.is_none()) {
            return true;
        }
        group.holds_rebalance = true;
        let mut call = group.call.unwrap_or_else(|| Call::new(self.now));
        let action = Action::SuspendRebalance { auto_scaling_group: site.auto_scaling_group.clone() };
        match self.call(site, None, &mut call, &action) {
            Called::Done => group.call = None,
            // An earlier attempt whose answer was lost may have had its effect.
            Called::Refused(_) => (group.call, group.holds_rebalance) = (None, call.attempts > 1),
            Called::Busy => {
                group.call = Some(call);
                return false;
            }
        }
        true
    }

    /// Taints all nodes that are to be updated, but those that are unschedulable or tainted already.
    fn taint(&mut self, site: &Site, group: &mut GroupRoll) -> bool {
        if self.options.cloudonly || site.role == Role::Bastion {
            return true;
        }
        if self.facts.is_err() {
            group.gate.get_or_insert(self.gate_again(true));
            // It cannot open before the API answers.
            return matches!(self.gate(group), Ok(true)) && self.taint(site, group);
        }
        let mut call = group.call.unwrap_or_else(|| Call::new(self.now));
        let mut answered = false;
        for instance in group.instances.iter().filter(|instance| instance.held.tainted) {
            let Some(action) = instance.node.clone().map(|node| Action::Taint { node }) else { continue };
            let Some(result) = self.result(&action) else { continue };
            answered = true;
            let Err(error) = result else { continue };
            self.refused(&site.name, Some(instance), &action, error);
            let waited = self.now.duration_since(call.since);
            if error.kind != Refusal::Permanent && waited < self.options.validation_timeout {
                call.not_before = later(self.now, super::turn::backoff(call.attempts));
            } else if self.options.fail_on_drain_error {
                let node = instance.node.as_deref().unwrap_or_default();
                let message = format!("node {node} could not be tainted: {}", error.message);
                (group.call, group.error) = (None, Some(GroupError { message, stops_roll: false }));
                return false;
            }
        }
        if call.not_before > self.now {
            group.call = Some(call);
            self.wait_for_retry(site, call, "taint nodes");
            return false;
        }
        let mut decided = 0;
        for instance in group.instances.iter_mut().filter(|instance| instance.phase == InstancePhase::Waiting) {
            // What was answered is not seen yet; what was not answered is decided on again when it is seen to be missing.
            let done = answered && instance.held.tainted;
            if done || decided == TAINTS_AT_ONCE {
                continue;
            }
            let Some(node) = self.view.node_of(&instance.id) else { continue };
            if instance.origin == Origin::WarmPool || node.unschedulable || node.scheduled_for_update {
                continue;
            }
            (instance.node, instance.held.tainted) = (Some(node.name.clone()), true);
            decided += 1;
            self.command(&site.name, Some(instance), Action::Taint { node: node.name.clone() });
        }
        call.attempts = call.attempts.saturating_add(1);
        group.call = (decided > 0).then_some(call);
        decided == 0
    }

    /// Deletes the warm pool's old instances, all at once and first, as kOps does; they serve nobody.
    fn warm_pool(&mut self, site: &Site, group: &mut GroupRoll) -> bool {
        let mut left = false;
        for instance in group.instances.iter_mut().filter(|instance| instance.origin == Origin::WarmPool) {
            if instance.phase == InstancePhase::Waiting {
                instance.started = Some(self.now);
                self.terminate(site, instance);
            }
            left |= instance.phase.is_in_flight();
        }
        !left
    }

    /// Starts as many replacements as may be down at once.
    fn start(&mut self, site: &Site, group: &mut GroupRoll) -> Result<(), Abort> {
        if !group.instances.iter().any(|instance| instance.phase == InstancePhase::Waiting) || !self.may_go_on(group) {
            return Ok(());
        }
        let limit = group.limit(self.options);
        let mut in_flight = group.in_flight();
        if in_flight >= limit {
            return Ok(());
        }
        // kOps does not look here; without a wish to wait, neither does Kopsline.
        let waits = self.options.wait_for_replacement;
        let mut down = if waits { self.missing(group, &HashSet::new()) } else { Some(0) };
        let unwell = self.unwell(group);
        let mut blocked = unwell || (self.facts.is_err() && !self.options.cloudonly && site.role != Role::Bastion);
        for instance in group.instances.iter_mut().filter(|instance| instance.phase == InstancePhase::Waiting) {
            if in_flight >= limit || blocked {
                break;
            }
            // What is counted already is taken again in the same place.
            if waits && self.is_half_done(instance) {
                down = down.map(|down| down.saturating_sub(1));
            }
            // An instance that does not serve can be replaced without taking anything away.
            let serves = self.serves_now(instance);
            let counted = if serves { down } else { down.map(|_| 0) };
            blocked = !self.may_lose(site.role, &instance.id, counted, limit);
            if blocked {
                break;
            }
            down = down.map(|down| down + usize::from(serves && waits));
            in_flight += 1;
            if let Err(error) = self.begin_instance(site, instance) {
                group.error.get_or_insert(error);
            }
        }
        if blocked && in_flight == 0 {
            group.gate = Some(self.gate_again(unwell));
            self.gate(group)?;
        }
        Ok(())
    }

    /// Whether another instance may be started as far as people are concerned: the roll is not paused, no question about
    /// the next one is open, no pause of `pause_after` is due.
    fn may_go_on(&mut self, group: &mut GroupRoll) -> bool {
        if self.held_back() {
            return false;
        }
        let is_about_next = |question: &Question| {
            question.group == group.name && matches!(question.about, About::Checkpoint { .. } | About::NextInstance { .. })
        };
        if let Some(question) = self.questions.iter().find(|question| is_about_next(question)) {
            let (id, checkpoint) = (question.id.clone(), matches!(question.about, About::Checkpoint { .. }));
            match self.decided(&id) {
                None => {
                    self.wait_for_decision(&id);
                    return false;
                }
                Some(choice) => {
                    self.asks_no_more |= choice == Choice::Always;
                    if checkpoint {
                        group.checkpoint_passed = true;
                        self.checkpoint_passed = true;
                    }
                }
            }
        }
        let done = |instance: &InstanceRoll| instance.origin != Origin::WarmPool && instance.phase == InstancePhase::Done;
        let (replaced, total) = self.replaced;
        let (due, id) = match self.options.pause_after {
            Some(PauseAfter::Percent(percent)) => {
                (!self.checkpoint_passed && replaced > 0 && replaced * 100 >= total * usize::from(percent), "checkpoint".to_owned())
            }
            Some(PauseAfter::FirstOfEachGroup) => {
                (!group.checkpoint_passed && group.instances.iter().any(done), format!("checkpoint-{}", group.name))
            }
            None => (false, String::new()),
        };
        if due {
            let deadline = self.options.pause_for.map(|pause| later(self.now, pause));
            let about = About::Checkpoint { replaced, total };
            let default = deadline.map(|_| Choice::Continue);
            self.ask(None, Question { id: id.clone(), asked: self.now, deadline, default, group: group.name.clone(), about });
            self.wait_for_decision(&id);
        }
        !due
    }
}
