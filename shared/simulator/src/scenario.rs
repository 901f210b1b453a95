//! A real cluster, simulated: its groups, sizes, settings, nodes, pods and budgets become a world.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use kopsline_rolling::{
    Action, ClusterFacts, Command, History, Instance, Inventory, Manager, Outcome, PodFacts, RollEvent, RollOptions, RollState, Status,
    Summary, What as Told,
};

use crate::arena::{InstanceId, NodeId, WorkloadId};
use crate::faults::Faults;
use crate::happening::{Happening, What};
use crate::host::{Drive, Real, roll};
use crate::monitor::Violation;
use crate::person::Wishes;
use crate::transcript::clock;
use crate::world::{GroupPlan, Kind, Limit, Moment, Pace, Template, WorkloadPlan, World};

/// How long whoever is asked takes to answer.
const ANSWER: SignedDuration = SignedDuration::from_mins(1);
/// How many pods a kubelet takes unless it is told otherwise; kOps leaves that so.
const PODS_OF_A_NODE: usize = 110;

/// By what chance a rehearsal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chance {
    /// What everything by chance depends on: the same seed gives the same rehearsal.
    pub seed: u64,
    /// Whether things go wrong, as in [`Faults::of_a_bad_day`].
    pub faults: bool,
}

/// How a rehearsal went. Its text is a transcript: a line for each thing that happened, with the simulated time since the
/// beginning, and how the roll ended.
#[derive(Debug, Clone)]
pub struct Rehearsed {
    /// By what chance.
    pub chance: Chance,
    /// What happened, in its order: to the cloud, to the cluster, to the host, and what the roll told of it.
    pub happenings: Vec<Happening>,
    /// How the roll ended; none if it could not begin or did not end.
    pub outcome: Option<Outcome>,
    /// How far it came.
    pub summary: Summary,
    /// How long it took.
    pub took: SignedDuration,
    /// Promises that were broken, which is a defect of Kopsline.
    pub violations: Vec<Violation>,
}

/// Rolls a cluster as it was seen, in simulated time; nothing real is touched.
///
/// The cluster becomes a [`World`]: its groups with their sizes, settings and suspended processes, its instances, nodes,
/// pods, workloads and budgets. The planner rolls it as it would roll the real one, while a monitor checks the promises.
/// Without `facts`, or with `cloudonly`, there is no Kubernetes API. How long instances take to come, and pods to go, is
/// what `history` knows of earlier rolls, and what is usual otherwise. Whoever is asked whether to go on says yes; a stuck
/// drain is left to its deadline. What is not well in the beginning stays so.
pub fn rehearse(
    inventory: &Inventory,
    facts: Option<&ClusterFacts>,
    options: &RollOptions,
    history: &History,
    chance: Chance,
) -> Rehearsed {
    let facts = facts.filter(|_| !options.cloudonly);
    let mut world = World::of(inventory, facts, history, chance.seed);
    world.happenings = Some(Vec::new());
    if chance.faults {
        world.faults = Faults::of_a_bad_day();
    }
    let options = RollOptions { cloudonly: facts.is_none(), ..options.clone() };
    let wishes = Wishes { agrees: true, answer_takes: ANSWER, ..Wishes::default() };
    let rolled = roll(world, &Drive { options, wishes, ..Drive::default() }, &mut Real);
    let ended = |state: &RollState| state.outcome.is_final().then(|| state.outcome.clone());
    Rehearsed {
        chance,
        outcome: rolled.state.as_ref().and_then(ended),
        summary: rolled.state.as_ref().map(RollState::summary).unwrap_or_default(),
        took: rolled.world.now().since(Moment::default()),
        violations: rolled.violations,
        happenings: rolled.world.happenings.unwrap_or_default(),
    }
}

impl Rehearsed {
    /// What the roll told, as a real one tells it. Simulated time begins with 1970.
    pub fn events(&self) -> impl Iterator<Item = &RollEvent> {
        self.happenings.iter().filter_map(|happening| match &happening.what {
            What::Told(event) => Some(event),
            _ => None,
        })
    }
}

