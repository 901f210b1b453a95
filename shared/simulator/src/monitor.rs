//! What must hold in every roll, checked on what the world saw, not on what the planner recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::SignedDuration;
use kopsline_rolling::{
    About, Action, Choice, CloudGroup, ClusterSpec, Command, Control, GroupRoll, Instance, InstancePhase, InstanceRoll, Inventory, Manager,
    Outcome, Preview, Question, RawInventory, Role, RollEvent, RollOptions, RollState, Settings, StuckDrain, classify,
};

use crate::arena::{GroupId, InstanceId, NodeId};
use crate::reading::{Ailment, Reading, Seen};
use crate::world::{Balancer, Effect, Executed, Life, Moment, World};

/// What was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Only what was to be replaced is touched.
    Selected,
    /// Nothing is terminated again whose end was confirmed.
    Once,
    /// Never more of a group is down than its surge and maxUnavailable allow.
    Availability,
    /// Where nothing is up to date, the first instance is replaced alone.
    FirstAlone,
    /// Never two members of the control plane are down.
    ControlPlane,
    /// The members of etcd keep their quorum.
    Quorum,
    /// Nothing is started while the cluster is not well.
    Health,
    /// After a termination the cluster is found well so many times before the next.
    Validated,
    /// Nothing is terminated undrained.
    Drained,
    /// No pod is deleted past its budget.
    Budget,
    /// An instance is tagged before it is detached.
    Tagged,
    /// Roles come in their order, and groups of a role one after the other.
    Order,
    /// The interval after a termination is kept.
    Interval,
    /// What is not to be drained or terminated is left alone.
    Disabled,
    /// Without a Kubernetes API none is spoken to.
    CloudOnly,
    /// A roll that ended leaves nothing behind.
    LeftBehind,
    /// A roll that is done has replaced what was to be replaced, or says what it has not.
    Complete,
    /// A roll ends in time.
    Progress,
    /// Planner and host keep to what they have agreed on.
    Contract,
    /// Every effect has its intent in the state, and its record.
    Intent,
    /// Nothing is started while people want it to stop.
    Paused,
    /// After a kill the end is the same.
    Repeatable,
}

/// A rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// When.
    pub at: Moment,
    /// How.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} broken at {} s: {}", self.rule, self.at.since(Moment::default()).as_secs(), self.message)
    }
}

/// What an observation was, and when it was made.
#[derive(Debug, Clone)]
pub struct View {
    /// When.
    pub at: Moment,
    /// What was answered.
    pub raw: Arc<RawInventory>,
    /// Why the Kubernetes API did not answer, if it did not.
    pub silent: Option<&'static str>,
}

/// What came with a decision.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    /// What is recorded.
    pub events: &'a [RollEvent],
    /// What people wanted.
    pub control: &'a Control,
    /// Whether its state is the stored one. A process that has not noticed yet that another one was first has an old one.
    pub is_stored: bool,
}

/// What a group looked like when the roll began.
#[derive(Debug, Clone)]
struct Start {
    role: Role,
    manager: Manager,
    settings: Settings,
    /// How many instances may be down at once.
    allowed: usize,
    /// How many slots the surge has.
    surge: usize,
    first_alone: bool,
    /// How many instances did not serve when the roll began, and are put up with.
    lacking: usize,
}

/// What the roll took in hand of an instance.
#[derive(Debug, Clone, Copy)]
struct Taken {
    terminated: Option<Moment>,
}

/// What was there before the roll, to be there after it.
#[derive(Debug, Clone, Default)]
struct Before {
    cordoned: BTreeSet<NodeId>,
    tainted: BTreeSet<NodeId>,
    excluded: BTreeSet<NodeId>,
    out: BTreeSet<InstanceId>,
    suspended: BTreeMap<GroupId, BTreeSet<String>>,
}

/// Watches a roll.
#[derive(Debug)]
pub struct Monitor {
    /// What was broken.
    pub violations: Vec<Violation>,
    spec: Arc<ClusterSpec>,
    options: RollOptions,
    cluster: bool,
    before: Before,
    ailing: Vec<Ailment>,
    starts: BTreeMap<String, Start>,
    selected: BTreeSet<String>,
    warm: BTreeSet<String>,
    forced: BTreeSet<String>,
    taken: BTreeMap<InstanceId, Taken>,
    /// Instances that something was done to, and that were not given back since.
    begun: BTreeSet<InstanceId>,
    /// Instances that were gone by themselves when they were to be terminated.
    found_dead: BTreeSet<InstanceId>,
    last_turn: Option<(Role, String)>,
    /// Observations since the last removal, the newest last.
    views: Vec<View>,
    removals: BTreeMap<String, Moment>,
    detached: BTreeMap<String, usize>,
    surge_failed: BTreeSet<String>,
    /// Instances that a person wanted to be drained by force.
    force_answered: BTreeSet<String>,
    /// Effects that the history tells of.
    told: BTreeSet<Action>,
    /// Nothing goes wrong, so that nothing need be asked for twice.
    quiet: bool,
}

