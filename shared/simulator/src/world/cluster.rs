//! The Kubernetes cluster: nodes, pods, their controllers, the scheduler, and budgets with their real arithmetic.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use kopsline_rolling::{BudgetFacts, Role, Selector};

use super::{Event, Life, Moment, World, place};
use crate::arena::{BudgetId, InstanceId, NodeId, PodId, WorkloadId};
use crate::happening::What;

/// How many pods a node takes unless more were seen on one.
pub(super) const CAPACITY: usize = 30;

/// A node.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its instance.
    pub instance: InstanceId,
    /// Its address.
    pub address: String,
    /// Whether it belongs to the control plane.
    pub control_plane: bool,
    /// Whether its condition is `Ready`.
    pub ready: bool,
    /// Whether it fell sick, and until when.
    pub sick_until: Option<Moment>,
    /// Whether it is unschedulable.
    pub cordoned: bool,
    /// Whether it has the taint of a roll.
    pub tainted: bool,
    /// Whether it is excluded from load balancers.
    pub excluded: bool,
    /// Whether it is annotated to need an update.
    pub needs_update: bool,
    /// Whether it was removed.
    pub removed: bool,
    /// Its pods, until they are gone.
    pub pods: Vec<PodId>,
}

/// What kind of workload it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Replaces a pod as soon as it is asked to go.
    Deployment,
    /// Replaces a pod of the same name once it is gone.
    StatefulSet,
    /// Has a pod on every node.
    DaemonSet,
    /// Has a pod on every control-plane node, run by its kubelet.
    Static,
    /// Pods of nobody: gone is gone.
    Bare,
    /// Pods that have finished.
    Job,
}

/// A workload to be made.
#[derive(Debug, Clone)]
pub struct WorkloadPlan {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name, which is also the value of its pods' label `app` (and `k8s-app`).
    pub name: String,
    /// How many pods; a `DaemonSet` and static pods have one a node.
    pub replicas: u32,
    /// How long a pod takes until it is ready.
    pub start: SignedDuration,
    /// How long a pod takes to end.
    pub grace: SignedDuration,
    /// `priorityClassName`.
    pub priority: String,
    /// Whether its pods have an `emptyDir`.
    pub local_storage: bool,
    /// Its budget.
    pub budget: Option<BudgetPlan>,
}

impl WorkloadPlan {
    /// A plain workload of the namespace `default`.
    pub fn new(kind: Kind, name: &str, replicas: u32) -> Self {
        Self {
            kind,
            namespace: "default".to_owned(),
            name: name.to_owned(),
            replicas,
            start: SignedDuration::from_secs(5),
            grace: SignedDuration::from_secs(5),
            priority: String::new(),
            local_storage: false,
            budget: None,
        }
    }

    /// One that the cluster cannot do without, in `kube-system`.
    pub fn critical(kind: Kind, name: &str, replicas: u32) -> Self {
        let priority = match kind {
            Kind::DaemonSet => "system-node-critical",
            _ => "system-cluster-critical",
        };
        Self { namespace: "kube-system".to_owned(), priority: priority.to_owned(), ..Self::new(kind, name, replicas) }
    }
}

/// By what a budget limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `maxUnavailable`, a number.
    MaxUnavailable(u32),
    /// `maxUnavailable`, a percentage.
    MaxUnavailablePercent(u32),
    /// `minAvailable`, a number.
    MinAvailable(u32),
    /// `minAvailable`, a percentage.
    MinAvailablePercent(u32),
}

/// A budget to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetPlan {
    /// By what it limits.
    pub limit: Limit,
}

/// A budget.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which pods it covers.
    pub selector: Selector,
    /// By what it limits.
    pub limit: Limit,
    /// The workloads that it covers.
    pub covers: Vec<WorkloadId>,
}

/// A workload.
#[derive(Debug, Clone)]
pub struct Workload {
    /// As it was planned.
    pub plan: WorkloadPlan,
    /// The labels of its pods.
    pub labels: BTreeMap<String, String>,
    /// The budgets that cover it.
    pub budgets: Vec<BudgetId>,
    /// Its pods, until they are gone.
    pub pods: Vec<PodId>,
    made: u32,
}

