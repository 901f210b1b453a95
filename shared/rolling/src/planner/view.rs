//! What is seen, by what it is looked up by; each index is built once per decision.

use std::cell::OnceCell;
use std::collections::HashMap;

use super::Observation;
use super::turn::{Site, Turn};
use crate::inventory::{CloudGroup, Instance, Inventory, Status};
use crate::kubernetes::{BudgetFacts, ClusterFacts, NodeFacts, PodFacts};
use crate::spec::{Manager, Role};
use crate::state::{GroupRoll, InstanceRoll};

pub(super) struct View<'a> {
    inventory: &'a Inventory,
    facts: Option<&'a ClusterFacts>,
    instances: HashMap<&'a str, &'a Instance>,
    nodes_by_instance: HashMap<&'a str, &'a NodeFacts>,
    nodes_by_name: HashMap<&'a str, &'a NodeFacts>,
    /// Evictable pods by node; only drains need them.
    pods: OnceCell<HashMap<&'a str, Vec<&'a PodFacts>>>,
    budgets: OnceCell<HashMap<&'a str, Vec<&'a BudgetFacts>>>,
}

impl<'a> View<'a> {
    pub(super) fn new(observation: &Observation<'a>) -> Self {
        let instances = observation.inventory.groups.values().flat_map(CloudGroup::instances);
        let facts = observation.kubernetes.ok();
        let nodes = || facts.into_iter().flat_map(|facts| &facts.nodes);
        Self {
            inventory: observation.inventory,
            facts,
            instances: instances.map(|instance| (instance.id.as_str(), instance)).collect(),
            nodes_by_instance: nodes().map(|node| (node.instance(), node)).collect(),
            nodes_by_name: nodes().map(|node| (node.name.as_str(), node)).collect(),
            pods: OnceCell::new(),
            budgets: OnceCell::new(),
        }
    }

    pub(super) fn instance(&self, id: &str) -> Option<&'a Instance> {
        self.instances.get(id).copied()
    }

    /// Whether an instance is gone. A group that is missing altogether says nothing about its instances.
    pub(super) fn is_gone(&self, group: &str, id: &str) -> bool {
        self.inventory.groups.contains_key(group) && !self.instances.contains_key(id)
    }

    pub(super) fn node_of(&self, instance: &str) -> Option<&'a NodeFacts> {
        self.nodes_by_instance.get(instance).copied()
    }

    pub(super) fn node(&self, name: &str) -> Option<&'a NodeFacts> {
        self.nodes_by_name.get(name).copied()
    }

    /// The pods that a drain of this node has to move away.
    pub(super) fn pods_on(&self, node: &str) -> &[&'a PodFacts] {
        let by_node = self.pods.get_or_init(|| {
            let mut by_node: HashMap<&str, Vec<&PodFacts>> = HashMap::new();
            for pod in self.facts.into_iter().flat_map(|facts| &facts.pods).filter(|pod| pod.is_evictable()) {
                by_node.entry(&pod.node).or_default().push(pod);
            }
            by_node
        });
        by_node.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// The budgets that cover a pod.
    pub(super) fn budgets_of(&self, pod: &PodFacts) -> Vec<&'a BudgetFacts> {
        let by_namespace = self.budgets.get_or_init(|| {
            let mut by_namespace: HashMap<&str, Vec<&BudgetFacts>> = HashMap::new();
            for budget in self.facts.into_iter().flat_map(|facts| &facts.budgets) {
                by_namespace.entry(&budget.namespace).or_default().push(budget);
            }
            by_namespace
        });
        let of_namespace = by_namespace.get(pod.namespace.as_str()).into_iter().flatten();
        of_namespace.filter(|budget| budget.selector.covers(&pod.labels)).copied().collect()
    }
}

/// A group with fewer instances in service than it should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortfall {
    pub(super) group: String,
    pub(super) in_service: usize,
    pub(super) target: usize,
}

/// Why a group must not lose an instance now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Incomplete {
    Missing(String),
    Short(Shortfall),
}

/// How many instances serve, leaving out those that the roll takes out of service: the cloud may list them for a while.
impl<'a> Turn<'a> {
    fn serves(&self, instance: &Instance) -> bool {
        instance.in_service && !self.condemned.contains(&instance.id)
    }