impl Monitor {
    /// A monitor of a world in which nothing has been done yet; `quiet` if nothing goes wrong in it.
    pub fn new(world: &World, options: &RollOptions, quiet: bool) -> Self {
        let mut before = Before::default();
        for (id, node) in world.live_nodes() {
            if node.cordoned {
                before.cordoned.insert(id);
            }
            if node.tainted {
                before.tainted.insert(id);
            }
            if node.excluded {
                before.excluded.insert(id);
            }
        }
        for (id, instance) in world.instances.iter() {
            if instance.balancer == Balancer::Out {
                before.out.insert(id);
            }
        }
        before.suspended = world.groups.iter().map(|(id, group)| (id, group.suspended.clone())).collect();
        Self {
            violations: Vec::new(),
            spec: Arc::new(world.spec.clone()),
            options: options.clone(),
            cluster: world.kubernetes,
            before,
            ailing: Vec::new(),
            starts: BTreeMap::new(),
            selected: BTreeSet::new(),
            warm: BTreeSet::new(),
            forced: BTreeSet::new(),
            taken: BTreeMap::new(),
            begun: BTreeSet::new(),
            found_dead: BTreeSet::new(),
            last_turn: None,
            views: Vec::new(),
            removals: BTreeMap::new(),
            detached: BTreeMap::new(),
            surge_failed: BTreeSet::new(),
            force_answered: BTreeSet::new(),
            told: BTreeSet::new(),
            quiet,
        }
    }

    /// A person gave an answer.
    pub fn answered(&mut self, question: &Question, choice: Choice) {
        if let (About::StuckDrain { instance, .. }, Choice::Force) = (&question.about, choice) {
            self.force_answered.insert(instance.clone());
        }
    }

    /// A decision is about to be followed: its state is stored, and its events are recorded with it.
    pub fn decided(&mut self, world: &World, view: &View, before: Option<&RollState>, after: &RollState, decided: Said<'_>) {
        let (now, Said { events, control, is_stored }) = (world.now(), decided);
        if is_stored {
            self.cordoned_before(world, view, after);
        }
        self.find_dead(world, after);
        self.told.extend(events.iter().filter_map(|event| match &event.what {
            kopsline_rolling::What::Effect { effect } => Some(effect.clone()),
            _ => None,
        }));
        let closed = control.closed_until.is_some_and(|until| until > now.timestamp());
        if !(control.paused || closed || control.aborted.is_some()) {
            return;
        }
        let begun = |state: &RollState| -> BTreeSet<String> {
            let instances = state.groups.iter().flat_map(|group| &group.instances);
            instances.filter(|instance| instance.phase != InstancePhase::Waiting).map(|instance| instance.id.clone()).collect()
        };
        let before = before.map(begun).unwrap_or_default();
        // That an instance is gone after all was learnt, not decided: a termination is decided before.
        let decided = |phase: &InstancePhase| phase.is_in_flight() && *phase != InstancePhase::Terminated;
        let started = |instance: &&InstanceRoll| decided(&instance.phase) && !before.contains(&instance.id);
        if let Some(new) = after.groups.iter().flat_map(|group| &group.instances).find(started) {
            self.broken(Rule::Paused, now, format!("{} is started in spite of {control:?}", new.id));
        }
    }

    /// What was to be terminated may have died before, and counts as replaced then.
    fn find_dead(&mut self, world: &World, after: &RollState) {
        for group in &after.groups {
            let had_its_turn = |instance: &&InstanceRoll| matches!(instance.phase, InstancePhase::Terminated | InstancePhase::Done);
            // The first two are all that matters.
            for instance in group.instances.iter().filter(had_its_turn).take(2) {
                let dead = world.instance(&instance.id).filter(|id| !world.instances[*id].alive());
                self.found_dead.extend(dead.filter(|id| !self.taken.contains_key(id)));
            }
        }
    }

    /// What was cordoned before the roll cannot be seen to be taken by its cordon, and may need no call at all before its
    /// termination: what counts is when its turn was decided on, and whether it was put off.
    fn cordoned_before(&mut self, world: &World, view: &View, after: &RollState) {
        let cordoned: BTreeMap<&str, InstanceId> = self
            .before
            .cordoned
            .iter()
            .map(|node| world.nodes[*node].instance)
            .filter(|id| world.instances[*id].alive())
            .map(|id| (world.instances[id].id.as_str(), id))
            .collect();
        if cordoned.is_empty() {
            return;
        }
        for group in &after.groups {
            for instance in &group.instances {
                let Some(&id) = cordoned.get(instance.id.as_str()).filter(|_| !self.warm.contains(&instance.id)) else { continue };
                let drains = instance.phase.is_draining() || matches!(instance.phase, InstancePhase::Terminating { .. });
                if drains && self.selected.contains(&instance.id) && self.begun.insert(id) {
                    self.starting(world, id, &group.name, view, false);
                    self.take(world, id, view);
                } else if matches!(instance.phase, InstancePhase::Waiting | InstancePhase::Skipped { .. })
                    && self.taken.get(&id).is_some_and(|taken| taken.terminated.is_none())
                {
                    self.begun.remove(&id);
                    self.taken.remove(&id);
                }
            }
        }
    }