/// A pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It has no node, or has not started.
    Pending,
    /// It runs.
    Running,
    /// It has finished.
    Succeeded,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its workload.
    pub workload: WorkloadId,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: Option<NodeId>,
    /// Its phase.
    pub phase: Phase,
    /// Whether it is ready.
    pub ready: bool,
    /// Since when there is this pod.
    pub created: Moment,
    /// Since when it is being deleted.
    pub deleting: Option<Moment>,
    /// Whether it is gone.
    pub gone: bool,
}

/// What a budget says now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// How many pods it expects.
    pub expected: i32,
    /// How many are healthy.
    pub healthy: i32,
    /// How many must be.
    pub desired: i32,
    /// How many may be evicted.
    pub allowed: i32,
}

impl Pod {
    fn counts(&self) -> bool {
        self.deleting.is_none() && !self.gone && self.phase != Phase::Succeeded
    }
}

impl Kind {
    /// Whether an eviction may concern its pods at all.
    pub fn is_evictable(self) -> bool {
        !matches!(self, Self::DaemonSet | Self::Static)
    }
}

impl World {
    /// Makes a workload; its pods find their nodes when the world begins.
    pub fn add_workload(&mut self, plan: WorkloadPlan) -> WorkloadId {
        let keys: &[&str] = if plan.namespace == "kube-system" { &["app", "k8s-app"] } else { &["app"] };
        let labels = keys.iter().map(|&key| (key.to_owned(), plan.name.clone())).collect();
        let budget = plan.budget;
        let id = self.workloads.push(Workload { plan, labels, budgets: Vec::new(), pods: Vec::new(), made: 0 });
        if let Some(budget) = budget {
            let name = self.workloads[id].plan.name.clone();
            self.add_budget(&name, budget.limit, &[id]);
        }
        for node in self.live_nodes.clone() {
            self.daemon_of(id, node);
        }
        // Those that nobody makes again are made once.
        if matches!(self.workloads[id].plan.kind, Kind::Bare | Kind::Job) {
            for _ in 0..self.workloads[id].plan.replicas {
                self.make_pod(id, None);
            }
        }
        self.unsettled.insert(id);
        id
    }

    /// Makes a budget of some workloads of one namespace.
    pub fn add_budget(&mut self, name: &str, limit: Limit, covers: &[WorkloadId]) -> Option<BudgetId> {
        let first = &self.workloads[*covers.first()?];
        let namespace = first.plan.namespace.clone();
        let values = covers.iter().map(|id| self.workloads[*id].plan.name.clone()).collect();
        let requirement = kopsline_rolling::Requirement { key: "app".to_owned(), operator: "In".to_owned(), values };
        let selector = Selector { match_labels: BTreeMap::new(), match_expressions: vec![requirement] };
        let id = self.budgets.push(Budget { namespace, name: name.to_owned(), selector, limit, covers: covers.to_vec() });
        for workload in covers {
            self.workloads[*workload].budgets.push(id);
        }
        Some(id)
    }

    /// A workload that was seen, without its pods.
    pub(crate) fn add_seen_workload(&mut self, plan: WorkloadPlan, labels: BTreeMap<String, String>) -> WorkloadId {
        let id = self.workloads.push(Workload { plan, labels, budgets: Vec::new(), pods: Vec::new(), made: 0 });
        self.unsettled.insert(id);
        id
    }

    /// A pod that was seen.
    pub(crate) fn add_seen_pod(&mut self, workload: WorkloadId, name: &str, node: Option<NodeId>, ready: bool, finished: bool) {
        self.workloads[workload].made += 1;
        let phase = match (finished, node) {
            (true, _) => Phase::Succeeded,
            (false, Some(_)) => Phase::Running,
            (false, None) => Phase::Pending,
        };
        let name = name.to_owned();
        let pod = self.pods.push(Pod { workload, name, node, phase, ready, created: self.now, deleting: None, gone: false });
        self.workloads[workload].pods.push(pod);
        self.live_pods.insert(pod);
        match node {
            Some(node) => self.nodes[node].pods.push(pod),
            None if finished => {}
            None => {
                self.pending.push(pod);
                self.schedulable = true;
            }
        }
        self.changed();
    }

