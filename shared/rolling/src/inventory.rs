//! What the cloud has: raw answers in, classified groups and instances out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::kubernetes::{ClusterFacts, NodeFacts};
use crate::spec::{ClusterSpec, GroupSpec, Manager};

/// The tag by which an Auto Scaling group or instance belongs to a cluster; its value is the cluster's name.
const CLUSTER_TAG: &str = "KubernetesCluster";
/// The tag that names an instance's instance group.
const GROUP_TAG: &str = "kops.k8s.io/instancegroup";
/// The tag of an instance that kOps took out of its group to surge.
const DETACHED_TAG: &str = "kops.k8s.io/detached-from-asg";

/// What stands for a configuration that a plan would make.
const PLANNED: &str = "as planned";

/// The APIs' answers, unjudged. An adapter fills this; [`classify`] gives it meaning.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RawInventory {
    /// Auto Scaling groups; more than those of the cluster do no harm.
    pub groups: Vec<RawGroup>,
    /// EC2 instances in the states pending, running, stopping and stopped that carry the cluster's tag.
    pub instances: Vec<RawInstance>,
    /// The launch templates that a group refers to without a number (see [`RawGroup::unresolved_launch_template`]).
    pub launch_templates: Vec<LaunchTemplateVersions>,
    /// What the Kubernetes API says; `None` where none is configured, which is kOps' `--cloudonly`.
    pub kubernetes: Option<ClusterFacts>,
}

/// An Auto Scaling group.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RawGroup {
    /// Its name.
    pub name: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Set only while the group is being deleted.
    pub status: Option<String>,
    /// Minimum size.
    pub min: u32,
    /// Desired capacity.
    pub desired: u32,
    /// Maximum size.
    pub max: u32,
    /// The launch configuration's name, of groups that still have one.
    pub launch_configuration: Option<String>,
    /// The launch template.
    pub launch_template: Option<LaunchTemplateRef>,
    /// The launch template of the mixed instances policy.
    pub mixed_launch_template: Option<LaunchTemplateRef>,
    /// Members, in the API's order.
    pub members: Vec<RawMember>,
    /// Members of the warm pool, in the API's order.
    pub warm_members: Vec<RawMember>,
    /// Names of suspended processes, such as `Launch`.
    pub suspended_processes: Vec<String>,
}

/// A launch template as a group or a member refers to it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LaunchTemplateRef {
    /// `lt-...`.
    pub id: String,
    /// A number, `$Latest`, `$Default` or nothing (which means `$Default`).
    pub version: Option<String>,
}

/// The numbers behind `$Latest` and `$Default`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchTemplateVersions {
    /// `lt-...`.
    pub id: String,
    /// The newest version.
    pub latest: i64,
    /// The default version.
    pub default: i64,
}

/// A member of an Auto Scaling group or its warm pool.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RawMember {
    /// The instance.
    pub id: String,
    /// Availability zone.
    pub zone: String,
    /// Lifecycle state, such as `InService` or `Terminating:Wait`.
    pub lifecycle: String,
    /// `Healthy` or `Unhealthy`.
    pub health: String,
    /// What it was launched from.
    pub launch_configuration: Option<String>,
    /// What it was launched from.
    pub launch_template: Option<LaunchTemplateRef>,
}

/// An EC2 instance.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RawInstance {
    /// The instance.
    pub id: String,
    /// Availability zone.
    pub zone: String,
    /// State, such as `running`.
    pub state: String,
    /// Machine type.
    pub machine_type: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl RawGroup {
    /// Whether the group carries the cluster's tag and is not being deleted.
    pub fn belongs_to(&self, cluster: &str) -> bool {
        self.status.is_none() && self.tags.get(CLUSTER_TAG).is_some_and(|value| value == cluster)
    }

    /// The id of the launch template whose versions must be looked up before this group can be classified, if any.
    pub fn unresolved_launch_template(&self) -> Option<&str> {
        match self.launch_template_in_force() {
            Some(template) if template.is_unresolved() => Some(&template.id),
            _ => None,
        }
    }

    fn launch_template_in_force(&self) -> Option<&LaunchTemplateRef> {
        if self.launch_configuration.as_deref().is_some_and(|name| !name.is_empty()) {
            return None;
        }
        self.launch_template.as_ref().or(self.mixed_launch_template.as_ref())
    }
}