    /// Whether pods may be deleted, and instances terminated undrained.
    fn may_force(&self, instance: &str) -> bool {
        let by_option = match self.options.on_stuck_drain {
            Some(StuckDrain::Force) => true,
            None | Some(StuckDrain::Ask) => !self.options.fail_on_drain_error,
            Some(StuckDrain::Fail | StuckDrain::Skip) => false,
        };
        by_option || self.force_answered.contains(instance)
    }

    /// Records that a rule was broken.
    pub fn broken(&mut self, rule: Rule, at: Moment, message: String) {
        self.violations.push(Violation { rule, at, message });
    }

    /// The first state was stored: it fixes what will be replaced.
    pub fn began(&mut self, view: &View, approved: Option<&Preview>) {
        let Ok(inventory) = classify(&view.raw, &self.spec) else { return };
        let approved: Option<BTreeSet<&str>> =
            approved.map(|preview| preview.rows.iter().flat_map(|row| &row.replace).map(|instance| instance.id.as_str()).collect());
        let selected = self.options.selection.resolve(&self.spec).unwrap_or_default();
        for group in inventory.groups.values().filter(|group| selected.contains(&group.spec.name)) {
            self.began_group(&inventory, group, approved.as_ref());
        }
        if self.options.validation_baseline {
            let spec = Arc::clone(&self.spec);
            let reading = Reading::of(&view.raw, &spec, &BTreeSet::new());
            for (name, start) in self.starts.iter_mut().filter(|(_, start)| start.role != Role::ControlPlane) {
                let serving = reading.instances.values().filter(|seen| seen.group == name && seen.attached && seen.serves).count();
                start.lacking = reading.desired.get(name.as_str()).copied().unwrap_or(0).saturating_sub(serving);
            }
            self.ailing = reading.ailments;
        }
    }

    fn began_group(&mut self, inventory: &Inventory, group: &CloudGroup, approved: Option<&BTreeSet<&str>>) {
        let forced = if self.options.force { group.ready.as_slice() } else { &[] };
        let is_approved = |instance: &&Instance| approved.is_none_or(|approved| approved.contains(instance.id.as_str()));
        let chosen: Vec<_> = group.need_update.iter().chain(forced).filter(is_approved).collect();
        let joined = chosen.iter().filter(|instance| !instance.warm).count();
        let all = group.ready.len() + group.need_update.len();
        let settings = Settings::resolve(&inventory.cluster.rolling_update, &group.spec.rolling_update, group.spec.manager, all);
        let one_by_one = group.spec.role == Role::ControlPlane || self.options.interactive;
        let surge = match group.spec.role {
            Role::ControlPlane => 0,
            _ => settings.max_surge.min(joined).min(if self.options.interactive { 1 } else { usize::MAX }),
        };
        let start = Start {
            role: group.spec.role,
            manager: group.spec.manager,
            settings,
            allowed: if one_by_one { 1 } else { (surge + settings.max_unavailable).max(1) },
            surge: if group.spec.manager == Manager::Karpenter { 0 } else { surge },
            first_alone: group.ready.is_empty(),
            lacking: 0,
        };
        self.starts.insert(group.spec.name.clone(), start);
        self.warm.extend(chosen.iter().filter(|instance| instance.warm).map(|instance| instance.id.clone()));
        self.forced.extend(forced.iter().map(|instance| instance.id.clone()));
        self.selected.extend(chosen.iter().map(|instance| instance.id.clone()));
    }

    /// A host has observed the world, and has stored what it makes of it.
    pub fn observed(&mut self, view: &View) {
        self.views.push(view.clone());
    }

