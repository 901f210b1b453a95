//! One decision in the making: what is known, and what is decided so far.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::drain::look;
use super::wait::{Until, WaitReason, earliest};
use super::{Observation, View, later};
use crate::command::{Action, Command, CommandError, Refusal};
use crate::control::{Choice, Control, Question};
use crate::event::{RollEvent, What};
use crate::inventory::Inventory;
use crate::kubernetes::ClusterFacts;
use crate::options::RollOptions;
use crate::spec::{Manager, Role};
use crate::state::{Call, GroupRoll, InstancePhase, InstanceRoll, Origin, Outcome, RollState};
use crate::validation::{Failure, FailureKind, Leaving, validate};

/// First pause before a failed call is decided on again; it doubles up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: SignedDuration = SignedDuration::from_secs(5);
const MAX_BACKOFF: SignedDuration = SignedDuration::from_secs(60);
/// A target group drains connections for an hour at most, so what takes longer will not come to an end.
const LONGEST_PENDING: SignedDuration = SignedDuration::from_mins(65);
/// How often to look whether somebody has resumed, aborted or answered.
const CONTROL_POLL: SignedDuration = SignedDuration::from_mins(1);

#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub(super) struct Turn<'a> {
    pub(super) options: &'a RollOptions,
    pub(super) now: Timestamp,
    pub(super) inventory: &'a Inventory,
    pub(super) facts: Result<&'a ClusterFacts, &'a str>,
    pub(super) control: &'a Control,
    /// What is observed is newer than the last commands.
    pub(super) fresh: bool,
    pub(super) view: &'a View<'a>,
    pub(super) commands: Vec<Command>,
    pub(super) events: Vec<RollEvent>,
    pub(super) wait: Option<Until>,
    pub(super) questions: Vec<Question>,
    pub(super) asks_no_more: bool,
    pub(super) checkpoint_passed: bool,
    /// What was in flight is given back, not finished.
    pub(super) aborting: bool,
    /// Instances that had their turn, and all, warm ones left out.
    pub(super) replaced: (usize, usize),
    /// Instances that the roll takes out of service or has detached, so that they do not count as serving.
    pub(super) condemned: HashSet<String>,
    /// Those of them whose termination or detachment is decided, so that they are no members any more.
    pub(super) leaving: BTreeMap<String, Leaving>,
    results: BTreeMap<&'a Action, &'a Result<(), CommandError>>,
    excused: HashSet<(FailureKind, String)>,
    failures: OnceCell<Vec<Failure>>,
}

/// The group that an instance belongs to, as far as its steps need it.
pub(super) struct Site {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) manager: Manager,
    pub(super) auto_scaling_group: String,
    /// How many of its instances may be down at once.
    pub(super) limit: usize,
    /// How many it lacked from the beginning.
    pub(super) lacking: usize,
}

/// How far a call is.
pub(super) enum Called {
    /// It is done.
    Done,
    /// It is decided on, or its next attempt is awaited.
    Busy,
    /// It will not be done.
    Refused(String),
}

impl Call {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { since: now, attempts: 0, not_before: now }
    }
}

pub(super) fn backoff(attempts: u32) -> SignedDuration {
    FIRST_BACKOFF.saturating_mul(2_i32.saturating_pow(attempts.saturating_sub(1))).min(MAX_BACKOFF)
}

impl<'a> Turn<'a> {
    pub(super) fn new(options: &'a RollOptions, observation: &Observation<'a>, view: &'a View<'a>) -> Self {
        Self {
            options,
            now: observation.now,
            inventory: observation.inventory,
            facts: observation.kubernetes,
            control: observation.control,
            fresh: observation.results.is_empty(),
            view,
            commands: Vec::new(),
            events: Vec::new(),
            wait: None,
            questions: Vec::new(),
            asks_no_more: false,
            checkpoint_passed: false,
            aborting: false,
            replaced: (0, 0),
            condemned: HashSet::new(),
            leaving: BTreeMap::new(),
            results: observation.results.iter().map(|result| (&result.command.action, &result.result)).collect(),
            excused: HashSet::new(),
            failures: OnceCell::new(),
        }
    }

    /// Takes over from the state what concerns the decision as a whole; [`Self::put_back`] gives it back.
    pub(super) fn begin(&mut self, state: &mut RollState) {
        self.questions = std::mem::take(&mut state.questions);
        (self.asks_no_more, self.checkpoint_passed) = (state.asks_no_more, state.checkpoint_passed);
        self.aborting = matches!(state.outcome, Outcome::Unwinding { aborted: true, .. });
        self.baseline(state);
    }

    /// Remembers, once, the failures that are there before anything is touched.
    fn baseline(&mut self, state: &mut RollState) {
        if self.options.cloudonly || !self.options.validation_baseline {
            return;
        }
        if state.baseline.is_none()
            && let Ok(facts) = self.facts
        {
            let mut failures = validate(self.inventory, facts, &BTreeMap::new(), 0);
            failures.retain(|failure| failure.is_excusable(self.inventory));
            if !failures.is_empty() {
                self.tell(What::Baseline { failures: failures.clone() });
            }
            state.baseline = Some(failures);
        }
        self.excused = state.baseline.iter().flatten().map(|failure| (failure.kind, failure.name.clone())).collect();
    }