impl LaunchTemplateRef {
    fn is_unresolved(&self) -> bool {
        matches!(self.version.as_deref(), None | Some("" | "$Latest" | "$Default"))
    }
}

impl RawMember {
    /// What kOps compares: the launch configuration's name, else `template:version` (kOps 1.36
    /// `findInstanceLaunchConfiguration`). Machine type, overrides of a mixed policy and image are not compared.
    fn configuration(&self) -> Option<String> {
        match (self.launch_configuration.as_deref(), &self.launch_template) {
            (Some(name), _) if !name.is_empty() => Some(name.to_owned()),
            (_, Some(template)) if !template.id.is_empty() => {
                Some(format!("{}:{}", template.id, template.version.as_deref().unwrap_or_default()))
            }
            _ => None,
        }
    }
}

/// Whether an instance is what its group would launch today.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It is.
    Ready,
    /// It was launched from something else, or its node asks for an update.
    NeedsUpdate,
    /// kOps took it out of its group to surge and did not get to terminate it.
    Detached,
}

/// A classified instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The instance.
    pub id: String,
    /// Availability zone.
    pub zone: String,
    /// Machine type.
    pub machine_type: String,
    /// What it was launched from: `template:version` or a launch configuration's name.
    pub configuration: Option<String>,
    /// Whether it needs an update.
    pub status: Status,
    /// Whether it waits in the warm pool.
    pub warm: bool,
    /// Whether it does its work as far as the cloud knows: attached, `InService`, healthy and running.
    pub in_service: bool,
    /// Its node's name, where a Kubernetes API is configured and the instance has joined.
    pub node: Option<String>,
}

/// An instance group and its instances.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CloudGroup {
    /// The instance group.
    pub spec: GroupSpec,
    /// The Auto Scaling group's name; the instance group's own under Karpenter.
    pub auto_scaling_group: String,
    /// What a new instance would be launched from; `None` under Karpenter.
    pub configuration: Option<String>,
    /// Minimum size; 0 under Karpenter, as the next two.
    pub min: u32,
    /// Desired capacity.
    pub target: u32,
    /// Maximum size.
    pub max: u32,
    /// Instances that are up to date.
    pub ready: Vec<Instance>,
    /// Instances that need an update, in the order in which kOps takes them.
    pub need_update: Vec<Instance>,
    /// Names of suspended processes, such as `Launch`.
    pub suspended_processes: Vec<String>,
}

impl CloudGroup {
    /// All instances.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.need_update.iter().chain(&self.ready)
    }
}

/// A cluster's classified instance groups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// The cluster as the state store has it.
    pub cluster: ClusterSpec,
    /// Groups by name. An instance group without an Auto Scaling group is absent, as in kOps.
    pub groups: BTreeMap<String, CloudGroup>,
    /// Auto Scaling groups of the cluster that belong to no instance group.
    pub unmatched: Vec<String>,
    /// Whether nodes were looked at.
    pub nodes_known: bool,
}

impl Inventory {
    /// The inventory as it will be once a plan is applied that gives these Auto Scaling groups another launch template: all
    /// their instances need an update then. Groups that do not exist yet are passed over.
    #[must_use]
    pub fn expecting(mut self, changed: &[String]) -> Self {
        for group in self.groups.values_mut() {
            if group.configuration.is_none() || !changed.contains(&group.auto_scaling_group) {
                continue;
            }
            group.configuration = Some(PLANNED.to_owned());
            for mut instance in std::mem::take(&mut group.ready) {
                instance.status = Status::NeedsUpdate;
                group.need_update.push(instance);
            }
        }
        self
    }
}