impl std::fmt::Display for Rehearsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Chance { seed, faults } = self.chance;
        let luck = if faults { "things go wrong" } else { "all goes well" };
        writeln!(f, "simulated, and nothing real is touched: seed {seed}, {luck}")?;
        let mut waited = None;
        let mut refused = BTreeSet::new();
        for Happening { at, what } in &self.happenings {
            let is_said_otherwise = match what {
                // A roll that polls says the same again and again.
                What::Waits(reason) => waited.replace(reason) == Some(reason),
                What::Command { command: Command { action: action @ Action::Evict { .. }, .. }, result: Err(error), .. } => {
                    !refused.insert((action, &error.message))
                }
                What::Stored | What::Ended(_) => true,
                // What is done is told with its result, and a look at the cluster by what is waited for.
                What::Told(RollEvent { what, .. }) => matches!(
                    what,
                    Told::Effect { .. } | Told::Refused { .. } | Told::ValidationPassed { .. } | Told::ValidationFailed { .. }
                ),
                _ => false,
            };
            if !is_said_otherwise {
                writeln!(f, "{} {what}", clock(*at))?;
            }
        }
        let end = match &self.outcome {
            Some(Outcome::Done { .. }) => "done",
            Some(Outcome::Failed { .. }) => "failed",
            Some(Outcome::Aborted { .. }) => "aborted",
            Some(Outcome::Running | Outcome::Unwinding { .. }) | None => "not ended",
        };
        writeln!(f, "{end} after {} of simulated time: {}", clock(Moment::default().after(self.took)).trim_start(), self.summary)?;
        for violation in &self.violations {
            writeln!(f, "A PROMISE WAS BROKEN, which is a defect of Kopsline: {violation}")?;
        }
        Ok(())
    }
}

impl World {
    /// A world like a cluster that was seen, where things take as long as in earlier rolls.
    pub fn of(inventory: &Inventory, facts: Option<&ClusterFacts>, history: &History, seed: u64) -> Self {
        let mut world = Self::new(&inventory.cluster.name, seed);
        world.is_seen();
        world.capacity = facts.map_or(0, most_pods).max(PODS_OF_A_NODE);
        // Neighbours do not take exactly as long as each other.
        world.pace.jitter = SignedDuration::from_secs(10);
        world.spec.rolling_update = inventory.cluster.rolling_update.clone();
        world.kubernetes = facts.is_some();
        let nodes: BTreeMap<&str, &str> =
            facts.into_iter().flat_map(|facts| &facts.nodes).map(|node| (node.instance(), node.name.as_str())).collect();
        for spec in &inventory.cluster.groups {
            let Some(group) = inventory.groups.get(&spec.name) else { continue };
            let plan = GroupPlan {
                template: if group.spec.manager == Manager::Karpenter { Template::Number } else { Template::Latest },
                suspended: group.suspended_processes.iter().cloned().collect(),
                ..GroupPlan::new(group.spec.clone(), 0, 0)
            };
            let id = world.add_group(plan);
            let Pace { notice, join, ready, .. } = world.pace;
            let rest = [notice, join, ready].into_iter().fold(SignedDuration::ZERO, SignedDuration::saturating_add);
            let boot = history.usual_replacement(&spec.name).saturating_sub(rest);
            world.groups[id].boot = Some(boot.max(SignedDuration::from_secs(1)));
            let mut zones: Vec<String> = group.instances().map(|instance| instance.zone.clone()).collect();
            zones.sort();
            zones.dedup();
            let attached = |instance: &&Instance| !instance.warm && instance.status != Status::Detached;
            let members = u32::try_from(group.instances().filter(attached).count()).unwrap_or(u32::MAX);
            world.groups[id].desired = if group.spec.manager == Manager::Karpenter { members } else { group.target };
            for instance in group.instances() {
                let zone = zones.iter().position(|zone| *zone == instance.zone).unwrap_or(0);
                let version = if instance.configuration == group.configuration { 2 } else { 1 };
                let key = world.place_instance(id, instance.id.clone(), zone, version);
                world.settle_seen(key, instance, nodes.get(instance.id.as_str()).copied());
            }
            if !zones.is_empty() {
                world.groups[id].zones = zones;
            }
        }
        if let Some(facts) = facts {
            world.take_over(facts, history);
        }
        world
    }

    fn settle_seen(&mut self, key: InstanceId, seen: &Instance, node: Option<&str>) {
        let detached = seen.status == Status::Detached;
        let instance = &mut self.instances[key];
        (instance.warm, instance.attached, instance.marked) = (seen.warm, !detached, detached);
        // What is not in service is not going to be by itself.
        if seen.warm {
            instance.life = crate::world::Life::Running;
        } else if seen.in_service || detached {
            self.serve(key, node);
        }
    }