    /// A command is about to be executed, by a host that has last seen `view`, while `stored` is the checkpoint.
    pub fn command(&mut self, world: &World, command: &Command, view: &View, stored: Option<&RollState>) {
        let now = world.now();
        if !self.cluster && !matches!(command.action, Action::Terminate { .. }) {
            self.broken(Rule::CloudOnly, now, format!("{:?} without a Kubernetes API", command.action));
        }
        if stored.is_some_and(|state| state.outcome.is_final()) {
            self.broken(Rule::Contract, now, format!("{:?} after the end", command.action));
        }
        if !stored.is_some_and(|state| is_intended(state, command, world)) {
            self.broken(Rule::Intent, now, format!("{:?} without a stored intent", command.action));
        }
        let Some(id) = concerned(world, &command.action) else { return };
        let instance = &world.instances[id];
        let group = world.groups[instance.group].spec.name.clone();
        if !self.selected.contains(&instance.id) {
            self.broken(Rule::Selected, now, format!("{:?}, which is not to be replaced", command.action));
            return;
        }
        if group != command.group {
            self.broken(Rule::Contract, now, format!("{:?} is said to be of {}, not of {group}", command.action, command.group));
        }
        if matches!(command.action, Action::Taint { .. } | Action::MarkDetached { .. }) {
            return;
        }
        if self.warm.contains(&instance.id) || !instance.alive() {
            return;
        }
        if let Some(start) = self.starts.get(&group)
            && !start.settings.drain_and_terminate
            && !matches!(command.action, Action::Detach { .. })
        {
            self.broken(Rule::Disabled, now, format!("{:?} of {group}, whose drainAndTerminate is false", command.action));
        }
        // A detached instance serves on; its own turn comes later.
        if matches!(command.action, Action::Detach { .. }) || self.begun.insert(id) {
            if stored.is_some_and(|state| state.outcome != Outcome::Running) {
                self.broken(Rule::Contract, now, format!("{:?} while the roll unwinds", command.action));
            }
            self.starting(world, id, &group, view, matches!(command.action, Action::Detach { .. }));
            // What was cordoned before cannot be seen to be taken by its cordon.
            let is_cordoned = instance.node.is_some_and(|node| world.nodes[node].cordoned);
            if is_cordoned && !matches!(command.action, Action::Detach { .. }) {
                self.take(world, id, view);
            }
        }
        self.check_prepared(world, id, &command.action, view);
    }

    /// Nothing is evicted from a node that still takes pods, and nothing is terminated that still gets connections.
    fn check_prepared(&mut self, world: &World, id: InstanceId, action: &Action, view: &View) {
        let instance = &world.instances[id];
        let group = &world.groups[instance.group];
        if !self.cluster || !self.options.fail_on_drain_error || group.spec.role == Role::Bastion || !seen_as_node(world, id, view) {
            return;
        }
        let schedulable = instance.node.is_some_and(|node| !world.nodes[node].cordoned && !world.nodes[node].removed);
        let ends = matches!(action, Action::Terminate { .. });
        if schedulable && (ends || matches!(action, Action::Evict { .. } | Action::DeletePod { .. })) {
            self.broken(Rule::Drained, world.now(), format!("{action:?}, while its node still takes pods"));
        }
        let serves_api = |role| matches!(role, Role::ControlPlane | Role::ApiServer);
        let api_servers: u32 = self.spec.groups.iter().filter(|group| serves_api(group.role)).map(|group| group.min_size).sum();
        let exempt = group.spec.manager == Manager::Karpenter || (serves_api(group.spec.role) && api_servers <= 1);
        if ends && !exempt && instance.balancer != Balancer::Out {
            self.broken(Rule::Drained, world.now(), format!("{} is terminated while it still gets connections", instance.id));
        }
    }

    /// The first thing that is done to an instance: the order and the cluster's health must allow it.
    fn starting(&mut self, world: &World, id: InstanceId, group: &str, view: &View, surges: bool) {
        let now = world.now();
        let name = &world.instances[id].id;
        let role = world.groups[world.instances[id].group].spec.role;
        let turn = (role, if role == Role::Bastion { String::new() } else { group.to_owned() });
        if let Some(last) = &self.last_turn
            && *last > turn
        {
            let message = format!("{name} of {group} after {} {}", last.0, last.1);
            self.broken(Rule::Order, now, message);
        }
        self.last_turn = Some(turn);
        if !self.cluster || role == Role::Bastion {
            return;
        }
        // Without validations after each step only the one before a group remains.
        let validates = self.options.fail_on_validate_error && (self.options.validate_count > 0 || !self.has_lost(world, group));
        // A surge takes nothing away.
        if validates && !surges {
            self.check_health(world, name, group, view);
        }
    }

    /// Whether the group has lost an instance to the roll, or one whose turn had come.
    fn has_lost(&self, world: &World, group: &str) -> bool {
        let died = |id: &InstanceId| !world.instances[*id].alive() && group_of(world, *id) == group;
        self.removals.contains_key(group) || self.begun.iter().chain(&self.found_dead).chain(self.taken.keys()).any(died)
    }