/// Answers that make no sense together.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// A group with nothing to launch from.
    #[error("Auto Scaling group {0:?} has neither a launch template nor a launch configuration")]
    NothingToLaunch(String),
    /// `$Latest` or `$Default` of a template that does not exist.
    #[error("launch template {template:?} of Auto Scaling group {group:?} was not found")]
    NoLaunchTemplate {
        /// The Auto Scaling group.
        group: String,
        /// The launch template.
        template: String,
    },
    /// Two instance groups whose names lead to one Auto Scaling group.
    #[error("Auto Scaling group {0:?} matches several instance groups; rename one of them")]
    Ambiguous(String),
}

/// Says of every instance of the cluster whether it needs an update, as kOps does
/// (kOps 1.36 `upup/pkg/fi/cloudup/awsup/aws_cloud.go`, `pkg/cloudinstances`).
pub fn classify(raw: &RawInventory, cluster: &ClusterSpec) -> Result<Inventory, InventoryError> {
    let nodes = Nodes::new(raw.kubernetes.as_ref().map(|facts| facts.nodes.as_slice()).unwrap_or_default());
    let mut instances: BTreeMap<&str, BTreeMap<&str, &RawInstance>> = BTreeMap::new();
    for instance in &raw.instances {
        if let (Some(group), Some(owner)) = (instance.tags.get(GROUP_TAG), instance.tags.get(CLUSTER_TAG))
            && *owner == cluster.name
        {
            instances.entry(group).or_default().insert(&instance.id, instance);
        }
    }
    let no_instances = BTreeMap::new();
    let of_group = |name: &str| instances.get(name).unwrap_or(&no_instances);

    let mut groups = BTreeMap::new();
    let mut unmatched = Vec::new();
    for group in raw.groups.iter().filter(|group| group.belongs_to(&cluster.name)) {
        let mut matching = cluster.groups.iter().filter(|spec| spec.role.auto_scaling_group_name(&spec.name, &cluster.name) == group.name);
        match (matching.next(), matching.next()) {
            (None, _) => unmatched.push(group.name.clone()),
            (Some(_), Some(_)) => return Err(InventoryError::Ambiguous(group.name.clone())),
            (Some(spec), None) => {
                groups.insert(spec.name.clone(), cloud_group(group, spec, &raw.launch_templates, of_group(&spec.name), &nodes)?);
            }
        }
    }
    for spec in cluster.groups.iter().filter(|spec| spec.manager == Manager::Karpenter) {
        groups.insert(spec.name.clone(), karpenter_group(spec, of_group(&spec.name), &nodes));
    }
    Ok(Inventory { cluster: cluster.clone(), groups, unmatched, nodes_known: raw.kubernetes.is_some() })
}

fn cloud_group(
    group: &RawGroup,
    spec: &GroupSpec,
    templates: &[LaunchTemplateVersions],
    instances: &BTreeMap<&str, &RawInstance>,
    nodes: &Nodes<'_>,
) -> Result<CloudGroup, InventoryError> {
    let configuration = target_configuration(group, templates)?;
    let mut seen = BTreeSet::new();
    let mut sorted = Sorted::default();
    for member in group.members.iter().chain(&group.warm_members) {
        seen.insert(member.id.as_str());
        // Terminating:Wait still counts, as in kOps; an instance that EC2 no longer shows (or shows without tags) does not.
        let Some(instance) = instances.get(member.id.as_str()).filter(|_| member.lifecycle != "Terminating") else { continue };
        let launched_from = member.configuration();
        let status = if launched_from.as_ref() == Some(&configuration) { Status::Ready } else { Status::NeedsUpdate };
        let mut classified = instance_of(instance, status, nodes);
        classified.warm = member.lifecycle.starts_with("Warmed");
        classified.in_service = member.lifecycle == "InService" && member.health != "Unhealthy" && instance.state == "running";
        classified.configuration = launched_from;
        sorted.push(classified, nodes);
    }
    for instance in instances.values().filter(|instance| instance.tags.contains_key(DETACHED_TAG) && !seen.contains(instance.id.as_str())) {
        sorted.push(instance_of(instance, Status::Detached, nodes), nodes);
    }
    let (ready, need_update) = sorted.finish();
    Ok(CloudGroup {
        spec: spec.clone(),
        auto_scaling_group: group.name.clone(),
        configuration: Some(configuration),
        min: group.min,
        target: group.desired,
        max: group.max,
        ready,
        need_update,
        suspended_processes: group.suspended_processes.clone(),
    })
}

