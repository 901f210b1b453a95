//! Whether a cluster is well, as kOps judges it (kOps 1.36 `pkg/validation/validate_cluster.go`).
//!
//! Taken over from kOps 1.37: a node-critical pod belongs to the instance group of its node even while that node is not
//! ready; in 1.36 such a pod blocks the roll of every group. Pods are matched to nodes by `spec.nodeName` (1.37) and, where
//! that is empty, by `status.hostIP` (1.36).

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::inventory::{CloudGroup, Instance, Inventory, Status};
use crate::kubernetes::{ApiName, ClusterFacts, NodeFacts, PodFacts};
use crate::spec::Role;

/// What every control-plane node runs in `kube-system`, by the label `k8s-app`.
const CONTROL_PLANE_PODS: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
const CLUSTER_CRITICAL: &str = "system-cluster-critical";
const NODE_CRITICAL: &str = "system-node-critical";

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Failure {
    /// What it is about.
    pub kind: FailureKind,
    /// The name of that: an instance group's, an instance's id, a node's, `namespace/name` of a pod.
    pub name: String,
    /// kOps' words.
    pub message: String,
    /// The instance group that it belongs to; a failure without one concerns every group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How many instances the instance group lacks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lacking: usize,
}

/// What a [`Failure`] is about, in kOps' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FailureKind {
    /// The API's name.
    #[serde(rename = "dns")]
    Dns,
    /// An instance group.
    InstanceGroup,
    /// An instance that is no node yet.
    Machine,
    /// A node.
    Node,
    /// A pod.
    Pod,
    /// The Kubernetes API itself. kOps returns an error instead of a failure.
    #[serde(rename = "API")]
    Api,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Failure {
    /// The API did not answer; nothing is known of the cluster.
    pub fn unanswered(message: &str) -> Self {
        Self {
            kind: FailureKind::Api,
            name: "kubernetes".to_owned(),
            message: format!("the Kubernetes API does not answer: {message}"),
            group: None,
            lacking: 0,
        }
    }

    /// Whether it stands in the way of rolling `group`: it concerns every group, or `group`, or the control plane.
    pub fn concerns(&self, group: &str, inventory: &Inventory) -> bool {
        match &self.group {
            None => true,
            Some(own) => own == group || role_of(own, inventory) == Some(Role::ControlPlane),
        }
    }

    /// Whether a roll may put up with it if it was there when the roll began. Never with what says how many members the
    /// control plane has and whether they are ready: the etcd quorum depends on it.
    pub fn is_excusable(&self, inventory: &Inventory) -> bool {
        let of_control_plane = self.group.as_deref().and_then(|group| role_of(group, inventory)) == Some(Role::ControlPlane);
        match self.kind {
            FailureKind::Dns | FailureKind::Api => false,
            FailureKind::InstanceGroup | FailureKind::Machine | FailureKind::Node => !of_control_plane,
            FailureKind::Pod => true,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

fn role_of(group: &str, inventory: &Inventory) -> Option<Role> {
    let in_cloud = inventory.groups.get(group).map(|group| group.spec.role);
    in_cloud.or_else(|| inventory.cluster.groups.iter().find(|spec| spec.name == group).map(|spec| spec.role))
}

/// An instance that is about to leave its group or has left it, whatever the cloud still says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// Its termination is decided: it does not count as a member, and nothing is expected of its node.
    Terminated,
    /// It was detached: it does not count as a member, but as in kOps its node must be ready.
    Detached,
}

/// Validates the cluster, as if what is `leaving` were so already. Up to `max_unready` worker nodes may be not ready or not
/// joined (`kops validate cluster --max-unready-nodes` of kOps 1.37; a rolling update allows none).
pub fn validate(inventory: &Inventory, facts: &ClusterFacts, leaving: &BTreeMap<String, Leaving>, max_unready: usize) -> Vec<Failure> {
    let mut validation =
        Validation { failures: Vec::new(), unready: HashSet::new(), on_unready: HashSet::new(), ready_control_plane: Vec::new() };
    match &facts.api_name {
        ApiName::Fine => {}
        ApiName::Placeholder => {
            let message =
                "the API's DNS name still resolves to the placeholder that kOps puts there until a control-plane node has started";
            validation.add(FailureKind::Dns, "apiserver", message.to_owned(), None);
            return validation.failures;
        }
        ApiName::Unresolved { message } => {
            validation.add(FailureKind::Dns, "apiserver", format!("the API's DNS name cannot be resolved: {message}"), None);
            return validation.failures;
        }
    }
    let members = Members::new(inventory, facts, leaving);
    for group in inventory.groups.values() {
        validation.group(group, &members, leaving);
    }
    for spec in inventory.cluster.groups.iter().filter(|spec| !inventory.groups.contains_key(&spec.name)) {
        let message = format!("InstanceGroup {:?} is missing from the cloud provider", spec.name);
        validation.add(FailureKind::InstanceGroup, &spec.name, message, Some(&spec.name));
    }
    validation.pods(facts, &members);
    validation.tolerate(max_unready)
}

/// Nodes by what refers to them.
struct Members<'a> {
    by_instance: HashMap<&'a str, &'a NodeFacts>,
    by_address: HashMap<&'a str, &'a str>,
    /// The instance group of each node that is expected to be well.
    groups: HashMap<&'a str, &'a str>,
    /// Nodes of instances that are leaving.
    leaving: HashSet<&'a str>,
}

impl<'a> Members<'a> {
    fn new(inventory: &'a Inventory, facts: &'a ClusterFacts, leaving: &BTreeMap<String, Leaving>) -> Self {
        let by_instance: HashMap<_, _> = facts.nodes.iter().map(|node| (node.instance(), node)).collect();
        let mut groups = HashMap::new();
        let mut nodes_leaving = HashSet::new();
        for (name, group) in &inventory.groups {
            for instance in group.instances() {
                let Some(node) = by_instance.get(instance.id.as_str()) else { continue };
                if leaving.get(&instance.id) == Some(&Leaving::Terminated) {
                    nodes_leaving.insert(node.name.as_str());
                } else {
                    groups.insert(node.name.as_str(), name.as_str());
                }
            }
        }
        let addresses = |node: &'a NodeFacts| node.addresses.iter().map(|address| (address.as_str(), node.name.as_str()));
        Self { by_address: facts.nodes.iter().flat_map(addresses).collect(), by_instance, groups, leaving: nodes_leaving }
    }

    fn node_of(&self, pod: &'a PodFacts) -> Option<&'a str> {
        if pod.node.is_empty() { self.by_address.get(pod.host_ip.as_str()).copied() } else { Some(&pod.node) }
    }
}

struct Validation<'a> {
    failures: Vec<Failure>,
    /// Instances of worker groups that are not ready or not joined, and the nodes of those that have one.
    unready: HashSet<&'a str>,
    /// Pods of such nodes, as `namespace/name`.
    on_unready: HashSet<String>,
    ready_control_plane: Vec<&'a NodeFacts>,
}

impl<'a> Validation<'a> {
    fn add(&mut self, kind: FailureKind, name: &str, message: String, group: Option<&str>) {
        self.failures.push(Failure { kind, name: name.to_owned(), message, group: group.map(str::to_owned), lacking: 0 });
    }

    fn group(&mut self, group: &'a CloudGroup, members: &Members<'a>, leaving: &BTreeMap<String, Leaving>) {
        let name = &group.spec.name;
        let is_detached =
            |instance: &Instance| instance.status == Status::Detached || leaving.get(&instance.id) == Some(&Leaving::Detached);
        let staying = || group.instances().filter(|instance| leaving.get(&instance.id) != Some(&Leaving::Terminated));
        let (attached, target) = (staying().filter(|instance| !is_detached(instance)).count(), group.target as usize);
        if attached < target {
            let message = format!("InstanceGroup {name:?} did not have enough nodes {attached} vs {target}");
            self.add(FailureKind::InstanceGroup, name, message, Some(name));
            if let Some(failure) = self.failures.last_mut() {
                failure.lacking = target - attached;
            }
        }
        for instance in staying() {
            let Some(node) = members.by_instance.get(instance.id.as_str()) else {
                let expected = group.spec.role != Role::Bastion && !instance.warm && !is_detached(instance);
                if expected {
                    self.unready(group, &instance.id);
                    let message = format!("machine {:?} has not yet joined cluster", instance.id);
                    self.add(FailureKind::Machine, &instance.id, message, Some(name));
                }
                continue;
            };
            if !node.ready {
                self.unready(group, &node.name);
                let role = if node.control_plane { Role::ControlPlane } else { group.spec.role };
                let message = format!("node {:?} of role \"{role}\" is not ready", node.name);
                self.add(FailureKind::Node, &node.name, message, Some(name));
            } else if node.control_plane {
                self.ready_control_plane.push(node);
            }
        }
    }

    fn unready(&mut self, group: &CloudGroup, name: &'a str) {
        if group.spec.role != Role::ControlPlane {
            self.unready.insert(name);
        }
    }

    fn pods(&mut self, facts: &'a ClusterFacts, members: &Members<'a>) {
        let mut running: HashSet<(&str, &str)> = HashSet::new();
        for pod in &facts.pods {
            if pod.namespace == "kube-system"
                && let Some(app) = pod.labels.get("k8s-app")
                && let Some(node) = members.node_of(pod)
            {
                running.insert((app, node));
            }
            if let Some(problem) = problem(pod) {
                let of_node = pod.priority_class == NODE_CRITICAL;
                let node = members.node_of(pod).filter(|_| of_node);
                if node.is_some_and(|node| members.leaving.contains(node)) {
                    continue;
                }
                let group = node.and_then(|node| members.groups.get(node)).copied();
                let (name, message) =
                    (format!("{}/{}", pod.namespace, pod.name), format!("{} pod {:?} {problem}", pod.priority_class, pod.name));
                if node.is_some_and(|node| self.unready.contains(node)) {
                    self.on_unready.insert(name.clone());
                }
                self.add(FailureKind::Pod, &name, message, group);
            }
        }
        for node in std::mem::take(&mut self.ready_control_plane) {
            let group = members.groups.get(node.name.as_str()).copied();
            for app in CONTROL_PLANE_PODS.into_iter().filter(|app| !running.contains(&(app, node.name.as_str()))) {
                let message = format!("control-plane node {:?} is missing {app} pod", node.name);
                self.add(FailureKind::Node, &node.name, message, group);
            }
        }
    }

    /// Leaves out what concerns unready workers if they are few enough.
    fn tolerate(self, max_unready: usize) -> Vec<Failure> {
        let Self { failures, unready, on_unready, .. } = self;
        if unready.is_empty() || unready.len() > max_unready {
            return failures;
        }
        let is_tolerated = |failure: &Failure| match failure.kind {
            FailureKind::Machine | FailureKind::Node => unready.contains(failure.name.as_str()),
            FailureKind::Pod => on_unready.contains(&failure.name),
            FailureKind::Dns | FailureKind::InstanceGroup | FailureKind::Api => false,
        };
        failures.into_iter().filter(|failure| !is_tolerated(failure)).collect()
    }
}

/// What is wrong with a pod that the cluster cannot do without.
fn problem(pod: &PodFacts) -> Option<String> {
    if !matches!(pod.priority_class.as_str(), CLUSTER_CRITICAL | NODE_CRITICAL) {
        return None;
    }
    match pod.phase.as_str() {
        "Succeeded" => None,
        "Pending" => Some("is pending".to_owned()),
        "Unknown" => Some("is unknown phase".to_owned()),
        _ if pod.unready_containers.is_empty() => None,
        _ => Some(format!("is not ready ({})", pod.unready_containers.join(","))),
    }
}

/// The first few of many, shortened, for a line of text.
pub(crate) fn shortened<'a>(failures: impl Iterator<Item = &'a Failure>) -> Vec<String> {
    const SHOWN: usize = 5;
    let mut seen = HashSet::new();
    let mut lines = Vec::new();
    let mut more = 0;
    for failure in failures {
        if !seen.insert(&failure.message) {
            continue;
        }
        if lines.len() < SHOWN { lines.push(failure.message.clone()) } else { more += 1 }
    }
    if more > 0 {
        lines.push(format!("{more} more"));
    }
    lines
}

#[cfg(test)]
mod tests;
