//! A small world for the planner: a cloud and a cluster that do what they are told at once, and a host that drives the
//! planner through them. What happens is kept as a line of text in kOps' terms:
//!
//! `V+`, `V-`: one validation that passed or failed; `T3`: three nodes tainted; `dr x`: x is cordoned, which begins its
//! drain; `st x`: x is terminated; `dt x`: x is detached, `dt x!`: it could not be.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::inventory::{LaunchTemplateRef, RawGroup, RawInstance, RawMember};
use crate::{
    Action, BudgetFacts, ClusterFacts, ClusterSpec, Command, CommandError, CommandResult, Control, GroupRoll, GroupSpec, InstanceRoll,
    IntOrString, Manager, NodeFacts, Observation, Outcome, PodFacts, PodRef, RawInventory, Refusal, Role, RollEvent, RollOptions,
    RollState, RollingUpdate, Selector, Until, What, classify, next,
};

#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub(super) struct Machine {
    pub(super) id: String,
    pub(super) old: bool,
    pub(super) warm: bool,
    pub(super) detached: bool,
    pub(super) tagged: bool,
    pub(super) joined: bool,
    pub(super) ready: bool,
    pub(super) tainted: bool,
    pub(super) cordoned: bool,
    pub(super) excluded: bool,
    pub(super) registered: bool,
    pub(super) needs_update: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) spec: GroupSpec,
    pub(super) desired: u32,
    pub(super) machines: Vec<Machine>,
    pub(super) suspended: BTreeSet<String>,
    /// Whether it launches what it lacks, at once.
    pub(super) launches: bool,
}

/// What the cluster says beside the world's own facts.
type Say = Box<dyn FnMut(&BTreeMap<String, Group>, &mut ClusterFacts) -> Result<(), String>>;
pub(super) type Refuse = Box<dyn FnMut(&Command) -> Option<CommandError>>;

/// When the host dies, counted in commands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kill {
    Before(usize),
    After(usize),
}

pub(super) struct World {
    pub(super) cluster: ClusterSpec,
    pub(super) now: Timestamp,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) pods: Vec<PodFacts>,
    pub(super) budgets: Vec<BudgetFacts>,
    /// How long a pod takes to go after its eviction; a second if unset.
    pub(super) grace: BTreeMap<String, i64>,
    pub(super) options: RollOptions,
    pub(super) control: Control,
    pub(super) say: Say,
    pub(super) refuse: Refuse,
    pub(super) state: Option<RollState>,
    pub(super) wait: Option<Until>,
    pub(super) trace: Vec<String>,
    /// Everything that had an effect, in order.
    pub(super) done: Vec<Action>,
    pub(super) events: Vec<RollEvent>,
    pub(super) kill: Option<Kill>,
    pub(super) executed: usize,
    launched: usize,
}

pub(super) fn spec(name: &str, role: Role) -> GroupSpec {
    GroupSpec { name: name.to_owned(), role, manager: Manager::CloudGroup, min_size: 1, rolling_update: RollingUpdate::default() }
}

/// kOps' harness knows no cloud, so there is no surge unless a case asks for it.
pub(super) fn settings(max_surge: i32, max_unavailable: Option<i32>) -> RollingUpdate {
    RollingUpdate {
        drain_and_terminate: None,
        max_surge: Some(IntOrString::Int(max_surge)),
        max_unavailable: max_unavailable.map(IntOrString::Int),
    }
}

/// The options of kOps' harness; what Kopsline adds is off.
pub(super) fn as_kops() -> RollOptions {
    let zero = SignedDuration::ZERO;
    RollOptions {
        bastion_interval: zero,
        control_plane_interval: zero,
        node_interval: zero,
        post_drain_delay: zero,
        drain_timeout: zero,
        validation_timeout: zero,
        fail_on_drain_error: false,
        validation_baseline: false,
        suspend_rebalance: false,
        ..RollOptions::default()
    }
}

pub(super) fn refusal(kind: Refusal, message: &str) -> CommandError {
    CommandError { kind, message: message.to_owned() }
}

impl World {
    pub(super) fn new(options: RollOptions) -> Self {
        Self {
            cluster: ClusterSpec { name: "test.k8s.local".to_owned(), rolling_update: settings(0, None), groups: Vec::new() },
            now: Timestamp::UNIX_EPOCH,
            groups: BTreeMap::new(),
            pods: Vec::new(),
            budgets: Vec::new(),
            grace: BTreeMap::new(),
            options,
            control: Control::default(),
            say: Box::new(|_, _| Ok(())),
            refuse: Box::new(|_| None),
            state: None,
            wait: None,
            trace: Vec::new(),
            done: Vec::new(),
            events: Vec::new(),
            kill: None,
            executed: 0,
            launched: 0,
        }
    }