/// Instances of a Karpenter group count as up to date; only the annotation or force replaces them.
fn karpenter_group(spec: &GroupSpec, instances: &BTreeMap<&str, &RawInstance>, nodes: &Nodes<'_>) -> CloudGroup {
    let mut sorted = Sorted::default();
    for instance in instances.values() {
        sorted.push(instance_of(instance, Status::Ready, nodes), nodes);
    }
    let (ready, need_update) = sorted.finish();
    CloudGroup {
        spec: spec.clone(),
        auto_scaling_group: spec.name.clone(),
        configuration: None,
        min: 0,
        target: 0,
        max: 0,
        ready,
        need_update,
        suspended_processes: Vec::new(),
    }
}

/// Ready and need-update lists in kOps' order: what the annotation adds comes after what the launch template says.
#[derive(Default)]
struct Sorted {
    ready: Vec<Instance>,
    need_update: Vec<Instance>,
    annotated: Vec<Instance>,
}

impl Sorted {
    fn push(&mut self, mut instance: Instance, nodes: &Nodes<'_>) {
        match instance.status {
            Status::Ready if nodes.ask_for_update(&instance.id) => {
                instance.status = Status::NeedsUpdate;
                self.annotated.push(instance);
            }
            Status::Ready => self.ready.push(instance),
            Status::NeedsUpdate | Status::Detached => self.need_update.push(instance),
        }
    }

    fn finish(mut self) -> (Vec<Instance>, Vec<Instance>) {
        self.need_update.append(&mut self.annotated);
        (self.ready, self.need_update)
    }
}

struct Nodes<'a>(BTreeMap<&'a str, &'a NodeFacts>);

impl<'a> Nodes<'a> {
    fn new(nodes: &'a [NodeFacts]) -> Self {
        Self(nodes.iter().map(|node| (node.instance(), node)).collect())
    }

    fn ask_for_update(&self, instance: &str) -> bool {
        self.0.get(instance).is_some_and(|node| node.needs_update)
    }
}

fn instance_of(instance: &RawInstance, status: Status, nodes: &Nodes<'_>) -> Instance {
    Instance {
        id: instance.id.clone(),
        zone: instance.zone.clone(),
        machine_type: instance.machine_type.clone(),
        configuration: None,
        status,
        warm: false,
        in_service: false,
        node: nodes.0.get(instance.id.as_str()).map(|node| node.name.clone()),
    }
}

