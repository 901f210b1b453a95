//! A real cluster, simulated: its groups, sizes, settings, nodes, pods and budgets become a world.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use kopsline_rolling::{ClusterFacts, Instance, Inventory, Manager, Outcome, PodFacts, RollOptions, RollState, Status, Summary};

use crate::arena::{InstanceId, NodeId, WorkloadId};
use crate::faults::Faults;
use crate::host::{Drive, Real, roll};
use crate::monitor::Violation;
use crate::person::Wishes;
use crate::transcript::transcript;
use crate::world::{GroupPlan, Kind, Limit, Moment, Pace, Template, WorkloadPlan, World};

/// How a real cluster is rolled in simulation.
#[derive(Debug, Clone, Default)]
pub struct Rehearsal {
    /// What everything by chance depends on.
    pub seed: u64,
    /// How to roll.
    pub options: RollOptions,
    /// What people want.
    pub wishes: Wishes,
    /// How long things take.
    pub pace: Pace,
    /// What goes wrong.
    pub faults: Faults,
}

/// How a rehearsal went.
#[derive(Debug, Clone)]
pub struct Rehearsed {
    /// What happened, a line each.
    pub transcript: String,
    /// How the roll ended; none if it could not begin or did not end.
    pub outcome: Option<Outcome>,
    /// How far it came.
    pub summary: Summary,
    /// How long it took.
    pub took: SignedDuration,
    /// Promises that were broken, which is a defect of Kopsline.
    pub violations: Vec<Violation>,
}

impl Rehearsal {
    /// Rolls a cluster as it was seen, in simulation. Without facts of its Kubernetes API it is rolled as under `cloudonly`.
    pub fn of(&self, inventory: &Inventory, facts: Option<&ClusterFacts>) -> Rehearsed {
        let mut world = World::of(inventory, facts, self.seed);
        (world.pace, world.faults, world.happenings) = (self.pace, self.faults, Some(Vec::new()));
        let options = RollOptions { cloudonly: self.options.cloudonly || facts.is_none(), ..self.options.clone() };
        let drive = Drive { options, wishes: self.wishes, reads_back: 1, ..Drive::default() };
        let rolled = roll(world, &drive, &mut Real);
        let ended = |state: &RollState| state.outcome.is_final().then(|| state.outcome.clone());
        Rehearsed {
            transcript: transcript(rolled.world.happenings.as_deref().unwrap_or_default()),
            outcome: rolled.state.as_ref().and_then(ended),
            summary: rolled.state.as_ref().map(RollState::summary).unwrap_or_default(),
            took: rolled.world.now().since(Moment::default()),
            violations: rolled.violations,
        }
    }
}

impl World {
    /// A world like a cluster that was seen.
    pub fn of(inventory: &Inventory, facts: Option<&ClusterFacts>, seed: u64) -> Self {
        let mut world = Self::new(&inventory.cluster.name, seed);
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
            world.take_over(facts);
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
    fn take_over(&mut self, facts: &ClusterFacts) {
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