    /// kOps' standard groups, with so many old instances out of 3, 3, 2 and 1.
    pub(super) fn standard(options: RollOptions, node_1: u32, node_2: u32, master: u32, bastion: u32) -> Self {
        let mut world = Self::new(options);
        world.add(spec("node-1", Role::Node), 3, node_1);
        world.add(spec("node-2", Role::Node), 3, node_2);
        world.add(spec("master-1", Role::ControlPlane), 2, master);
        world.add(spec("bastion-1", Role::Bastion), 1, bastion);
        world
    }

    /// One group.
    pub(super) fn single(options: RollOptions, name: &str, role: Role, size: u32, old: u32) -> Self {
        let mut world = Self::new(options);
        world.add(spec(name, role), size, old);
        world
    }

    /// Adds a group whose instances are its name and a letter, old ones first.
    pub(super) fn add(&mut self, spec: GroupSpec, size: u32, old: u32) {
        let letters = ('a'..='z').map(String::from).chain((0..).map(|number| format!("x{number}")));
        let machines = (0..size).zip(letters).map(|(index, letter)| machine(&format!("{}{letter}", spec.name), index < old)).collect();
        self.cluster.groups.push(spec.clone());
        let group = Group { desired: size, machines, suspended: BTreeSet::new(), launches: true, spec };
        self.groups.insert(group.spec.name.clone(), group);
    }

    /// Adds old instances to a group's warm pool.
    pub(super) fn warm(&mut self, group: &str, ids: &[&str]) {
        let pool = ids.iter().map(|id| Machine { warm: true, joined: false, ..machine(id, true) });
        self.groups.get_mut(group).unwrap().machines.extend(pool);
    }

    pub(super) fn machine(&mut self, id: &str) -> &mut Machine {
        self.find(id).unwrap_or_else(|| panic!("no {id}"))
    }

    fn find(&mut self, id: &str) -> Option<&mut Machine> {
        self.groups.values_mut().flat_map(|group| &mut group.machines).find(|machine| machine.id == id)
    }

    fn by_node(&mut self, node: &str) -> Result<&mut Machine, CommandError> {
        let id = node.strip_suffix(".local").unwrap();
        // As the adapter: what is gone is a success, so its marks do not matter.
        self.find(id).filter(|machine| machine.joined).ok_or(refusal(Refusal::Permanent, "gone"))
    }

    /// Puts a pod on an instance's node; a `ReplicaSet`'s, healthy and evictable.
    pub(super) fn pod(&mut self, instance: &str, name: &str) -> &mut PodFacts {
        self.pods.push(PodFacts {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            node: format!("{instance}.local"),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            phase: "Running".to_owned(),
            ready: true,
            ..PodFacts::default()
        });
        self.pods.last_mut().unwrap()
    }

    /// A budget over the pods named so; hopeless unless it expects more pods than it wants.
    pub(super) fn budget(&mut self, pod: &str, expected: i32, allowed: i32) {
        self.budgets.push(BudgetFacts {
            namespace: "shop".to_owned(),
            name: format!("{pod}-budget"),
            selector: Selector { match_labels: BTreeMap::from([("app".to_owned(), pod.to_owned())]), match_expressions: vec![] },
            min_available: Some("1".to_owned()),
            disruptions_allowed: allowed,
            current_healthy: 1,
            desired_healthy: 1,
            expected_pods: expected,
            ..BudgetFacts::default()
        });
    }

    /// Instances left in node-1, node-2, master-1 and bastion-1 that were there from the beginning.
    pub(super) fn left(&self) -> [usize; 4] {
        ["node-1", "node-2", "master-1", "bastion-1"].map(|name| self.left_in(name))
    }

    pub(super) fn left_in(&self, group: &str) -> usize {
        self.groups[group].machines.iter().filter(|machine| !machine.id.contains("new")).count()
    }

