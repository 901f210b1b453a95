//! What an observation says, read independently of the planner: who serves, and what ails the cluster by kOps'
//! validation (kOps 1.36 `pkg/validation/validate_cluster.go`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kopsline_rolling::{ApiName, ClusterFacts, ClusterSpec, GroupSpec, Manager, NodeFacts, PodFacts, RawInventory, Role};

/// An instance as an observation shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts")]
pub struct Seen<'a> {
    /// Its group.
    pub group: &'a str,
    /// The role of its group.
    pub role: Role,
    /// Whether it belongs to its group: not detached, not in the warm pool.
    pub attached: bool,
    /// Whether it waits in the warm pool.
    pub warm: bool,
    /// Whether it is in service, as far as the cloud knows.
    pub in_service: bool,
    /// Whether it does its work: in service, and its node is ready where there is a cluster.
    pub serves: bool,
    /// Whether its node is ready, whatever the cloud says; without a cluster, whether it is in service.
    pub ready: bool,
    /// The name of its node.
    pub node: Option<&'a str>,
}

/// Something that ails the cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ailment {
    /// What, always in the same words.
    pub what: String,
    /// The group that it belongs to; none if it concerns all.
    pub group: Option<String>,
    /// Whether that is a group of the control plane, whose ailments concern all.
    pub control_plane: bool,
    /// Whether it may be put up with where it was there before the roll.
    pub excusable: bool,
    /// Whether its node is no known instance's: it stands in nobody's way, but may be known when the instance shows.
    pub of_nobody: bool,
    /// How many instances the group lacks, if that is what it is.
    pub lacking: usize,
}

/// What an observation says.
#[derive(Debug)]
pub struct Reading<'a> {
    /// Desired capacities by group; a Karpenter group has none.
    pub desired: BTreeMap<&'a str, usize>,
    /// Instances by id.
    pub instances: BTreeMap<&'a str, Seen<'a>>,
    /// What ails the cluster; empty without a Kubernetes API.
    pub ailments: Vec<Ailment>,
}

impl Ailment {
    /// Whether it keeps a roll from taking an instance of a group (kOps 1.36 `pkg/instancegroups`).
    pub fn concerns(&self, group: &str) -> bool {
        !self.of_nobody && (self.control_plane || self.group.as_deref().is_none_or(|own| own == group))
    }
}

impl<'a> Reading<'a> {
    /// Reads an observation of a cluster. Instances in `gone` are known to be terminated, whatever is still listed.
    pub fn of(raw: &'a RawInventory, spec: &'a ClusterSpec, gone: &BTreeSet<&str>) -> Self {
        let mut reading = Self { desired: BTreeMap::new(), instances: BTreeMap::new(), ailments: Vec::new() };
        let nodes: HashMap<&str, &NodeFacts> = raw
            .kubernetes
            .iter()
            .flat_map(|facts| &facts.nodes)
            .filter_map(|node| Some((node.provider_id.rsplit('/').next()?, node)))
            .collect();
        let running: HashMap<&str, bool> = raw
            .instances
            .iter()
            .filter(|instance| !gone.contains(instance.id.as_str()))
            .map(|instance| (instance.id.as_str(), instance.state == "running"))
            .collect();
        let cluster = raw.kubernetes.is_some();
        let serves = |id: &str, role: Role| !cluster || role == Role::Bastion || nodes.get(id).is_some_and(|node| node.ready);
        for group in &spec.groups {
            let name = group.role.auto_scaling_group_name(&group.name, &spec.name);
            let found = raw.groups.iter().find(|found| found.name == name);
            if let Some(found) = found {
                reading.desired.insert(&group.name, found.desired as usize);
                for (member, warm) in
                    found.members.iter().map(|member| (member, false)).chain(found.warm_members.iter().map(|member| (member, true)))
                {
                    let Some(&runs) = running.get(member.id.as_str()) else { continue };
                    let in_service = member.lifecycle == "InService" && member.health != "Unhealthy" && runs;
                    let seen = Seen {
                        group: &group.name,
                        role: group.role,
                        attached: !warm,
                        warm,
                        in_service,
                        serves: in_service && serves(&member.id, group.role),
                        ready: if cluster { serves(&member.id, group.role) } else { in_service },
                        node: nodes.get(member.id.as_str()).map(|node| node.name.as_str()),
                    };
                    reading.instances.insert(&member.id, seen);
                }
            } else if cluster && group.manager == Manager::CloudGroup {
                reading.ail(group, format!("group {} is missing", group.name), usize::MAX);
            }
        }
        let by_name: HashMap<&str, &GroupSpec> = spec.groups.iter().map(|group| (group.name.as_str(), group)).collect();
        for instance in &raw.instances {
            let of = instance.tags.get("kops.k8s.io/instancegroup").and_then(|name| by_name.get(name.as_str()));
            let known = reading.instances.contains_key(instance.id.as_str()) || gone.contains(instance.id.as_str());
            let Some(group) = of.filter(|_| !known) else { continue };
            let karpenter = group.manager == Manager::Karpenter;
            if !karpenter && !instance.tags.contains_key("kops.k8s.io/detached-from-asg") {
                continue;
            }
            let seen = Seen {
                group: &group.name,
                role: group.role,
                attached: karpenter,
                warm: false,
                in_service: instance.state == "running",
                serves: instance.state == "running" && serves(&instance.id, group.role),
                ready: if cluster { serves(&instance.id, group.role) } else { instance.state == "running" },
                node: nodes.get(instance.id.as_str()).map(|node| node.name.as_str()),
            };
            reading.instances.insert(&instance.id, seen);
        }
        if let Some(facts) = &raw.kubernetes {
            reading.examine(facts, spec, &nodes);
        }
        reading
    }