    fn check_health(&mut self, world: &World, name: &str, group: &str, view: &View) {
        let (now, gone) = (world.now(), self.gone(world, view));
        let spec = Arc::clone(&self.spec);
        let ailing = |view: &View| match &view.raw.kubernetes {
            None => Some("the API does not answer".to_owned()),
            Some(_) => Reading::of(&view.raw, &spec, &gone).concerns(group, &self.ailing).first().map(|ailment| ailment.what.clone()),
        };
        if let Some(what) = ailing(view) {
            return self.broken(Rule::Health, now, format!("{name} of {group} is taken while {what}"));
        }
        let wanted = self.options.validate_count as usize;
        // What was decided in one go with the last removal was decided on an earlier look.
        // Where several are in hand, one may go while the cluster is looked at for another.
        let one_by_one = self.starts.get(group).is_some_and(|start| start.allowed == 1);
        if self.removals.get(group).is_some_and(|removed| *removed < view.at) && wanted > 0 && one_by_one {
            let (mut run, mut longest) = (0, 0);
            let mut views = self.views.iter().rev().peekable();
            while let Some(view) = views.next() {
                let mut well = ailing(view).is_none();
                // Of two hosts at one moment each goes by what it has seen itself, one of them by a list that was late.
                while let Some(other) = views.next_if(|other| other.at == view.at) {
                    well = well || ailing(other).is_none();
                }
                run = if well { run + 1 } else { 0 };
                longest = longest.max(run);
                if longest >= wanted {
                    break;
                }
            }
            if longest < wanted {
                let message = format!("{name} of {group} is taken after {longest} of {wanted} good looks at the cluster");
                self.broken(Rule::Validated, now, message);
            }
        }
    }

    /// A command was executed.
    pub fn executed(&mut self, world: &World, command: &Command, executed: &Executed, view: &View) {
        if matches!(command.action, Action::Detach { .. }) && executed.effect.is_none() {
            self.surge_failed.insert(command.group.clone());
        }
        if executed.effect.is_some() && !self.told.contains(&command.action) {
            self.broken(Rule::Intent, world.now(), format!("the history does not tell of {:?}", command.action));
        }
        if let (Action::Terminate { instance }, None, Ok(())) = (&command.action, &executed.effect, &executed.result)
            && self.quiet
            && world.instance(instance).is_some_and(|id| self.taken.get(&id).is_some_and(|taken| taken.terminated.is_some()))
        {
            self.broken(Rule::Once, world.now(), format!("{instance} is terminated again, though its end was confirmed"));
        }
        match &executed.effect {
            Some(Effect::Cordoned(node)) => self.take(world, world.nodes[*node].instance, view),
            Some(Effect::Uncordoned(node)) => {
                let instance = world.nodes[*node].instance;
                self.begun.remove(&instance);
                if self.taken.get(&instance).is_some_and(|taken| taken.terminated.is_none()) {
                    self.taken.remove(&instance);
                }
                if self.before.cordoned.contains(node) {
                    self.broken(Rule::LeftBehind, world.now(), format!("{} was cordoned before the roll", world.nodes[*node].name));
                }
            }
            Some(Effect::Included(node)) => {
                self.begun.remove(&world.nodes[*node].instance);
            }
            Some(Effect::Registered(instance)) => {
                self.begun.remove(instance);
            }
            Some(Effect::Terminated { instance, left }) => {
                let forced = self.may_force(&world.instances[*instance].id);
                if !left.is_empty() && self.cluster && !forced && seen_as_node(world, *instance, view) {
                    let pods: Vec<_> = left.iter().take(3).map(|pod| world.pod_name(*pod)).collect();
                    let message = format!("{} was terminated with {} pods: {}", world.instances[*instance].id, left.len(), pods.join(", "));
                    self.broken(Rule::Drained, world.now(), message);
                }
                self.take(world, *instance, view);
                self.terminated(world, *instance);
            }
            Some(Effect::Detached(instance)) => {
                let instance = &world.instances[*instance];
                if !instance.marked {
                    let message = format!("{} was detached without its tag", instance.id);
                    self.broken(Rule::Tagged, world.now(), message);
                }
                *self.detached.entry(command.group.clone()).or_default() += 1;
                self.removals.insert(command.group.clone(), world.now());
                self.views.clear();
            }
            Some(Effect::Deleted(pod)) if !self.may_force(on_instance(world, *pod)) => {
                let message = format!("{} was deleted past its budget", world.pod_name(*pod));
                self.broken(Rule::Budget, world.now(), message);
            }
            _ => {}
        }
    }

    /// An instance stops serving by the roll's hand.
    fn take(&mut self, world: &World, id: InstanceId, view: &View) {
        let instance = &world.instances[id];
        if self.taken.contains_key(&id) || self.warm.contains(&instance.id) {
            return;
        }
        self.taken.insert(id, Taken { terminated: None });
        let name = group_of(world, id);
        let Some(start) = self.starts.get(&name).cloned() else { return };
        self.check_pace(world, id, &name, &start);
        let quorum = self.cluster && start.role == Role::ControlPlane;
        // Validation does not look at bastions.
        let validated = self.validates() && start.role != Role::Bastion;
        if self.options.wait_for_replacement || validated || quorum {
            let spec = Arc::clone(&self.spec);
            let gone = self.gone(world, view);
            let reading = Reading::of(&view.raw, &spec, &gone);
            self.check_availability(world, id, &name, &start, &reading);
        }
    }

