//! Drains: pods are evicted and waited for, one short look at a time. kOps uses kubectl's drain with the same settings
//! (kOps 1.36 `pkg/instancegroups/instancegroups.go`, `drainNode`): pods without a controller and with local storage are
//! evicted too; pods of a `DaemonSet`, static pods and finished ones stay.

use jiff::{SignedDuration, Timestamp};

use super::turn::{Site, Turn};
use super::wait::WaitReason;
use super::{MOMENT, later};
use crate::command::{Action, Refusal};
use crate::control::{About, Choice, Question};
use crate::event::What;
use crate::kubernetes::PodFacts;
use crate::options::StuckDrain;
use crate::state::{Blocker, Call, Drain, GroupError, InstancePhase, InstanceRoll};

/// How often to evict again what a budget held back; kOps retries as often.
const POLL: SignedDuration = SignedDuration::from_secs(5);
/// The shortest time between two looks at a drain.
const SHORTEST_LOOK: SignedDuration = SignedDuration::from_secs(1);
/// The same while a question about the drain is open.
const PATIENT_POLL: SignedDuration = SignedDuration::from_secs(30);
/// Pods created so long after the drain began tolerate the cordon; as pods of a `DaemonSet` they are not waited for.
const LATE: SignedDuration = SignedDuration::from_mins(1);
/// How long deleted pods have until their instance is terminated anyway.
const FORCED: SignedDuration = SignedDuration::from_mins(1);