    /// Something ails the members of a group; those of the control plane are never put up with, for etcd depends on them.
    fn ail(&mut self, group: &GroupSpec, what: String, lacking: usize) {
        let control_plane = group.role == Role::ControlPlane;
        self.ailments.push(Ailment {
            what,
            group: Some(group.name.clone()),
            control_plane,
            excusable: !control_plane,
            of_nobody: false,
            lacking,
        });
    }

    fn examine(&mut self, facts: &ClusterFacts, spec: &ClusterSpec, nodes: &HashMap<&str, &NodeFacts>) {
        if facts.api_name != ApiName::Fine {
            self.ailments = vec![Ailment {
                what: "the API's name".to_owned(),
                group: None,
                control_plane: false,
                excusable: false,
                of_nobody: false,
                lacking: 0,
            }];
            return;
        }
        let mut of_node: HashMap<&str, &GroupSpec> = HashMap::new();
        for group in &spec.groups {
            let members: Vec<(&str, bool, bool)> = self
                .instances
                .iter()
                .filter(|(_, seen)| seen.group == group.name)
                .map(|(id, seen)| (*id, seen.attached, seen.warm))
                .collect();
            if let Some(&desired) = self.desired.get(group.name.as_str()) {
                let enough = members.iter().filter(|(_, attached, warm)| *attached || *warm).count();
                if enough < desired {
                    self.ail(group, format!("group {} is too small", group.name), desired - enough);
                }
            }
            for (id, attached, warm) in members {
                match nodes.get(id) {
                    Some(node) => {
                        // Nothing is expected of what is detached: it is about to go.
                        if !attached && !warm {
                            continue;
                        }
                        of_node.insert(&node.name, group);
                        if !node.ready && group.role != Role::Bastion {
                            self.ail(group, format!("node {} is not ready", node.name), 0);
                        }
                    }
                    None if attached && !warm && group.role != Role::Bastion => {
                        self.ail(group, format!("machine {id} has not joined"), 0);
                    }
                    None => {}
                }
            }
        }
        self.examine_pods(facts, &of_node);
    }

    fn examine_pods(&mut self, facts: &ClusterFacts, of_node: &HashMap<&str, &GroupSpec>) {
        let mut has: BTreeSet<(&str, &str)> = BTreeSet::new();
        for pod in &facts.pods {
            if pod.namespace == "kube-system"
                && let Some(app) = pod.labels.get("k8s-app")
            {
                has.insert((&pod.host_ip, app));
            }
            let Some(what) = critical(pod) else { continue };
            // kOps 1.37: a pod that belongs to its node concerns that node's group, ready or not. Where the instance of the
            // node is gone, its pods say nothing.
            let of_its_node = pod.priority_class == "system-node-critical";
            let group = of_node.get(pod.node.as_str()).filter(|_| of_its_node);
            self.ailments.push(Ailment {
                what,
                group: group.map(|group| group.name.clone()),
                control_plane: group.is_some_and(|group| group.role == Role::ControlPlane),
                excusable: true,
                of_nobody: of_its_node && group.is_none(),
                lacking: 0,
            });
        }
        for node in facts.nodes.iter().filter(|node| node.ready && node.control_plane) {
            for app in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
                if !node.addresses.iter().any(|address| has.contains(&(address.as_str(), app))) {
                    let what = format!("{app} is missing on {}", node.name);
                    self.ailments.push(Ailment { what, group: None, control_plane: true, excusable: true, of_nobody: false, lacking: 0 });
                }
            }
        }
    }

    /// What keeps a roll from taking an instance of a group, beyond what ailed the cluster no less before the roll.
    pub fn concerns(&self, group: &str, before: &[Ailment]) -> Vec<&Ailment> {
        let excused = |ailment: &Ailment| {
            ailment.excusable && before.iter().any(|known| known.what == ailment.what && known.lacking >= ailment.lacking)
        };
        self.ailments.iter().filter(|ailment| ailment.concerns(group) && !excused(ailment)).collect()
    }
}

fn critical(pod: &PodFacts) -> Option<String> {
    if !matches!(pod.priority_class.as_str(), "system-cluster-critical" | "system-node-critical") {
        return None;
    }
    let name = format!("{}/{}", pod.namespace, pod.name);
    match pod.phase.as_str() {
        "Succeeded" => None,
        "Pending" | "Unknown" => Some(format!("pod {name} is not well")),
        _ if pod.unready_containers.is_empty() => None,
        _ => Some(format!("pod {name} is not well")),
    }
}