    /// Instances that the roll had terminated when it looked.
    fn gone<'w>(&self, world: &'w World, view: &View) -> BTreeSet<&'w str> {
        self.taken
            .iter()
            .filter(|(_, taken)| taken.terminated.is_some_and(|at| at < view.at))
            .map(|(id, _)| world.instances[*id].id.as_str())
            .collect()
    }

    /// Whether the cluster must be well before each instance.
    fn validates(&self) -> bool {
        self.cluster && self.options.fail_on_validate_error && self.options.validate_count > 0
    }

    fn interval(&self, role: Role) -> SignedDuration {
        match role {
            Role::Bastion => self.options.bastion_interval,
            Role::ControlPlane => self.options.control_plane_interval,
            Role::ApiServer | Role::Node => self.options.node_interval,
        }
    }

    /// How many of a group, and of the control plane, are in hand within the interval.
    fn check_pace(&mut self, world: &World, id: InstanceId, name: &str, start: &Start) {
        let now = world.now();
        let interval = self.interval(start.role);
        let gone = |id: InstanceId| match world.instances[id].life {
            Life::Dead(at) => Some(at),
            Life::Pending | Life::Running => None,
        };
        // One that died in the middle of its drain went as it was to.
        let in_hand = |id: InstanceId, taken: &Taken| taken.terminated.or_else(|| gone(id)).is_none_or(|at| now.since(at) < interval);
        let others = self.taken.iter().filter(|(other, taken)| **other != id && in_hand(**other, taken));
        let (mut same_group, mut same_role) = (0, 0);
        for (other, _) in others {
            let group = &world.groups[world.instances[*other].group].spec;
            same_group += usize::from(group.name == name);
            same_role += usize::from(group.role == start.role);
        }
        let taken: BTreeSet<InstanceId> = self.taken.keys().copied().collect();
        let of_group = |other: &&InstanceId| **other != id && group_of(world, **other) == name;
        // What came in the place of one that was gone when its turn came proves the configuration too.
        let earlier = || self.taken.keys().chain(self.found_dead.difference(&taken)).filter(of_group).count();
        let earlier = if start.first_alone && same_group > 0 { earlier() } else { 0 };
        if same_group >= start.allowed {
            self.broken(Rule::Interval, now, format!("{} of {name} in hand at once, {} allowed", same_group + 1, start.allowed));
        }
        if start.role == Role::ControlPlane && same_role > 0 {
            self.broken(Rule::ControlPlane, now, format!("{} control-plane instances in hand at once", same_role + 1));
        }
        // A surge proves the configuration just as well.
        let surged = self.detached.contains_key(name) || self.surge_failed.contains(name);
        if !surged && earlier == 1 {
            self.broken(Rule::FirstAlone, now, format!("the first instance of {name} was not alone"));
        }
    }

    fn check_availability(&mut self, world: &World, id: InstanceId, name: &str, start: &Start, reading: &Reading<'_>) {
        let now = world.now();
        let own = world.instances[id].id.as_str();
        let touched: BTreeSet<&str> = self.taken.keys().map(|taken| world.instances[*taken].id.as_str()).collect();
        // Where nothing is validated, only the cloud's word counts; but for the control plane.
        let cloud_alone = !self.validates() && start.role != Role::ControlPlane;
        // Where nobody waits for the cloud to call a replacement in service, a ready node is one, as in kOps' validation: the
        // cloud's word may be old.
        let cluster_alone = !self.options.wait_for_replacement && start.role != Role::ControlPlane;
        let serves = |seen: &Seen<'_>| match (cloud_alone, cluster_alone) {
            (true, _) => seen.in_service,
            (false, true) => seen.ready,
            (false, false) => seen.serves,
        };
        let served = reading.instances.get(own).is_some_and(serves);
        let serving = |role: Option<Role>, detached: bool| {
            let counts = |(other, seen): &(&&str, &Seen<'_>)| {
                role.map_or(seen.group == name, |role| seen.role == role)
                    && serves(seen)
                    && (seen.attached || (detached && !seen.warm))
                    && !touched.contains(**other)
            };
            reading.instances.iter().filter(counts).count()
        };
        if start.role == Role::ControlPlane {
            let all: usize = self
                .spec
                .groups
                .iter()
                .filter(|group| group.role == Role::ControlPlane)
                .filter_map(|group| reading.desired.get(group.name.as_str()))
                .sum();
            let others = serving(Some(Role::ControlPlane), false);
            if served && others + 1 < all {
                self.broken(
                    Rule::ControlPlane,
                    now,
                    format!("{own} is taken while only {} of {all} control-plane instances serve", others + 1),
                );
            }
        }
        let Some(&desired) = reading.desired.get(name).filter(|_| start.manager == Manager::CloudGroup) else { return };
        let down = desired.saturating_sub(serving(None, false) + start.lacking);
        if served && down > start.allowed {
            self.broken(
                Rule::Availability,
                now,
                format!("{down} of {desired} of {name} are down by taking {own}, {} allowed", start.allowed),
            );
        }
        // As long as every slot of a surge runs there is as much capacity as maxUnavailable says. Those slots are not replaced
        // once they go, so that the last instances may be fewer; kOps does so too.
        let slots = |seen: &&Seen<'_>| seen.group == name && !seen.attached && !seen.warm && serves(seen);
        let surged = start.surge > 0 && reading.instances.values().filter(slots).count() >= start.surge;
        if self.cluster && surged && served && !self.surge_failed.contains(name) {
            let down = desired.saturating_sub(serving(None, true) + start.lacking);
            if down > start.settings.max_unavailable {
                let most = start.settings.max_unavailable;
                self.broken(
                    Rule::Availability,
                    now,
                    format!("{down} of {desired} of {name} are missing in spite of the surge, {most} allowed"),
                );
            }
        }
    }

    fn terminated(&mut self, world: &World, id: InstanceId) {
        let now = world.now();
        let name = group_of(world, id);
        if self.warm.contains(&world.instances[id].id) {
            return;
        }
        if let Some(taken) = self.taken.get_mut(&id) {
            taken.terminated = Some(now);
        }
        self.removals.insert(name, now);
        self.views.clear();
        let role = world.groups[world.instances[id].group].spec.role;
        let (up, all) = world.members();
        // Faults let members die too; they spare the quorum, but not beside the roll's own member.
        if role == Role::ControlPlane && self.cluster && all >= 3 && up <= all / 2 && !world.faults.change_the_world() {
            self.broken(Rule::Quorum, now, format!("{up} of {all} members of etcd are left"));
        }
    }

    /// The roll has ended.
    pub fn ended(&mut self, world: &World, state: &RollState) {
        self.check_leftovers(world);
        self.check_complete(world, state);
        self.check_explained(world, state);
    }

    /// What was done is in the state, with its times.
    fn check_explained(&mut self, world: &World, state: &RollState) {
        for (id, taken) in self.taken.clone() {
            let name = &world.instances[id].id;
            let told = state.groups.iter().flat_map(|group| &group.instances).find(|told| told.id == *name);
            let explained = told.is_some_and(|told| told.started.is_some() && (taken.terminated.is_none() || told.terminated.is_some()));
            if !explained {
                self.broken(Rule::Intent, world.now(), format!("the state does not tell what was done to {name}: {told:?}"));
            }
        }
    }

    fn check_leftovers(&mut self, world: &World) {
        let now = world.now();
        let mut left = Vec::new();
        // Where the API never comes back nothing can be given back.
        let reachable = !world.kubernetes || world.api_up();
        for (id, node) in world.live_nodes().filter(|(_, node)| reachable && world.instances[node.instance].alive()) {
            // kOps taints the nodes of a group that it does not drain, and leaves them so.
            let group = &world.groups[world.instances[node.instance].group].spec.name;
            let disabled = self.starts.get(group).is_some_and(|start| !start.settings.drain_and_terminate);
            for (what, is, was) in [
                ("cordoned", node.cordoned, &self.before.cordoned),
                ("tainted", node.tainted, &self.before.tainted),
                ("excluded from load balancers", node.excluded, &self.before.excluded),
            ] {
                let before = was.contains(&id);
                if is != before && !(disabled && what == "tainted") {
                    left.push(format!("{} is {}{what}", node.name, if is { "" } else { "no longer " }));
                }
            }
        }
        for (id, instance) in world.instances.iter().filter(|(_, instance)| instance.alive() && instance.attached && instance.in_service) {
            if world.groups[instance.group].balanced && instance.balancer != Balancer::In && !self.before.out.contains(&id) {
                left.push(format!("{} is out of its load balancers", instance.id));
            }
        }
        for (id, group) in world.groups.iter() {
            if self.before.suspended.get(&id) != Some(&group.suspended) {
                left.push(format!("{} has suspended {:?}", group.auto_scaling_group, group.suspended));
            }
        }
        if let Some(first) = left.first() {
            let message = format!("{first} ({} things in all)", left.len());
            self.broken(Rule::LeftBehind, now, message);
        }
    }

    fn check_complete(&mut self, world: &World, state: &RollState) {
        let Outcome::Done { still_need_update } = &state.outcome else { return };
        let now = world.now();
        for name in self.selected.clone() {
            let Some(id) = world.instance(&name) else { continue };
            let instance = &world.instances[id];
            let group = group_of(world, id);
            let disabled = self.starts.get(&group).is_some_and(|start| !start.settings.drain_and_terminate) && !instance.warm;
            let reported = still_need_update.iter().any(|leftover| leftover.instance == name);
            if instance.alive() && !disabled && !reported {
                self.broken(Rule::Complete, now, format!("{name} of {group} was left over"));
            }
            let replaced = self.taken.get(&id).is_some_and(|taken| taken.terminated.is_some());
            if reported && replaced {
                self.broken(Rule::Complete, now, format!("{name} of {group} is reported, though it was replaced"));
            }
            if instance.alive() && disabled && !reported && !self.forced.contains(&name) {
                self.broken(Rule::Complete, now, format!("{name} of {group} still needs an update, and is not reported"));
            }
        }
    }

    /// Instances that were terminated.
    pub fn removed<'a>(&'a self, world: &'a World) -> BTreeSet<&'a str> {
        let warm = world.instances.iter().filter(|(_, instance)| !instance.alive() && self.warm.contains(&instance.id));
        let taken = self.taken.iter().filter(|(_, taken)| taken.terminated.is_some()).map(|(id, _)| world.instances[*id].id.as_str());
        warm.map(|(_, instance)| instance.id.as_str()).chain(taken).collect()
    }
}