    pub(super) fn raw(&mut self) -> (RawInventory, Result<ClusterFacts, String>) {
        self.pods.retain(|pod| {
            pod.deleting.is_none_or(|deleting| {
                let grace = self.grace.get(&pod.name).copied().unwrap_or(1);
                self.now.duration_since(deleting) < SignedDuration::from_secs(grace)
            })
        });
        let mut raw = RawInventory::default();
        let mut facts = ClusterFacts { pods: self.pods.clone(), budgets: self.budgets.clone(), ..ClusterFacts::default() };
        let tag = ("KubernetesCluster".to_owned(), self.cluster.name.clone());
        let template = |old: bool| Some(LaunchTemplateRef { id: "lt".to_owned(), version: Some(if old { "1" } else { "2" }.to_owned()) });
        for (name, group) in &self.groups {
            let mut answer = RawGroup {
                name: group.spec.role.auto_scaling_group_name(name, &self.cluster.name),
                tags: BTreeMap::from([tag.clone()]),
                min: 1,
                desired: group.desired,
                max: group.desired + 5,
                launch_template: template(false),
                suspended_processes: group.suspended.iter().cloned().collect(),
                ..RawGroup::default()
            };
            for machine in &group.machines {
                let mut tags = BTreeMap::from([tag.clone(), ("kops.k8s.io/instancegroup".to_owned(), name.clone())]);
                if machine.tagged {
                    tags.insert("kops.k8s.io/detached-from-asg".to_owned(), answer.name.clone());
                }
                raw.instances.push(RawInstance {
                    id: machine.id.clone(),
                    zone: "z".to_owned(),
                    state: "running".to_owned(),
                    tags,
                    ..RawInstance::default()
                });
                if !machine.detached {
                    let member = RawMember {
                        id: machine.id.clone(),
                        zone: "z".to_owned(),
                        lifecycle: if machine.warm { "Warmed:Stopped" } else { "InService" }.to_owned(),
                        health: "Healthy".to_owned(),
                        launch_template: template(machine.old),
                        ..RawMember::default()
                    };
                    if machine.warm { &mut answer.warm_members } else { &mut answer.members }.push(member);
                }
                if machine.joined && group.spec.role != Role::Bastion {
                    facts.nodes.push(NodeFacts {
                        name: format!("{}.local", machine.id),
                        provider_id: format!("aws:///z/{}", machine.id),
                        needs_update: machine.needs_update,
                        ready: machine.ready,
                        unschedulable: machine.cordoned,
                        scheduled_for_update: machine.tainted,
                        excluded_from_load_balancers: machine.excluded,
                        control_plane: false,
                        addresses: vec![],
                    });
                }
            }
            if group.spec.manager == Manager::CloudGroup {
                raw.groups.push(answer);
            }
        }
        let said = (self.say)(&self.groups, &mut facts);
        raw.kubernetes = (said.is_ok() && !self.options.cloudonly).then(|| facts.clone());
        (raw, said.map(|()| facts))
    }

    /// Starts the roll with what is there now.
    pub(super) fn start(&mut self) {
        let say = std::mem::replace(&mut self.say, Box::new(|_, _| Ok(())));
        let (raw, _) = self.raw();
        self.say = say;
        let inventory = classify(&raw, &self.cluster).unwrap();
        self.state = Some(RollState::start(&inventory, self.options.clone(), self.now, None).unwrap());
    }

    /// Runs to the end.
    pub(super) fn run(&mut self) -> Outcome {
        for _ in 0..20_000 {
            if let Some(outcome) = self.step() {
                return outcome;
            }
        }
        panic!("the roll does not end: {:?}", self.wait);
    }

    /// Runs until it waits for something of which `seen` approves; panics if the roll ends before.
    pub(super) fn until(&mut self, seen: impl Fn(&Until) -> bool) -> Until {
        for _ in 0..5_000 {
            if let Some(outcome) = self.look() {
                panic!("the roll ended: {outcome:?}");
            }
            let wait = self.wait.clone().unwrap();
            if seen(&wait) {
                return wait;
            }
            self.now = wait.at;
        }
        panic!("it never waits for that, but for {:?}", self.wait);
    }

    /// One process, and the wait after it.
    pub(super) fn step(&mut self) -> Option<Outcome> {
        let end = self.look();
        if let Some(until) = &self.wait {
            assert!(until.at > self.now, "a wait must lead forward: {until:?} at {}", self.now);
            self.now = until.at;
        }
        end
    }