    /// The groups that must be complete before `group` loses an instance: for the control plane all groups of its role,
    /// since their members form one etcd cluster.
    fn relevant(&self, group: &GroupRoll) -> Result<Vec<&'a CloudGroup>, Incomplete> {
        let own = self.inventory.groups.get(&group.name).ok_or_else(|| Incomplete::Missing(group.name.clone()))?;
        Ok(if group.role == Role::ControlPlane { self.control_plane().collect() } else { vec![own] })
    }

    fn control_plane(&self) -> impl Iterator<Item = &'a CloudGroup> + use<'a> {
        self.inventory.groups.values().filter(|other| other.spec.role == Role::ControlPlane)
    }

    fn shortfall(&self, group: &CloudGroup, lacking: usize, draining: usize) -> Option<Shortfall> {
        // The size of a Karpenter group is not known here, so its replacements cannot be awaited.
        let target = if group.spec.manager == Manager::Karpenter { 0 } else { (group.target as usize).saturating_sub(lacking) };
        let in_service = group.instances().filter(|instance| self.serves(instance)).count() + draining;
        (in_service < target).then(|| Shortfall { group: group.spec.name.clone(), in_service, target })
    }

    /// How many instances in service the group lacks, those included that it lacked from the beginning.
    pub(super) fn lacks(&self, group: &CloudGroup) -> usize {
        self.shortfall(group, 0, 0).map_or(0, |short| short.target - short.in_service)
    }

    /// Whether every instance that went was replaced. Others of the group that are drained meanwhile serve until they are
    /// terminated; that they are not too many is counted where the next one is begun.
    pub(super) fn complete(&self, group: &GroupRoll) -> Result<(), Incomplete> {
        let serves_still =
            |instance: &&InstanceRoll| instance.phase.is_draining() && !instance.is_detached() && self.is_in_service(&instance.id);
        let one_by_one = group.role == Role::ControlPlane;
        let draining = if one_by_one { 0 } else { group.instances.iter().filter(serves_still).count() };
        match self.relevant(group)?.into_iter().find_map(|cloud| self.shortfall(cloud, group.lacking, draining)) {
            Some(shortfall) => Err(Incomplete::Short(shortfall)),
            None => Ok(()),
        }
    }

    /// How many instances are missing.
    pub(super) fn down(&self, group: &GroupRoll) -> Result<usize, Incomplete> {
        let short = self.relevant(group)?.into_iter().filter_map(|cloud| self.shortfall(cloud, group.lacking, 0));
        Ok(short.map(|short| short.target - short.in_service).sum())
    }

    /// Whether the cloud lists the instance in service.
    pub(super) fn is_in_service(&self, id: &str) -> bool {
        self.view.instance(id).is_some_and(|instance| instance.in_service)
    }

    /// Whether the cloud shows the instance as if nobody had terminated it. A detached one is in no group's service.
    pub(super) fn is_still_there(&self, id: &str) -> bool {
        self.view.instance(id).is_some_and(|instance| instance.in_service || instance.status == Status::Detached)
    }

    /// What speaks against taking the control-plane member `id` out of service now: another one is weak or missing.
    pub(super) fn weakness(&self, id: &str) -> Option<String> {
        if let Some(member) = self.weak_member(id) {
            return Some(format!("control-plane member {member} is not in service and ready"));
        }
        let missing: usize = self
            .control_plane()
            .map(|cloud| {
                let own = usize::from(cloud.instances().any(|instance| instance.id == id && instance.status != Status::Detached));
                let others = cloud.instances().filter(|instance| instance.id != id && self.serves(instance)).count();
                (cloud.target as usize).saturating_sub(own + others)
            })
            .sum();
        match missing {
            0 => None,
            1 => Some("another control-plane member is missing".to_owned()),
            _ => Some(format!("{missing} other control-plane members are missing")),
        }
    }

    /// What speaks against terminating an instance of another group: so many others are missing that it would be too many.
    pub(super) fn scarcity(&self, site: &Site, id: &str) -> Option<String> {
        let cloud = self.inventory.groups.get(&site.name).filter(|cloud| cloud.spec.manager != Manager::Karpenter)?;
        let target = (cloud.target as usize).saturating_sub(site.lacking);
        let others = cloud.instances().filter(|instance| instance.id != id && self.serves(instance)).count();
        let missing = target.saturating_sub(others + 1);
        let is_scarce = self.is_in_service(id) && missing >= site.limit;
        is_scarce.then(|| format!("{missing} other instances of {} are missing, and {} may be down", site.name, site.limit))
    }

    /// A control-plane member, other than `id`, without which `id` must not go: not in service, not ready, or about to go
    /// itself. Members that are missing are not looked for here.
    fn weak_member(&self, id: &str) -> Option<String> {
        let members = self.control_plane().flat_map(CloudGroup::instances);
        let others = members.filter(|member| member.id != id && !member.warm && member.status != Status::Detached);
        let is_strong = |member: &Instance| self.serves(member) && self.view.node_of(&member.id).is_some_and(|node| node.ready);
        let weak = others.filter(|member| !self.leaving.contains_key(&member.id)).find(|member| !is_strong(member))?;
        Some(weak.id.clone())
    }
}
