//! Giving back: what a roll did to a group and its instances and did not need in the end. Nothing that was so before the
//! roll is touched.

use jiff::SignedDuration;

use super::later;
use super::turn::{Called, Site, Turn, backoff};
use super::wait::WaitReason;
use crate::command::{Action, Refusal};
use crate::event::What;
use crate::state::{Call, GroupError, GroupPhase, GroupRoll, Held, InstancePhase, InstanceRoll};

/// How long to try to give something back.
const LONGEST: SignedDuration = SignedDuration::from_hours(1);

impl Turn<'_> {
    /// Ends a group: resumes `AZRebalance` if the roll suspended it, and, where the group stopped, gives back the instances
    /// that are not replaced.
    pub(super) fn unwind(&mut self, site: &Site, group: &mut GroupRoll) {
        if group.phase != GroupPhase::Unwinding {
            (group.phase, group.gate, group.call) = (GroupPhase::Unwinding, None, None);
            self.withdraw_questions(|question| question.group == site.name);
        }
        let mut call = group.call.unwrap_or_else(|| Call::new(self.now));
        let stopped = group.error.is_some();
        let mut failed = false;
        let mut problems = Vec::new();
        for instance in group.instances.iter_mut().filter(|instance| stopped && instance.is_left()) {
            self.seen_given_back(instance, call);
            for (action, clear) in give_back(site, instance) {
                match self.given_back(site, Some(&instance.clone()), call, &action) {
                    Called::Done => clear(&mut instance.held),
                    Called::Refused(problem) => {
                        clear(&mut instance.held);
                        problems.push(problem);
                    }
                    Called::Busy => failed |= self.result(&action).is_some(),
                }
            }
        }
        let resume = Action::ResumeRebalance { auto_scaling_group: site.auto_scaling_group.clone() };
        if group.holds_rebalance {
            match self.given_back(site, None, call, &resume) {
                Called::Done => group.holds_rebalance = false,
                Called::Refused(problem) => {
                    group.holds_rebalance = false;
                    problems.push(problem);
                }
                Called::Busy => failed |= self.result(&resume).is_some(),
            }
        }
        if !problems.is_empty() {
            let before = group.error.take();
            let stops_roll = before.as_ref().is_some_and(|error| error.stops_roll);
            let message = before.map(|error| error.message).into_iter().chain(problems).collect::<Vec<_>>().join("; ");
            group.error = Some(GroupError { message, stops_roll });
        }
        let left: Vec<_> = group
            .instances
            .iter()
            .filter(|instance| stopped && instance.is_left())
            .flat_map(|instance| give_back(site, instance).into_iter().map(|(action, _)| (Some(instance.clone()), action)))
            .chain(group.holds_rebalance.then_some((None, resume)))
            .collect();
        if left.is_empty() {
            // What becomes of a termination is told, even if nobody wants it any more.
            return match group
                .instances
                .iter()
                .filter(|instance| stopped && instance.is_left())
                .filter_map(|instance| self.shows(instance))
                .max()
            {
                Some(at) => self.wait(at, WaitReason::News { group: site.name.clone() }),
                None => self.end_group(group),
            };
        }
        if failed {
            call.not_before = later(self.now, backoff(call.attempts));
        }
        if call.not_before <= self.now {
            call.attempts = call.attempts.saturating_add(1);
            for (instance, action) in left {
                self.command(&site.name, instance.as_ref(), action);
            }
        } else {
            self.wait_for_retry(site, call, "give back what was not needed");
        }
        group.call = Some(call);
    }

    /// What was asked for before, without an answer, may be seen to be done. The cloud's lists may be old, so that they prove
    /// nothing here.
    fn seen_given_back(&self, instance: &mut InstanceRoll, call: Call) {
        if call.attempts == 0 || !self.fresh || self.facts.is_err() {
            return;
        }
        let node = instance.node.as_deref().and_then(|node| self.view.node(node));
        let held = &mut instance.held;
        held.cordoned &= node.is_some_and(|node| node.unschedulable);
        held.excluded &= node.is_some_and(|node| node.excluded_from_load_balancers);
        held.tainted &= node.is_some_and(|node| node.scheduled_for_update);
    }

    fn end_group(&mut self, group: &mut GroupRoll) {
        group.call = None;
        group.finished = Some(self.now);
        let error = group.error.as_ref().map(|error| error.message.clone());
        group.phase = match &error {
            Some(error) => GroupPhase::Failed { error: error.clone() },
            None if group.settings.drain_and_terminate => GroupPhase::Done,
            None => GroupPhase::Disabled,
        };
        self.tell_of(&group.name, None, What::GroupEnded { error });
    }

    /// Gives one instance back, while its group goes on.
    pub(super) fn return_instance(&mut self, site: &Site, instance: &mut InstanceRoll, why: String, mut call: Call) {
        self.withdraw_questions_about(&instance.id);
        self.seen_given_back(instance, call);
        let mut failed = false;
        for (action, clear) in give_back(site, instance) {
            match self.given_back(site, Some(&instance.clone()), call, &action) {
                Called::Busy => failed |= self.result(&action).is_some(),
                // What cannot be given back is on record; the group goes on.
                Called::Done | Called::Refused(_) => clear(&mut instance.held),
            }
        }
        let left = give_back(site, instance);
        if left.is_empty() {
            self.tell_of(&site.name, Some(instance), What::Skipped { why: why.clone() });
            self.condemned.remove(&instance.id);
            instance.phase = InstancePhase::Skipped { why };
            return;
        }
        if failed {
            call.not_before = later(self.now, backoff(call.attempts));
        }
        if call.not_before <= self.now {
            call.attempts = call.attempts.saturating_add(1);
            for (action, _) in left {
                self.command(&site.name, Some(instance), action);
            }
        } else {
            let reason = WaitReason::Retry { group: site.name.clone(), instance: instance.id.clone(), call: "give back".to_owned() };
            self.wait(call.not_before, reason);
        }
        instance.phase = InstancePhase::Returning { why, call };
    }

    /// What became of giving something back; given up in the end.
    fn given_back(&mut self, site: &Site, instance: Option<&InstanceRoll>, call: Call, action: &Action) -> Called {
        match self.result(action) {
            Some(Ok(())) => Called::Done,
            Some(Err(error)) => {
                self.refused(&site.name, instance, action, error);
                let may_pass = error.kind != Refusal::Permanent;
                if may_pass && self.now.duration_since(call.since) < LONGEST {
                    return Called::Busy;
                }
                let what = instance.map_or(site.auto_scaling_group.as_str(), |instance| instance.id.as_str());
                Called::Refused(format!("could not {} {what}: {}", super::turn::verb(action), error.message))
            }
            None => Called::Busy,
        }
    }
}