    /// One process: it observes, and asks and acts until there is something to wait for.
    pub(super) fn look(&mut self) -> Option<Outcome> {
        if self.state.is_none() {
            self.start();
        }
        let (raw, facts) = self.raw();
        let inventory = classify(&raw, &self.cluster).unwrap();
        let mut state = RollState::from_json(&self.state.as_ref().unwrap().to_json().unwrap()).unwrap();
        let mut results: Vec<CommandResult> = Vec::new();
        self.wait = None;
        for _ in 0..1_000 {
            let kubernetes = facts.as_ref().map_err(String::as_str);
            let observation = Observation { now: self.now, inventory: &inventory, kubernetes, results: &results, control: &self.control };
            let decision = next(&state, &observation);
            state = decision.state;
            self.state = Some(state.clone());
            for event in &decision.events {
                match &event.what {
                    What::ValidationPassed { .. } => self.trace.push("V+".to_owned()),
                    What::ValidationFailed { .. } => self.trace.push("V-".to_owned()),
                    _ => {}
                }
            }
            self.events.extend(decision.events);
            if state.outcome.is_final() {
                assert!(decision.commands.is_empty() && decision.wait.is_none());
                return Some(state.outcome);
            }
            if let Some(until) = decision.wait {
                assert!(decision.commands.is_empty());
                self.wait = Some(until);
                return None;
            }
            assert!(!decision.commands.is_empty(), "neither a command nor a wait: the roll stands still");
            let tainted = decision.commands.iter().filter(|command| matches!(command.action, Action::Taint { .. })).count();
            if tainted > 0 {
                self.trace.push(format!("T{tainted}"));
            }
            results.clear();
            for command in decision.commands {
                self.executed += 1;
                if self.kill == Some(Kill::Before(self.executed)) {
                    return None;
                }
                let result = self.execute(&command);
                if self.kill == Some(Kill::After(self.executed)) {
                    return None;
                }
                results.push(CommandResult { command, result });
            }
        }
        panic!("the planner does not come to rest");
    }

    fn execute(&mut self, command: &Command) -> Result<(), CommandError> {
        let refused = (self.refuse)(command);
        match &command.action {
            Action::Cordon { node } => self.trace.push(format!("dr {}", node.trim_end_matches(".local"))),
            Action::Terminate { instance } => self.trace.push(format!("st {instance}")),
            Action::Detach { instance, .. } => {
                self.trace.push(format!("dt {instance}{}", if refused.is_some() { "!" } else { "" }));
            }
            _ => {}
        }
        if let Some(error) = refused {
            return Err(error);
        }
        self.done.push(command.action.clone());
        let group = command.group.clone();
        let mark = |machine: Result<&mut Machine, CommandError>, change: fn(&mut Machine)| {
            if let Ok(machine) = machine {
                change(machine);
            }
            Ok(())
        };
        match &command.action {
            Action::SuspendRebalance { .. } => {
                self.groups.get_mut(&group).unwrap().suspended.insert("AZRebalance".to_owned());
                Ok(())
            }
            Action::ResumeRebalance { .. } => {
                self.groups.get_mut(&group).unwrap().suspended.remove("AZRebalance");
                Ok(())
            }
            Action::Taint { node } => mark(self.by_node(node), |machine| machine.tainted = true),
            Action::Untaint { node } => mark(self.by_node(node), |machine| machine.tainted = false),
            Action::Cordon { node } => mark(self.by_node(node), |machine| machine.cordoned = true),
            Action::Uncordon { node } => mark(self.by_node(node), |machine| machine.cordoned = false),
            Action::ExcludeFromLoadBalancers { node } => mark(self.by_node(node), |machine| machine.excluded = true),
            Action::IncludeInLoadBalancers { node } => mark(self.by_node(node), |machine| machine.excluded = false),
            Action::Deregister { instance, .. } => {
                mark(self.find(instance).ok_or(refusal(Refusal::Permanent, "gone")), |machine| machine.registered = false)
            }
            Action::Register { instance, .. } => {
                mark(self.find(instance).ok_or(refusal(Refusal::Permanent, "gone")), |machine| machine.registered = true)
            }
            Action::Evict { pod } => self.evict(pod, true),
            Action::DeletePod { pod } => self.evict(pod, false),
            Action::MarkDetached { instance, .. } => {
                self.machine(instance).tagged = true;
                Ok(())
            }
            Action::Detach { instance, .. } => {
                let machine = self.machine(instance);
                assert!(machine.tagged, "{instance} is detached before it is tagged");
                machine.detached = true;
                self.launch(&group);
                Ok(())
            }
            Action::Terminate { instance } => {
                for group in self.groups.values_mut() {
                    group.machines.retain(|machine| machine.id != *instance);
                }
                let node = format!("{instance}.local");
                self.pods.retain(|pod| pod.node != node);
                self.launch(&group);
                Ok(())
            }
        }
    }