fn group_of(world: &World, id: InstanceId) -> String {
    world.groups[world.instances[id].group].spec.name.clone()
}

fn seen_as_node(world: &World, id: InstanceId, view: &View) -> bool {
    let provider = &world.instances[id].id;
    let nodes = view.raw.kubernetes.iter().flat_map(|facts| &facts.nodes);
    nodes.into_iter().any(|node| node.provider_id.rsplit('/').next() == Some(provider))
}

fn on_instance(world: &World, pod: crate::arena::PodId) -> &str {
    world.pods[pod].node.map_or("", |node| &world.instances[world.nodes[node].instance].id)
}

/// The instance that a command takes something away from.
fn concerned(world: &World, action: &Action) -> Option<InstanceId> {
    let of_node = |node: &str| world.node(node).map(|node| world.nodes[node].instance);
    match action {
        Action::Terminate { instance }
        | Action::MarkDetached { instance, .. }
        | Action::Detach { instance, .. }
        | Action::Deregister { instance, .. } => world.instance(instance),
        Action::Taint { node } | Action::Cordon { node } | Action::ExcludeFromLoadBalancers { node } => of_node(node),
        Action::Evict { pod } | Action::DeletePod { pod } => {
            world.pod(pod).and_then(|pod| world.pods[pod].node).map(|node| world.nodes[node].instance)
        }
        Action::SuspendRebalance { .. }
        | Action::ResumeRebalance { .. }
        | Action::Untaint { .. }
        | Action::Uncordon { .. }
        | Action::IncludeInLoadBalancers { .. }
        | Action::Register { .. } => None,
    }
}