impl Turn<'_> {
    /// Carries a drain on.
    pub(super) fn drain(&mut self, site: &Site, instance: &mut InstanceRoll, mut drain: Drain) -> Result<(), GroupError> {
        let node = instance.node.clone().unwrap_or_default();
        let question = format!("drain-{}-{}", instance.id, drain.asked);
        if let Some(choice) = self.decided(&question) {
            return self.decide(site, instance, drain, choice);
        }
        let pods: Vec<_> = match self.facts {
            Err(_) => Vec::new(),
            Ok(_) if self.view.node(&node).is_none() => return self.drained(site, instance),
            Ok(_) => {
                let late = later(drain.began, LATE);
                self.view.pods_on(&node).iter().copied().filter(|pod| pod.created.is_none_or(|created| created <= late)).collect()
            }
        };
        // What was seen before the node was cordoned does not count.
        if self.fresh && self.facts.is_ok() && pods.is_empty() {
            return self.drained(site, instance);
        }
        if let Some(error) = self.evictions(site, instance, &mut drain, &pods) {
            instance.phase = InstancePhase::Draining(drain);
            return match self.drain_error(site, instance, error, false) {
                Ok(()) => self.drained(site, instance),
                Err(error) => Err(error),
            };
        }
        if self.facts.is_ok() {
            drain.remaining = pods.len();
            self.choose_blocker(&mut drain, &pods);
        }
        let open = self.questions.iter().any(|open| open.id == question);
        if let Some(forced) = drain.forced {
            if self.now >= later(forced, FORCED) {
                return self.drained(site, instance);
            }
        } else if !open && let Some(why) = self.stuck(&drain) {
            return self.stuck_drain(site, instance, drain, &why);
        }
        if self.fresh && self.facts.is_ok() && drain.not_before <= self.now {
            self.evict(site, instance, &mut drain, &pods, open);
        }
        self.wait_for_drain(site, instance, &drain, &node);
        instance.phase = InstancePhase::Draining(drain);
        Ok(())
    }

    /// Asks for the eviction of every pod that is not on its way out already; when forced, for its deletion.
    fn evict(&mut self, site: &Site, instance: &InstanceRoll, drain: &mut Drain, pods: &[&PodFacts], open: bool) {
        drain.not_before = later(self.now, if open { PATIENT_POLL } else { POLL });
        for pod in pods.iter().filter(|pod| pod.deleting.is_none()) {
            let action = action(drain, pod);
            self.command(&site.name, Some(instance), action);
        }
    }

    /// What became of the last evictions; an error that no retry will mend.
    fn evictions(&mut self, site: &Site, instance: &InstanceRoll, drain: &mut Drain, pods: &[&PodFacts]) -> Option<String> {
        if self.fresh {
            return None;
        }
        let mut refused = None;
        for pod in pods {
            let action = action(drain, pod);
            let Some(Err(error)) = self.result(&action) else { continue };
            if error.kind == Refusal::Permanent {
                self.refused(&site.name, Some(instance), &action, error);
                let node = instance.node.as_deref().unwrap_or_default();
                return Some(format!("node {node} ({}) could not be drained: pod {}: {}", instance.id, pod.reference(), error.message));
            }
            if error.kind == Refusal::Blocked || refused.is_none() {
                refused = Some((pod, action, error));
            }
        }
        let (pod, action, error) = refused?;
        let blocker = self.blocker(pod, error.kind == Refusal::Blocked);
        if drain.blocker.as_ref().is_none_or(|known| known.pod != blocker.pod || known.budget != blocker.budget) {
            self.refused(&site.name, Some(instance), &action, error);
        }
        drain.blocker = Some(blocker);
        None
    }

    /// Names a pod that is left, one that a budget holds back before others.
    fn choose_blocker(&self, drain: &mut Drain, pods: &[&PodFacts]) {
        let name = |pod: &PodFacts| pod.reference().to_string();
        if let Some(known) = &drain.blocker
            && let Some(pod) = pods.iter().find(|pod| name(pod) == known.pod)
        {
            // Once it is on its way out no budget holds it any more.
            if self.fresh && known.budget.is_some() {
                drain.blocker = Some(self.blocker(pod, pod.deleting.is_none()));
            }
            return;
        }
        drain.blocker = pods.first().map(|pod| Blocker { pod: name(pod), budget: None, hopeless: None });
    }

    fn blocker(&self, pod: &PodFacts, by_budget: bool) -> Blocker {
        let reference = pod.reference().to_string();
        if !by_budget {
            return Blocker { pod: reference, budget: None, hopeless: None };
        }
        let mut budgets = self.view.budgets_of(pod);
        // The one that allows least is the one that refuses.
        budgets.sort_by_key(|budget| budget.disruptions_allowed);
        let budget = budgets.first().map(|budget| format!("{}/{}", budget.namespace, budget.name));
        let hopeless = if budgets.len() > 1 {
            Some("more than one PodDisruptionBudget covers the pod, which the Eviction API refuses".to_owned())
        } else {
            // A pod that is not healthy does not count, so its budget may let it go.
            budgets.first().filter(|_| pod.ready).and_then(|budget| budget.hopeless())
        };
        Blocker { pod: reference, budget, hopeless }
    }

    /// Why the drain counts as stuck.
    fn stuck(&self, drain: &Drain) -> Option<String> {
        let pod = || drain.blocker.as_ref().map(|blocker| format!(": {}", words(blocker))).unwrap_or_default();
        let hopeless = drain.blocker.as_ref().is_some_and(|blocker| blocker.hopeless.is_some());
        // Somebody who said to wait knows of the budget.
        if hopeless && self.options.detect_hopeless_budgets && drain.asked == 0 {
            return Some(format!("it cannot be drained{}", pod()));
        }
        let timeout = self.options.drain_timeout;
        if !timeout.is_zero() && self.now >= later(drain.since, timeout) {
            let why = if let Err(message) = self.facts { format!(": the Kubernetes API does not answer: {message}") } else { pod() };
            return Some(format!("it was not drained within {timeout:#}{why}"));
        }
        None
    }

    /// The drain is stuck: somebody is asked, or the options decide.
    fn stuck_drain(&mut self, site: &Site, instance: &mut InstanceRoll, mut drain: Drain, why: &str) -> Result<(), GroupError> {
        let undecided = self.options.undecided_drain();
        let choice = match self.options.on_stuck_drain.unwrap_or(undecided) {
            StuckDrain::Ask => {
                drain.asked = drain.asked.saturating_add(1);
                let (id, node) = (format!("drain-{}-{}", instance.id, drain.asked), instance.node.clone().unwrap_or_default());
                let blocker = drain.blocker.clone();
                let about = About::StuckDrain {
                    instance: instance.id.clone(),
                    node: node.clone(),
                    pod: blocker.as_ref().map(|blocker| blocker.pod.clone()),
                    budget: blocker.as_ref().and_then(|blocker| blocker.budget.clone()),
                    remaining: drain.remaining,
                    hopeless: blocker.and_then(|blocker| blocker.hopeless),
                };
                let deadline = Some(later(self.now, self.options.drain_decision_timeout));
                let default = Some(if undecided == StuckDrain::Force { Choice::Force } else { Choice::Fail });
                self.ask(Some(instance), Question { id: id.clone(), asked: self.now, deadline, default, group: site.name.clone(), about });
                self.wait_for_drain(site, instance, &drain, &node);
                instance.phase = InstancePhase::Draining(drain);
                return Ok(());
            }
            StuckDrain::Fail => Choice::Fail,
            StuckDrain::Force => Choice::Force,
            StuckDrain::Skip => Choice::Skip,
        };
        if choice != Choice::Fail {
            self.tell_of(&site.name, Some(instance), What::DrainIgnored { error: why.to_owned() });
        }
        self.decide(site, instance, drain, choice)
    }

    /// What was decided about a stuck drain.
    fn decide(&mut self, site: &Site, instance: &mut InstanceRoll, drain: Drain, choice: Choice) -> Result<(), GroupError> {
        let node = instance.node.clone().unwrap_or_default();
        let why = drain.blocker.as_ref().map(|blocker| format!(": {}", words(blocker))).unwrap_or_default();
        match choice {
            Choice::Wait | Choice::Continue | Choice::Always => {
                let drain = Drain { since: self.now, not_before: self.now, ..drain };
                instance.phase = InstancePhase::Draining(drain.clone());
                self.drain(site, instance, drain)
            }
            Choice::Force => {
                let drain = Drain { forced: Some(self.now), not_before: self.now, ..drain };
                instance.phase = InstancePhase::Draining(drain.clone());
                self.drain(site, instance, drain)
            }
            Choice::Skip => {
                let why = format!("node {node} could not be drained{why}");
                self.return_instance(site, instance, why, Call::new(self.now));
                Ok(())
            }
            // An abort is carried out before anything else.
            Choice::Fail | Choice::Abort => {
                Err(self.give_up(instance, format!("node {node} ({}) could not be drained{why}", instance.id), false))
            }
        }
    }

    /// No pod is left, or none that is waited for.
    fn drained(&mut self, site: &Site, instance: &mut InstanceRoll) -> Result<(), GroupError> {
        instance.drained = Some(self.now);
        instance.phase = InstancePhase::Settling { since: self.now };
        self.withdraw_questions_about(&instance.id);
        self.tell_of(&site.name, Some(instance), What::Drained);
        self.instance(site, instance)
    }

    /// Closes the questions about an instance's drain: it came to its end.
    pub(super) fn withdraw_questions_about(&mut self, id: &str) {
        let is_about = |question: &Question| matches!(&question.about, About::StuckDrain { instance, .. } if instance == id);
        if self.questions.iter().any(is_about) {
            self.withdraw_questions(is_about);
        }
    }

    fn wait_for_drain(&mut self, site: &Site, instance: &InstanceRoll, drain: &Drain, node: &str) {
        let id = format!("drain-{}-{}", instance.id, drain.asked);
        if self.questions.iter().any(|question| question.id == id) {
            return self.wait_for_answer(&id, PATIENT_POLL);
        }
        if self.facts.is_err() {
            return self.wait_for_kubernetes();
        }
        let deadline = (!self.options.drain_timeout.is_zero()).then(|| later(drain.since, self.options.drain_timeout));
        let (group, instance) = (site.name.clone(), instance.id.clone());
        let reason = WaitReason::Drain {
            group,
            instance,
            node: node.to_owned(),
            remaining: drain.remaining,
            pod: drain.blocker.as_ref().map(|blocker| blocker.pod.clone()),
            budget: drain.blocker.as_ref().and_then(|blocker| blocker.budget.clone()),
            deadline,
        };
        let is_held = drain.blocker.as_ref().is_some_and(|blocker| blocker.budget.is_some());
        let at = if !self.fresh && drain.not_before <= self.now {
            // Nothing is evicted yet, for want of a look at the cordoned node.
            later(self.now, MOMENT)
        } else if is_held {
            drain.not_before.max(later(self.now, SHORTEST_LOOK))
        } else {
            later(self.now, look(self.now, drain.began))
        };
        self.wait(deadline.map_or(at, |deadline| if deadline > self.now { deadline.min(at) } else { at }), reason);
    }

    pub(super) fn wait_for_kubernetes(&mut self) {
        if let Err(message) = self.facts {
            self.wait(later(self.now, POLL), WaitReason::Kubernetes { message: message.to_owned() });
        }
    }

    pub(super) fn wait_for_retry(&mut self, site: &Site, call: Call, what: &str) {
        let reason = WaitReason::Retry { group: site.name.clone(), instance: String::new(), call: what.to_owned() };
        self.wait(call.not_before, reason);
    }
}

/// When to look again at what is on its way out: soon at first, as most pods go at once; what takes long is looked at more
/// seldom, because a look lists all pods.
pub(super) fn look(now: Timestamp, since: Timestamp) -> SignedDuration {
    (now.duration_since(since) / 4).clamp(SHORTEST_LOOK, POLL)
}

fn action(drain: &Drain, pod: &PodFacts) -> Action {
    if drain.forced.is_some() { Action::DeletePod { pod: pod.reference() } } else { Action::Evict { pod: pod.reference() } }
}

/// What holds a drain up, for people.
fn words(blocker: &Blocker) -> String {
    let pod = &blocker.pod;
    match (&blocker.budget, &blocker.hopeless) {
        (Some(budget), Some(hopeless)) => {
            format!("PodDisruptionBudget {budget} does not allow the eviction of pod {pod} and never will: {hopeless}")
        }
        (Some(budget), None) => format!("PodDisruptionBudget {budget} does not allow the eviction of pod {pod}"),
        (None, _) => format!("pod {pod} is still there"),
    }
}