    /// Counts over all groups, after they have absorbed the news.
    pub(super) fn take_stock(&mut self, state: &mut RollState) {
        for instance in state.groups.iter().flat_map(|group| &group.instances) {
            if instance.origin != Origin::WarmPool {
                self.replaced.0 += usize::from(instance.phase == InstancePhase::Done);
                self.replaced.1 += 1;
            }
            // Those that are gone for certain need not be remembered: a long roll has thousands of them.
            if instance.gone.is_none() {
                let leaving = match (instance.phase.is_condemned(), instance.detached.is_some()) {
                    (true, _) => Some(Leaving::Terminated),
                    (false, true) => Some(Leaving::Detached),
                    (false, false) => None,
                };
                if let Some(leaving) = leaving {
                    self.leaving.insert(instance.id.clone(), leaving);
                }
                if leaving.is_some() || instance.phase.is_in_flight() {
                    self.condemned.insert(instance.id.clone());
                }
            }
        }
        for group in state.groups.iter_mut().filter(|group| group.lacking > 0) {
            if let Some(cloud) = self.inventory.groups.get(&group.name) {
                group.lacking = group.lacking.min(self.lacks(cloud));
            }
        }
    }

    /// Gives back to the state what [`Self::begin`] took.
    pub(super) fn put_back(&mut self, state: &mut RollState) {
        state.questions = std::mem::take(&mut self.questions);
        (state.asks_no_more, state.checkpoint_passed) = (self.asks_no_more, self.checkpoint_passed);
    }

    /// The failures that stand in the way of a group: those that concern it and were not there before.
    pub(super) fn failures(&self, group: &GroupRoll) -> Vec<Failure> {
        let failures = self.failures.get_or_init(|| match self.facts {
            Ok(facts) => validate(self.inventory, facts, &self.leaving, 0),
            Err(message) => vec![Failure::unanswered(message)],
        });
        let stands = |failure: &&Failure| {
            failure.concerns(&group.name, self.inventory)
                && !(self.excused.contains(&(failure.kind, failure.name.clone()))
                    && failure.lacking <= group.lacking
                    && failure.is_excusable(self.inventory))
        };
        failures.iter().filter(stands).cloned().collect()
    }