    /// A budget that was seen.
    pub(crate) fn add_seen_budget(&mut self, seen: &BudgetFacts, limit: Limit, covers: Vec<WorkloadId>) {
        let (namespace, name, selector) = (seen.namespace.clone(), seen.name.clone(), seen.selector.clone());
        let id = self.budgets.push(Budget { namespace, name, selector, limit, covers: covers.clone() });
        for workload in covers {
            self.workloads[workload].budgets.push(id);
        }
    }

    pub(super) fn add_node(&mut self, instance: InstanceId) -> NodeId {
        let group = &self.groups[self.instances[instance].group];
        let control_plane = group.spec.role == Role::ControlPlane;
        let number = place(self.nodes.next_key());
        let address = format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255);
        let name = if self.seen { self.instances[instance].id.clone() } else { format!("ip-{}", address.replace('.', "-")) };
        let node = self.nodes.push(Node {
            name,
            instance,
            address,
            control_plane,
            ready: false,
            sick_until: None,
            cordoned: false,
            tainted: false,
            excluded: false,
            needs_update: false,
            removed: false,
            pods: Vec::new(),
        });
        self.live_nodes.insert(node);
        self.instances[instance].node = Some(node);
        for workload in self.workloads.keys() {
            self.daemon_of(workload, node);
        }
        self.changed();
        node
    }

    /// The pod that a `DaemonSet` or a kubelet has on a node.
    fn daemon_of(&mut self, workload: WorkloadId, node: NodeId) {
        let wanted = match self.workloads[workload].plan.kind {
            Kind::DaemonSet => true,
            Kind::Static => self.nodes[node].control_plane,
            _ => false,
        };
        if wanted && !self.nodes[node].pods.iter().any(|pod| self.pods[*pod].workload == workload) {
            self.make_pod(workload, Some(node));
        }
    }

    fn make_pod(&mut self, workload: WorkloadId, node: Option<NodeId>) {
        let set = &mut self.workloads[workload];
        set.made += 1;
        let (plan, made) = (&set.plan, set.made);
        let name = match (plan.kind, node) {
            (Kind::StatefulSet, _) => {
                let taken = |name: &String| set.pods.iter().any(|pod| self.pods[*pod].name == *name);
                (0..=made).map(|ordinal| format!("{}-{ordinal}", plan.name)).find(|name| !taken(name)).unwrap_or_default()
            }
            (Kind::Static, Some(node)) => format!("{}-{}", plan.name, self.nodes[node].name),
            _ => format!("{}-{made}", plan.name),
        };
        let phase = if plan.kind == Kind::Job { Phase::Succeeded } else { Phase::Pending };
        let pod = self.pods.push(Pod { workload, name, node: None, phase, ready: false, created: self.now, deleting: None, gone: false });
        self.workloads[workload].pods.push(pod);
        self.live_pods.insert(pod);
        self.changed();
        if let Some(node) = node {
            self.bind(pod, node);
        } else {
            self.pending.push(pod);
            self.schedulable = true;
        }
    }

    fn bind(&mut self, pod: PodId, node: NodeId) {
        self.pods[pod].node = Some(node);
        self.nodes[node].pods.push(pod);
        self.changed();
        if self.nodes[node].ready {
            self.start_pod(pod);
        }
    }

    fn start_pod(&mut self, pod: PodId) {
        let start = self.workloads[self.pods[pod].workload].plan.start;
        let start = if start.is_zero() { start } else { self.takes(start, place(pod), 6) };
        self.later(start, Event::PodReady(pod));
    }

    pub(super) fn pod_ready(&mut self, id: PodId) {
        let Some(node) = self.pods[id].node else { return };
        let running = self.kubelet_runs(node);
        let pod = &mut self.pods[id];
        if pod.gone || pod.phase == Phase::Succeeded || !running {
            return;
        }
        (pod.phase, pod.ready) = (Phase::Running, true);
        self.changed();
    }

    fn kubelet_runs(&self, node: NodeId) -> bool {
        let node = &self.nodes[node];
        node.ready && matches!(self.instances[node.instance].life, Life::Running)
    }

    /// Marks a pod for deletion; its kubelet ends it within its grace.
    pub(super) fn delete_pod(&mut self, id: PodId) {
        let grace = self.workloads[self.pods[id].workload].plan.grace;
        let pod = &mut self.pods[id];
        if pod.deleting.is_some() || pod.gone {
            return;
        }
        pod.deleting = Some(self.now);
        let (workload, unbound) = (pod.workload, pod.node.is_none());
        let grace = if unbound || pod.phase == Phase::Succeeded { SignedDuration::ZERO } else { grace };
        self.unsettled.insert(workload);
        self.changed();
        self.later(grace, Event::PodGone(id));
    }

    pub(super) fn pod_gone(&mut self, id: PodId) {
        // Without its kubelet a pod stays until its node is removed, or the kubelet is back.
        if let Some(node) = self.pods[id].node
            && !self.kubelet_runs(node)
            && !self.nodes[node].removed
        {
            return;
        }
        self.forget_pod(id);
    }

    fn forget_pod(&mut self, id: PodId) {
        let pod = &mut self.pods[id];
        if pod.gone {
            return;
        }
        (pod.gone, pod.ready) = (true, false);
        let (workload, node) = (pod.workload, pod.node);
        self.live_pods.remove(&id);
        self.workloads[workload].pods.retain(|pod| *pod != id);
        self.unsettled.insert(workload);
        if let Some(node) = node {
            self.nodes[node].pods.retain(|pod| *pod != id);
            self.schedulable = true;
            if !self.nodes[node].removed {
                self.daemon_of(workload, node);
            }
        }
        self.changed();
        self.tell(|world| What::PodGone { pod: world.pod_name(id) });
    }

    /// Namespace and name of a pod.
    pub fn pod_name(&self, id: PodId) -> String {
        let pod = &self.pods[id];
        format!("{}/{}", self.workloads[pod.workload].plan.namespace, pod.name)
    }

    pub(super) fn join(&mut self, id: InstanceId) {
        if !self.instances[id].alive() || self.instances[id].node.is_some() {
            return;
        }
        if !self.api_up() {
            return self.later(SignedDuration::from_secs(5), Event::Join(id));
        }
        let node = self.add_node(id);
        self.tell(|world| What::Joined { instance: world.instances[id].id.clone(), node: world.nodes[node].name.clone() });
        let ready = self.takes(self.pace.ready, place(id), 5);
        self.later(ready, Event::NodeReady(node));
    }

    pub(super) fn node_ready(&mut self, id: NodeId) {
        if !self.instances[self.nodes[id].instance].alive() || self.nodes[id].removed {
            return;
        }
        self.make_ready(id);
        self.tell(|world| What::NodeReady { node: world.nodes[id].name.clone() });
    }

    pub(super) fn make_ready(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        (node.ready, node.sick_until) = (true, None);
        self.schedulable = true;
        for pod in node.pods.clone() {
            if self.pods[pod].deleting.is_some() {
                self.later(SignedDuration::ZERO, Event::PodGone(pod));
            } else {
                self.start_pod(pod);
            }
        }
        self.changed();
    }

    pub(super) fn node_lost(&mut self, id: NodeId) {
        let node = &mut self.nodes[id];
        if !node.ready {
            return;
        }
        node.ready = false;
        for pod in node.pods.clone() {
            self.pods[pod].ready = false;
        }
        self.changed();
        self.tell(|world| What::NodeLost { node: world.nodes[id].name.clone() });
    }

    /// The cloud's node controller removes the node of an instance that is gone, and its pods go with it.
    pub(super) fn node_removed(&mut self, id: NodeId) {
        if !self.api_up() {
            return self.later(SignedDuration::from_secs(5), Event::NodeRemoved(id));
        }
        self.nodes[id].removed = true;
        self.live_nodes.remove(&id);
        for pod in self.nodes[id].pods.clone() {
            self.forget_pod(pod);
        }
        self.changed();
        self.tell(|world| What::NodeRemoved { node: world.nodes[id].name.clone() });
    }

    /// A sick node is well again.
    pub(super) fn recover(&mut self, id: NodeId) {
        if !self.nodes[id].removed && self.nodes[id].sick_until.is_some() && self.instances[self.nodes[id].instance].alive() {
            self.make_ready(id);
            self.tell(|world| What::NodeReady { node: world.nodes[id].name.clone() });
        }
    }

    /// Deployments and `StatefulSet`s make the pods they lack.
    pub(super) fn reconcile(&mut self) {
        for id in std::mem::take(&mut self.unsettled) {
            let workload = &self.workloads[id];
            let have = match workload.plan.kind {
                Kind::Deployment => workload.pods.iter().filter(|pod| self.pods[**pod].counts()).count(),
                Kind::StatefulSet => workload.pods.len(),
                Kind::DaemonSet | Kind::Static | Kind::Bare | Kind::Job => continue,
            };
            for _ in have..workload.plan.replicas as usize {
                self.make_pod(id, None);
            }
        }
    }

    /// Gives pods nodes: never cordoned ones, tainted ones only where there is no other.
    pub(super) fn schedule(&mut self) {
        if !std::mem::take(&mut self.schedulable) || self.pending.is_empty() {
            return;
        }
        let nodes: Vec<NodeId> = self.live_nodes.iter().copied().collect();
        let mut left = Vec::new();
        for pod in std::mem::take(&mut self.pending) {
            if self.pods[pod].gone || self.pods[pod].deleting.is_some() {
                continue;
            }
            match self.find_node(&nodes) {
                Some(node) => self.bind(pod, node),
                None => left.push(pod),
            }
        }
        self.pending = left;
    }

    fn find_node(&mut self, nodes: &[NodeId]) -> Option<NodeId> {
        let count = u32::try_from(nodes.len()).unwrap_or(0);
        let mut tainted = None;
        for step in 0..count {
            let number = (self.cursor + step) % count;
            let Some(&id) = nodes.get(number as usize) else { continue };
            let node = &self.nodes[id];
            if node.control_plane || node.cordoned || !node.ready || node.pods.len() >= self.capacity {
                continue;
            }
            if node.tainted {
                tainted = tainted.or(Some(id));
                continue;
            }
            self.cursor = number + 1;
            return Some(id);
        }
        tainted
    }

    /// What a budget says (Kubernetes' disruption controller).
    pub fn allowance(&self, id: BudgetId) -> Allowance {
        let budget = &self.budgets[id];
        let mut expected = 0_i32;
        let mut healthy = 0_i32;
        let mut all = 0_i32;
        for workload in &budget.covers {
            let workload = &self.workloads[*workload];
            if matches!(workload.plan.kind, Kind::Deployment | Kind::StatefulSet) {
                expected += i32::try_from(workload.plan.replicas).unwrap_or(0);
            } else {
                expected += i32::try_from(workload.pods.len()).unwrap_or(0);
            }
            for pod in workload.pods.iter().map(|pod| &self.pods[*pod]).filter(|pod| pod.counts()) {
                all += 1;
                healthy += i32::from(pod.ready);
            }
        }
        let percent_up = |percent: u32| (i64::from(expected) * i64::from(percent) + 99) / 100;
        let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        let (expected, desired) = match budget.limit {
            Limit::MaxUnavailable(most) => (expected, (expected - number(most)).max(0)),
            Limit::MaxUnavailablePercent(percent) => (expected, (expected - i32::try_from(percent_up(percent)).unwrap_or(i32::MAX)).max(0)),
            Limit::MinAvailable(least) => (all, number(least)),
            Limit::MinAvailablePercent(percent) => (expected, i32::try_from(percent_up(percent)).unwrap_or(i32::MAX)),
        };
        let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
        Allowance { expected, healthy, desired, allowed }
    }
}

impl World {
    /// Marks some nodes as touched before the roll (cordoned, tainted, excluded) or as asking for an update, and protects
    /// some instances: each once in so many, 0 for never.
    pub fn touch(&mut self, random: &mut crate::random::Random, touched: u32, annotated: u32, protected: u32) {
        for id in self.nodes.keys() {
            let node = &mut self.nodes[id];
            if !node.control_plane && random.once_in(touched) {
                (node.cordoned, node.excluded) = (true, random.once_in(2));
                node.tainted = random.once_in(2);
            }
            node.needs_update = random.once_in(annotated);
        }
        for id in self.instances.keys() {
            self.instances[id].protected = random.once_in(protected);
        }
        self.changed();
    }
}