    /// Nodes as they are marked, workloads with their pods where they run, budgets.
    fn take_over(&mut self, facts: &ClusterFacts, history: &History) {
        // A drain takes as long as its slowest pod. Workloads belong to no group, so that it is that of all groups.
        let grace = history.usual_drain("");
        let mut nodes: BTreeMap<&str, NodeId> = BTreeMap::new();
        for seen in &facts.nodes {
            let Some(id) = self.node(&seen.name) else { continue };
            nodes.insert(&seen.name, id);
            let node = &mut self.nodes[id];
            (node.cordoned, node.tainted) = (seen.unschedulable, seen.scheduled_for_update);
            (node.excluded, node.needs_update, node.ready) = (seen.excluded_from_load_balancers, seen.needs_update, seen.ready);
        }
        let mut sets: BTreeMap<(&str, Kind, &str), Vec<&PodFacts>> = BTreeMap::new();
        for pod in &facts.pods {
            let (kind, name) = workload_of(pod);
            sets.entry((&pod.namespace, kind, name)).or_default().push(pod);
        }
        let mut workloads: Vec<(WorkloadId, &PodFacts)> = Vec::new();
        for ((namespace, kind, name), pods) in sets {
            let Some(first) = pods.first() else { continue };
            let plan = WorkloadPlan {
                namespace: namespace.to_owned(),
                priority: first.priority_class.clone(),
                local_storage: first.local_storage,
                grace,
                ..WorkloadPlan::new(kind, name, u32::try_from(pods.len()).unwrap_or(u32::MAX))
            };
            let id = self.add_seen_workload(plan, first.labels.clone());
            for pod in &pods {
                self.add_seen_pod(id, &pod.name, nodes.get(pod.node.as_str()).copied(), pod.ready, pod.is_finished());
            }
            workloads.push((id, first));
        }
        for budget in &facts.budgets {
            let covers = |(_, pod): &&(WorkloadId, &PodFacts)| pod.namespace == budget.namespace && budget.selector.covers(&pod.labels);
            let covered: Vec<WorkloadId> = workloads.iter().filter(covers).map(|(id, _)| *id).collect();
            let limit = limit(budget.max_unavailable.as_deref(), budget.min_available.as_deref());
            if let (Some(limit), false) = (limit, covered.is_empty()) {
                self.add_seen_budget(budget, limit, covered);
            }
        }
    }
}

/// How many pods the fullest node has.
fn most_pods(facts: &ClusterFacts) -> usize {
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in facts.pods.iter().filter(|pod| !pod.node.is_empty()) {
        *nodes.entry(&pod.node).or_default() += 1;
    }
    nodes.into_values().max().unwrap_or(0)
}

/// The kind and name of what controls a pod.
fn workload_of(pod: &PodFacts) -> (Kind, &str) {
    if pod.mirror {
        let node = pod.node.as_str();
        return (Kind::Static, pod.name.strip_suffix(node).and_then(|name| name.strip_suffix('-')).unwrap_or(&pod.name));
    }
    match &pod.controller {
        Some(owner) => match owner.kind.as_str() {
            "DaemonSet" => (Kind::DaemonSet, &owner.name),
            "StatefulSet" => (Kind::StatefulSet, &owner.name),
            _ if pod.is_finished() => (Kind::Job, &owner.name),
            _ => (Kind::Deployment, &owner.name),
        },
        None if pod.is_finished() => (Kind::Job, &pod.name),
        None => (Kind::Bare, &pod.name),
    }
}

fn limit(max_unavailable: Option<&str>, min_available: Option<&str>) -> Option<Limit> {
    let percent = |text: &str| text.strip_suffix('%').and_then(|number| number.parse().ok());
    match (max_unavailable, min_available) {
        (Some(text), _) => percent(text).map(Limit::MaxUnavailablePercent).or_else(|| text.parse().ok().map(Limit::MaxUnavailable)),
        (None, Some(text)) => percent(text).map(Limit::MinAvailablePercent).or_else(|| text.parse().ok().map(Limit::MinAvailable)),
        (None, None) => None,
    }
}