    /// What became of an action of the last decision.
    pub(super) fn result(&self, action: &Action) -> Option<&'a Result<(), CommandError>> {
        self.results.get(action).copied()
    }

    /// The site of a group.
    pub(super) fn site(&self, group: &GroupRoll) -> Site {
        let auto_scaling_group = match self.inventory.groups.get(&group.name) {
            Some(cloud) => cloud.auto_scaling_group.clone(),
            None => group.role.auto_scaling_group_name(&group.name, &self.inventory.cluster.name),
        };
        Site {
            name: group.name.clone(),
            role: group.role,
            manager: group.manager,
            auto_scaling_group,
            limit: group.limit(self.options),
            lacking: group.lacking,
        }
    }

    /// Decides on a command.
    pub(super) fn command(&mut self, group: &str, instance: Option<&InstanceRoll>, action: Action) {
        self.tell_of(group, instance, What::Effect { effect: action.clone() });
        self.commands.push(Command { group: group.to_owned(), action });
    }

    /// Carries a call on: decides on it, again if its result is not known (the process was killed) or may pass.
    pub(super) fn call(&mut self, site: &Site, instance: Option<&InstanceRoll>, call: &mut Call, action: &Action) -> Called {
        match self.result(action) {
            Some(Ok(())) => return Called::Done,
            Some(Err(error)) => {
                let waited = self.now.duration_since(call.since);
                match error.kind {
                    Refusal::Pending if waited < LONGEST_PENDING => call.not_before = later(self.now, look(self.now, call.since)),
                    Refusal::Transient | Refusal::Blocked if waited < self.options.validation_timeout => {
                        self.refused(&site.name, instance, action, error);
                        call.not_before = later(self.now, backoff(call.attempts));
                    }
                    _ => {
                        self.refused(&site.name, instance, action, error);
                        return Called::Refused(error.message.clone());
                    }
                }
            }
            None if call.not_before <= self.now => {
                call.attempts = call.attempts.saturating_add(1);
                self.command(&site.name, instance, action.clone());
                return Called::Busy;
            }
            None => {}
        }
        let (group, instance) = (site.name.clone(), instance.map(|instance| instance.id.clone()).unwrap_or_default());
        let reason = match action {
            Action::Deregister { .. } => WaitReason::Deregistration { group, instance },
            _ => WaitReason::Retry { group, instance, call: verb(action).to_owned() },
        };
        self.wait(call.not_before, reason);
        Called::Busy
    }

    /// Waits for something, at the latest until then.
    pub(super) fn wait(&mut self, at: Timestamp, reason: WaitReason) {
        self.wait = Some(earliest(self.wait.take(), Until { at, reason }));
    }

    /// Whether nothing new may be started now.
    pub(super) fn held_back(&mut self) -> bool {
        if self.control.paused {
            self.wait(later(self.now, CONTROL_POLL), WaitReason::Paused);
            return true;
        }
        match self.control.closed_until {
            Some(until) if until > self.now => {
                self.wait(until.min(later(self.now, CONTROL_POLL)), WaitReason::Closed { until });
                true
            }
            _ => false,
        }
    }

    /// Puts a question, unless it is open already.
    pub(super) fn ask(&mut self, instance: Option<&InstanceRoll>, question: Question) {
        if self.questions.iter().all(|open| open.id != question.id) {
            let (id, text) = (question.id.clone(), question.to_string());
            self.tell_of(&question.group.clone(), instance, What::Asked { question: id, text });
            self.questions.push(question);
        }
    }

    /// How an open question is decided: by an answer, or by its deadline. It is closed then.
    pub(super) fn decided(&mut self, id: &str) -> Option<Choice> {
        let question = self.questions.iter().find(|question| question.id == id)?;
        let answer = self.control.answer(id).filter(|answer| question.choices().contains(&answer.choice));
        let (choice, by) = match answer {
            Some(answer) => (answer.choice, answer.by.clone()),
            None => (question.default.filter(|_| question.deadline.is_some_and(|deadline| deadline <= self.now))?, String::new()),
        };
        let group = question.group.clone();
        self.questions.retain(|question| question.id != id);
        self.tell_of(&group, None, What::Decided { question: id.to_owned(), choice, by: by.clone() });
        Some(choice)
    }

    /// Who answered a question so that the roll stops.
    pub(super) fn answered_abort(&mut self) -> Option<String> {
        let aborts = |question: &&Question| self.control.answer(&question.id).is_some_and(|answer| answer.choice == Choice::Abort);
        let id = self.questions.iter().find(aborts)?.id.clone();
        let by = self.control.answer(&id).map(|answer| answer.by.clone()).filter(|by| !by.is_empty());
        self.decided(&id);
        Some(format!("{} answered question {id} with abort", by.unwrap_or_else(|| "somebody".to_owned())))
    }

    /// Waits for the answer to an open question.
    pub(super) fn wait_for_answer(&mut self, id: &str, poll: SignedDuration) {
        let Some(question) = self.questions.iter().find(|question| question.id == id) else { return };
        let at = later(self.now, poll);
        let reason = WaitReason::Question { id: id.to_owned(), text: question.to_string(), deadline: question.deadline };
        self.wait(question.deadline.map_or(at, |deadline| deadline.min(at)), reason);
    }

    /// Waits for the answer to a question of the whole group.
    pub(super) fn wait_for_decision(&mut self, id: &str) {
        self.wait_for_answer(id, CONTROL_POLL);
    }

    /// Closes questions that nobody needs to answer any more.
    pub(super) fn withdraw_questions(&mut self, is_moot: impl Fn(&Question) -> bool) {
        let (moot, open) = std::mem::take(&mut self.questions).into_iter().partition(is_moot);
        self.questions = open;
        for question in moot {
            let Question { group, id, .. }: Question = question;
            self.tell_of(&group, None, What::Withdrawn { question: id });
        }
    }

    /// Records something about the whole roll.
    pub(super) fn tell(&mut self, what: What) {
        self.events.push(RollEvent { at: self.now, group: None, instance: None, node: None, what });
    }

    /// Records something about a group or an instance.
    pub(super) fn tell_of(&mut self, group: &str, instance: Option<&InstanceRoll>, what: What) {
        let (id, node) = match instance {
            Some(instance) => (Some(instance.id.clone()), instance.node.clone()),
            None => (None, None),
        };
        self.events.push(RollEvent { at: self.now, group: Some(group.to_owned()), instance: id, node, what });
    }

    pub(super) fn refused(&mut self, group: &str, instance: Option<&InstanceRoll>, action: &Action, error: &CommandError) {
        let what = What::Refused { effect: action.clone(), kind: error.kind, message: error.message.clone() };
        self.tell_of(group, instance, what);
    }
}

/// What a call does, for people.
pub(super) fn verb(action: &Action) -> &'static str {
    match action {
        Action::SuspendRebalance { .. } => "suspend AZRebalance",
        Action::ResumeRebalance { .. } => "resume AZRebalance",
        Action::Taint { .. } => "taint",
        Action::Untaint { .. } => "untaint",
        Action::Cordon { .. } => "cordon",
        Action::Uncordon { .. } => "uncordon",
        Action::ExcludeFromLoadBalancers { .. } => "exclude from load balancers",
        Action::IncludeInLoadBalancers { .. } => "include in load balancers",
        Action::Deregister { .. } => "deregister",
        Action::Register { .. } => "register",
        Action::Evict { .. } => "evict a pod of",
        Action::DeletePod { .. } => "delete a pod of",
        Action::MarkDetached { .. } => "tag",
        Action::Detach { .. } => "detach",
        Action::Terminate { .. } => "terminate",
    }
}