    fn evict(&mut self, reference: &PodRef, asks: bool) -> Result<(), CommandError> {
        let now = self.now;
        let Some(pod) = self.pods.iter_mut().find(|pod| pod.uid == reference.uid) else { return Ok(()) };
        let budget = self.budgets.iter().find(|budget| budget.selector.covers(&pod.labels) && budget.namespace == pod.namespace);
        if asks && budget.is_some_and(|budget| budget.disruptions_allowed <= 0) {
            return Err(refusal(Refusal::Blocked, "Cannot evict pod as it would violate the pod's disruption budget."));
        }
        pod.deleting.get_or_insert(now);
        Ok(())
    }

    /// The group launches what it lacks, unless it does not.
    pub(super) fn launch(&mut self, name: &str) {
        let group = self.groups.get_mut(name).unwrap();
        if !group.launches || group.spec.manager == Manager::Karpenter {
            return;
        }
        let members = group.machines.iter().filter(|machine| !machine.detached && !machine.warm).count();
        for _ in members..group.desired as usize {
            self.launched += 1;
            group.machines.push(machine(&format!("{name}new{}", self.launched), false));
        }
    }

    pub(super) fn trace(&self) -> String {
        self.trace.join(" ")
    }

    /// How many validations there were.
    pub(super) fn attempts(&self) -> usize {
        self.trace.iter().filter(|step| step.starts_with('V')).count()
    }

    pub(super) fn roll_of(&self, group: &str) -> &GroupRoll {
        self.state.as_ref().unwrap().groups.iter().find(|roll| roll.name == group).unwrap()
    }

    pub(super) fn instance(&self, id: &str) -> &InstanceRoll {
        let instances = self.state.as_ref().unwrap().groups.iter().flat_map(|group| &group.instances);
        instances.into_iter().find(|instance| instance.id == id).unwrap()
    }

    /// Whether anything the roll did to a node or a group is left.
    pub(super) fn scars(&self) -> Vec<String> {
        let mut scars = Vec::new();
        for group in self.groups.values() {
            scars.extend(group.suspended.iter().map(|process| format!("{}: {process}", group.spec.name)));
            for machine in &group.machines {
                for (mark, is) in [
                    ("tainted", machine.tainted),
                    ("cordoned", machine.cordoned),
                    ("excluded", machine.excluded),
                    ("deregistered", !machine.registered),
                ] {
                    if is {
                        scars.push(format!("{}: {mark}", machine.id));
                    }
                }
            }
        }
        scars
    }
}

fn machine(id: &str, old: bool) -> Machine {
    Machine {
        id: id.to_owned(),
        old,
        warm: false,
        detached: false,
        tagged: false,
        joined: true,
        ready: true,
        tainted: false,
        cordoned: false,
        excluded: false,
        registered: true,
        needs_update: false,
    }
}

/// A pod that the whole cluster needs and that is not well: a failure without an instance group.
pub(super) fn critical_pod() -> PodFacts {
    PodFacts {
        namespace: "kube-system".to_owned(),
        name: "coredns".to_owned(),
        uid: "uid-coredns".to_owned(),
        priority_class: "system-cluster-critical".to_owned(),
        phase: "Pending".to_owned(),
        ..PodFacts::default()
    }
}

/// The cluster never validates, for no instance group in particular.
pub(super) fn always_fails() -> Say {
    Box::new(|_, facts| {
        facts.pods.push(critical_pod());
        Ok(())
    })
}

/// The Kubernetes API never answers.
pub(super) fn always_errors() -> Say {
    Box::new(|_, _| Err("connection refused".to_owned()))
}

/// A node is not ready.
pub(super) fn not_ready(node: &'static str) -> Say {
    Box::new(move |_, facts| {
        for found in facts.nodes.iter_mut().filter(|found| found.name == node) {
            found.ready = false;
        }
        Ok(())
    })
}

pub(super) fn reason(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Failed { reason } | Outcome::Aborted { reason } => reason,
        other => panic!("{other:?}"),
    }
}

pub(super) fn is_done(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done { still_need_update } if still_need_update.is_empty())
}