/// Whether a state says that a command may be under way.
fn is_intended(state: &RollState, command: &Command, world: &World) -> bool {
    let Some(group) = state.groups.iter().find(|group| group.name == command.group) else { return false };
    let of_instance = |id: &str, holds: fn(&InstanceRoll) -> bool| group.instances.iter().any(|found| found.id == id && holds(found));
    let of_node = |name: &str, holds: fn(&InstanceRoll) -> bool| {
        world.node(name).is_none_or(|node| of_instance(&world.instances[world.nodes[node].instance].id, holds))
    };
    let gives_back = |_: &GroupRoll| true;
    match &command.action {
        Action::SuspendRebalance { .. } => group.holds_rebalance,
        Action::Taint { node } => of_node(node, |instance| instance.held.tainted),
        Action::Cordon { node } => of_node(node, |instance| instance.held.cordoned),
        Action::ExcludeFromLoadBalancers { node } => of_node(node, |instance| instance.held.excluded),
        Action::Deregister { instance, .. } => of_instance(instance, |instance| instance.held.deregistered),
        Action::Evict { .. } | Action::DeletePod { .. } => {
            group.instances.iter().any(|instance| matches!(instance.phase, InstancePhase::Draining(_)))
        }
        Action::MarkDetached { instance, .. } | Action::Detach { instance, .. } => {
            of_instance(instance, |instance| matches!(instance.phase, InstancePhase::Detaching { .. }))
        }
        Action::Terminate { instance } => of_instance(instance, |instance| matches!(instance.phase, InstancePhase::Terminating { .. })),
        Action::ResumeRebalance { .. }
        | Action::Untaint { .. }
        | Action::Uncordon { .. }
        | Action::IncludeInLoadBalancers { .. }
        | Action::Register { .. } => gives_back(group),
    }
}