fn target_configuration(group: &RawGroup, templates: &[LaunchTemplateVersions]) -> Result<String, InventoryError> {
    if let Some(name) = group.launch_configuration.as_ref().filter(|name| !name.is_empty()) {
        return Ok(name.clone());
    }
    let template = group.launch_template_in_force().ok_or_else(|| InventoryError::NothingToLaunch(group.name.clone()))?;
    let version = match template.version.as_deref() {
        Some(number) if !template.is_unresolved() => number.to_owned(),
        version => {
            let versions = templates
                .iter()
                .find(|versions| versions.id == template.id)
                .ok_or_else(|| InventoryError::NoLaunchTemplate { group: group.name.clone(), template: template.id.clone() })?;
            if version == Some("$Latest") { versions.latest } else { versions.default }.to_string()
        }
    };
    Ok(format!("{}:{version}", template.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Role;
    use crate::{IntOrString, RollingUpdate};

    fn spec(name: &str, role: Role) -> GroupSpec {
        GroupSpec { name: name.to_owned(), role, manager: Manager::CloudGroup, min_size: 1, rolling_update: RollingUpdate::default() }
    }

    fn cluster(groups: Vec<GroupSpec>) -> ClusterSpec {
        let rolling_update = RollingUpdate { max_surge: Some(IntOrString::Int(1)), ..RollingUpdate::default() };
        ClusterSpec { name: "c.test".to_owned(), rolling_update, groups }
    }

    fn tags(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn template(version: &str) -> LaunchTemplateRef {
        LaunchTemplateRef { id: "lt-1".to_owned(), version: Some(version.to_owned()).filter(|version| !version.is_empty()) }
    }

    fn group(name: &str, version: &str) -> RawGroup {
        RawGroup {
            name: name.to_owned(),
            tags: tags(&[("KubernetesCluster", "c.test")]),
            min: 1,
            desired: 3,
            max: 5,
            launch_template: Some(template(version)),
            ..RawGroup::default()
        }
    }

    fn member(id: &str, version: &str) -> RawMember {
        RawMember {
            id: id.to_owned(),
            lifecycle: "InService".to_owned(),
            health: "Healthy".to_owned(),
            launch_template: Some(template(version)),
            ..RawMember::default()
        }
    }

    fn instance(id: &str, group: &str) -> RawInstance {
        RawInstance {
            id: id.to_owned(),
            state: "running".to_owned(),
            tags: tags(&[("KubernetesCluster", "c.test"), ("kops.k8s.io/instancegroup", group)]),
            ..RawInstance::default()
        }
    }

    fn ids(instances: &[Instance]) -> Vec<&str> {
        instances.iter().map(|instance| instance.id.as_str()).collect()
    }

    #[test]
    fn groups_match_by_name_and_role_and_tag() {
        let specs =
            vec![spec("cp", Role::ControlPlane), spec("api", Role::ApiServer), spec("nodes", Role::Node), spec("bastion", Role::Bastion)];
        let mut foreign = group("nodes.c.test", "1");
        foreign.tags = tags(&[("KubernetesCluster", "other"), ("Owner", "c.test")]);
        let mut deleting = group("nodes.c.test", "1");
        deleting.status = Some("Delete in progress".to_owned());
        let raw = RawInventory {
            groups: vec![
                group("cp.masters.c.test", "1"),
                group("api.apiservers.c.test", "1"),
                group("bastion.c.test", "1"),
                group("stray.c.test", "1"),
                foreign,
                deleting,
            ],
            ..RawInventory::default()
        };
        let inventory = classify(&raw, &cluster(specs)).unwrap();
        assert_eq!(inventory.groups.keys().collect::<Vec<_>>(), ["api", "bastion", "cp"]);
        assert_eq!(inventory.unmatched, ["stray.c.test"]);

        let twins = vec![spec("a.masters", Role::Node), spec("a", Role::ControlPlane)];
        let raw = RawInventory { groups: vec![group("a.masters.c.test", "1")], ..RawInventory::default() };
        assert!(matches!(classify(&raw, &cluster(twins)), Err(InventoryError::Ambiguous(_))));
    }

    #[test]
    fn launch_template_versions_decide() {
        let versions = vec![LaunchTemplateVersions { id: "lt-1".to_owned(), latest: 7, default: 5 }];
        for (wanted, ready, old) in [("$Latest", "7", "5"), ("$Default", "5", "7"), ("", "5", "7"), ("6", "6", "7")] {
            let mut raw =
                RawInventory { groups: vec![group("nodes.c.test", wanted)], launch_templates: versions.clone(), ..RawInventory::default() };
            raw.groups[0].members =
                vec![member("i-1", ready), member("i-2", old), RawMember { launch_template: None, ..member("i-3", "") }];
            raw.instances = vec![instance("i-1", "nodes"), instance("i-2", "nodes"), instance("i-3", "nodes")];
            assert_eq!(raw.groups[0].unresolved_launch_template().is_some(), wanted != "6");
            let inventory = classify(&raw, &cluster(vec![spec("nodes", Role::Node)])).unwrap();
            let group = &inventory.groups["nodes"];
            assert_eq!((ids(&group.ready), ids(&group.need_update)), (vec!["i-1"], vec!["i-2", "i-3"]), "{wanted:?}");
            assert_eq!(group.configuration, Some(format!("lt-1:{ready}")));
        }
        let raw = RawInventory { groups: vec![group("nodes.c.test", "$Latest")], ..RawInventory::default() };
        assert!(matches!(classify(&raw, &cluster(vec![spec("nodes", Role::Node)])), Err(InventoryError::NoLaunchTemplate { .. })));
    }

    #[test]
    fn launch_configurations_and_mixed_policies_decide() {
        let mut by_configuration = group("nodes.c.test", "$Latest");
        by_configuration.launch_configuration = Some("lc-new".to_owned());
        let named =
            |id: &str, name: &str| RawMember { launch_configuration: Some(name.to_owned()), launch_template: None, ..member(id, "") };
        by_configuration.members = vec![named("i-1", "lc-new"), named("i-2", "lc-old")];
        assert_eq!(by_configuration.unresolved_launch_template(), None, "the template is not in force");

        let mut mixed = group("mixed.c.test", "");
        mixed.launch_template = None;
        mixed.mixed_launch_template = Some(template("3"));
        mixed.members = vec![member("i-3", "3"), member("i-4", "2")];

        let mut nothing = group("mixed.c.test", "");
        nothing.launch_template = None;

        let specs = cluster(vec![spec("nodes", Role::Node), spec("mixed", Role::Node)]);
        let raw = RawInventory {
            groups: vec![by_configuration, mixed],
            instances: vec![instance("i-1", "nodes"), instance("i-2", "nodes"), instance("i-3", "mixed"), instance("i-4", "mixed")],
            ..RawInventory::default()
        };
        let inventory = classify(&raw, &specs).unwrap();
        assert_eq!(ids(&inventory.groups["nodes"].need_update), ["i-2"]);
        assert_eq!(ids(&inventory.groups["mixed"].need_update), ["i-4"]);
        let raw = RawInventory { groups: vec![nothing], ..RawInventory::default() };
        assert!(matches!(classify(&raw, &specs), Err(InventoryError::NothingToLaunch(_))));
    }

    #[test]
    fn members_that_go_away_are_skipped_warm_and_detached_are_kept() {
        let lifecycle = |id: &str, state: &str| RawMember { lifecycle: state.to_owned(), ..member(id, "1") };
        let mut raw = RawInventory { groups: vec![group("nodes.c.test", "2")], ..RawInventory::default() };
        raw.groups[0].members = vec![
            member("i-old", "1"),
            lifecycle("i-terminating", "Terminating"),
            lifecycle("i-hook", "Terminating:Wait"),
            member("i-shut-down", "1"),
            member("i-tagged", "1"),
            member("i-new", "2"),
            RawMember { health: "Unhealthy".to_owned(), ..member("i-sick", "2") },
        ];
        raw.groups[0].warm_members =
            vec![lifecycle("i-warm", "Warmed:Stopped"), RawMember { lifecycle: "Warmed:Running".to_owned(), ..member("i-warm-new", "2") }];
        raw.instances =
            ["i-old", "i-terminating", "i-hook", "i-tagged", "i-new", "i-sick", "i-warm", "i-warm-new", "i-detached", "i-stranger"]
                .map(|id| instance(id, "nodes"))
                .to_vec();
        for id in ["i-detached", "i-tagged"] {
            let found = raw.instances.iter_mut().find(|instance| instance.id == id).unwrap();
            found.tags.insert("kops.k8s.io/detached-from-asg".to_owned(), "nodes.c.test".to_owned());
        }
        let inventory = classify(&raw, &cluster(vec![spec("nodes", Role::Node)])).unwrap();
        let group = &inventory.groups["nodes"];
        assert_eq!(ids(&group.need_update), ["i-old", "i-hook", "i-tagged", "i-warm", "i-detached"]);
        assert_eq!(ids(&group.ready), ["i-new", "i-sick", "i-warm-new"]);
        let with = |predicate: fn(&Instance) -> bool| {
            group.instances().filter(|instance| predicate(instance)).map(|i| i.id.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(with(|instance| instance.status == Status::Detached), ["i-detached"], "a tag on a member changes nothing");
        assert_eq!(with(|instance| instance.warm), ["i-warm", "i-warm-new"]);
        assert_eq!(with(|instance| instance.in_service), ["i-old", "i-tagged", "i-new"]);
    }

    #[test]
    fn karpenter_instances_are_ready_unless_annotated() {
        let mut karpenter = spec("spot", Role::Node);
        karpenter.manager = Manager::Karpenter;
        let mut raw = RawInventory { instances: vec![instance("i-1", "spot"), instance("i-2", "spot")], ..RawInventory::default() };
        raw.kubernetes = Some(facts(vec![NodeFacts { name: "n2".to_owned(), ..node("i-2", true) }]));
        let inventory = classify(&raw, &cluster(vec![karpenter])).unwrap();
        let group = &inventory.groups["spot"];
        assert_eq!((ids(&group.ready), ids(&group.need_update)), (vec!["i-1"], vec!["i-2"]));
        assert_eq!((group.min, group.target, group.max), (0, 0, 0));
    }

    /// Groups of two with one old instance each: `<name>a` is old, `<name>b` is new.
    fn annotated(nodes: Option<Vec<NodeFacts>>) -> Inventory {
        let names = [
            ("master-1", Role::ControlPlane, "master-1.masters.c.test"),
            ("node-1", Role::Node, "node-1.c.test"),
            ("node-2", Role::Node, "node-2.c.test"),
        ];
        let mut raw = RawInventory { kubernetes: nodes.map(facts), ..RawInventory::default() };
        for (name, _, full) in names {
            let (old, new) = (format!("{name}a"), format!("{name}b"));
            raw.groups.push(RawGroup { members: vec![member(&old, "1"), member(&new, "2")], ..group(full, "2") });
            raw.instances.extend([instance(&old, name), instance(&new, name)]);
        }
        classify(&raw, &cluster(names.map(|(name, role, _)| spec(name, role)).to_vec())).unwrap()
    }

    fn node(id: &str, needs_update: bool) -> NodeFacts {
        NodeFacts { name: format!("{id}.local"), provider_id: format!("aws:///z/{id}"), needs_update, ..NodeFacts::default() }
    }

    fn facts(nodes: Vec<NodeFacts>) -> ClusterFacts {
        ClusterFacts { nodes, ..ClusterFacts::default() }
    }

    #[test]
    fn row_24_annotated_nodes_need_an_update() {
        let inventory =
            annotated(Some(vec![node("node-1b", true), node("node-2a", true), node("node-2b", false), node("master-1b", true)]));
        assert_eq!(ids(&inventory.groups["node-1"].need_update), ["node-1a", "node-1b"]);
        assert_eq!(ids(&inventory.groups["node-2"].need_update), ["node-2a"]);
        assert_eq!(ids(&inventory.groups["master-1"].need_update), ["master-1a", "master-1b"]);
        assert_eq!(inventory.groups["node-1"].need_update[1].node.as_deref(), Some("node-1b.local"));
    }

    /// kOps' command takes no nodes under `--cloudonly`, so the annotation cannot be seen there.
    #[test]
    fn row_25_without_kubernetes_there_are_no_annotations() {
        let inventory = annotated(None);
        assert_eq!(ids(&inventory.groups["node-1"].need_update), ["node-1a"]);
        assert!(!inventory.nodes_known);
    }

    #[test]
    fn row_26_instances_without_a_node() {
        let inventory = annotated(Some(vec![]));
        assert_eq!(ids(&inventory.groups["node-1"].need_update), ["node-1a"]);
        assert_eq!(ids(&inventory.groups["node-1"].ready), ["node-1b"]);
    }
}