impl InstanceRoll {
    /// Whether it is still there and nothing is under way with it: it has its turn before it, or was given up.
    pub(super) fn is_left(&self) -> bool {
        matches!(self.phase, InstancePhase::Waiting | InstancePhase::Failed { .. })
    }
}

type Clear = fn(&mut Held);

/// What gives an instance back, in the reverse order, and the mark that it clears.
fn give_back(site: &Site, instance: &InstanceRoll) -> Vec<(Action, Clear)> {
    let held = instance.held;
    let mut actions: Vec<(Action, Clear)> = Vec::new();
    // A detached instance belongs to no group that could register it.
    if held.deregistered && !instance.is_detached() {
        let action = Action::Register { auto_scaling_group: site.auto_scaling_group.clone(), instance: instance.id.clone() };
        actions.push((action, |held| held.deregistered = false));
    }
    let Some(node) = &instance.node else { return actions };
    if held.excluded {
        actions.push((Action::IncludeInLoadBalancers { node: node.clone() }, |held| held.excluded = false));
    }
    if held.cordoned {
        actions.push((Action::Uncordon { node: node.clone() }, |held| held.cordoned = false));
    }
    if held.tainted {
        actions.push((Action::Untaint { node: node.clone() }, |held| held.tainted = false));
    }
    actions
}
