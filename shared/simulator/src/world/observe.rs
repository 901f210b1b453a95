//! What the APIs answer, late news included.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;
use kopsline_rolling::{
    ApiName, BudgetFacts, ClusterFacts, LaunchTemplateRef, LaunchTemplateVersions, Manager, NodeFacts, Owner, PodFacts, RawGroup,
    RawInstance, RawInventory, RawMember,
};

use super::{Allowance, Budget, Group, Instance, Kind, Life, Limit, Phase, Template, World, place};
use crate::arena::{InstanceId, PodId};

/// How long the cloud's lists may not show a change. What was lost on the way cannot be told apart from what is late, so
/// the planner takes lists for true in the end: after half a minute.
const LATE: SignedDuration = SignedDuration::from_secs(20);

/// What a look at the world shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The answers. Without an answer of the Kubernetes API there are no facts of it.
    pub raw: Arc<RawInventory>,
    /// Why the Kubernetes API does not answer, if it does not.
    pub silent: Option<&'static str>,
}

/// The cloud could not be observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("DescribeAutoScalingGroups was not answered")]
pub struct Unobserved;

impl World {
    /// Answers as the APIs do, after what goes wrong on the way.
    pub fn observe(&mut self) -> Result<Observed, Unobserved> {
        let faulty = self.faulty();
        if faulty && self.strikes(self.faults.blind) {
            return Err(Unobserved);
        }
        let silent = self.silent();
        let before = self.answer.clone();
        let is_recent = self.outdated.is_some_and(|since| self.now < since.after(LATE));
        let mut raw = self.answer();
        if silent.is_some() && raw.kubernetes.is_some() {
            raw = self.without_facts(&raw);
        }
        // The cloud's lists are eventually consistent; those of Kubernetes are not.
        if let Some(before) = before
            && faulty
            && self.faults.stale > 0
            && is_recent
            && self.strikes(self.faults.stale)
        {
            let (groups, instances) = (before.groups.clone(), before.instances.clone());
            raw = Arc::new(RawInventory { groups, instances, ..RawInventory::clone(&raw) });
        }
        Ok(Observed { raw, silent })
    }

    fn without_facts(&mut self, raw: &Arc<RawInventory>) -> Arc<RawInventory> {
        if let Some((changes, answer)) = &self.silent_answer
            && *changes == self.changes
        {
            return Arc::clone(answer);
        }
        let (groups, instances) = (raw.groups.clone(), raw.instances.clone());
        let answer = Arc::new(RawInventory { groups, instances, launch_templates: raw.launch_templates.clone(), kubernetes: None });
        self.silent_answer = Some((self.changes, Arc::clone(&answer)));
        answer
    }

    /// Why the Kubernetes API does not answer this host, if it does not.
    pub(super) fn silent(&self) -> Option<&'static str> {
        match (self.kubernetes, self.certificate_valid) {
            (false, _) => Some("there is none"),
            (true, false) => Some("the client certificate has expired"),
            (true, true) if !self.api_up() => Some("connection refused"),
            (true, true) => None,
        }
    }

    /// Answers as the APIs would, were all well.
    pub fn answer(&mut self) -> Arc<RawInventory> {
        if let Some(answer) = &self.answer
            && self.outdated.is_none()
        {
            return Arc::clone(answer);
        }
        let answer = Arc::new(self.raw());
        self.outdated = None;
        self.answer = Some(Arc::clone(&answer));
        answer
    }

    fn raw(&self) -> RawInventory {
        let mut raw = RawInventory { kubernetes: self.kubernetes.then(|| self.facts()), ..RawInventory::default() };
        for (_, group) in self.groups.iter() {
            let mut answer = self.raw_group(group);
            for &id in &group.instances {
                let instance = &self.instances[id];
                if instance.alive() {
                    raw.instances.push(self.raw_instance(instance, group));
                }
                if instance.attached && instance.listed {
                    let member = raw_member(instance, group);
                    if instance.warm { &mut answer.warm_members } else { &mut answer.members }.push(member);
                }
            }
            if group.template == Template::Latest {
                let versions = LaunchTemplateVersions { id: template_id(group), latest: i64::from(group.version), default: 1 };
                raw.launch_templates.push(versions);
            }
            if group.spec.manager == Manager::CloudGroup {
                raw.groups.push(answer);
            }
        }
        raw
    }

    fn raw_group(&self, group: &Group) -> RawGroup {
        let version = match group.template {
            Template::Latest => "$Latest".to_owned(),
            Template::Number | Template::Mixed | Template::Configuration => group.version.to_string(),
        };
        let reference = || Some(LaunchTemplateRef { id: template_id(group), version: Some(version.clone()) });
        let mut answer = RawGroup {
            name: group.auto_scaling_group.clone(),
            tags: BTreeMap::from([self.cluster_tag()]),
            min: group.spec.min_size.min(group.desired),
            desired: group.desired,
            max: group.desired + 5,
            suspended_processes: group.suspended.iter().cloned().collect(),
            ..RawGroup::default()
        };
        match group.template {
            Template::Number | Template::Latest => answer.launch_template = reference(),
            Template::Mixed => answer.mixed_launch_template = reference(),
            Template::Configuration => answer.launch_configuration = Some(configuration(group, group.version)),
        }
        answer
    }

    fn cluster_tag(&self) -> (String, String) {
        ("KubernetesCluster".to_owned(), self.spec.name.clone())
    }

    fn raw_instance(&self, instance: &Instance, group: &Group) -> RawInstance {
        let mut tags = BTreeMap::from([self.cluster_tag(), ("kops.k8s.io/instancegroup".to_owned(), group.spec.name.clone())]);
        if instance.marked {
            tags.insert("kops.k8s.io/detached-from-asg".to_owned(), group.auto_scaling_group.clone());
        }
        RawInstance {
            id: instance.id.clone(),
            zone: zone(group, instance),
            state: if instance.life == Life::Pending { "pending" } else { "running" }.to_owned(),
            machine_type: "m5.large".to_owned(),
            tags,
        }
    }

    fn facts(&self) -> ClusterFacts {
        ClusterFacts {
            nodes: self
                .live_nodes()
                .map(|(_, node)| NodeFacts {
                    name: node.name.clone(),
                    provider_id: self.provider_id(node.instance),
                    needs_update: node.needs_update,
                    ready: node.ready,
                    unschedulable: node.cordoned,
                    scheduled_for_update: node.tainted,
                    excluded_from_load_balancers: node.excluded,
                    control_plane: node.control_plane,
                    addresses: vec![node.address.clone()],
                })
                .collect(),
            pods: self.live_pods.iter().map(|&pod| self.pod_facts(pod)).collect(),
            budgets: self.budgets.iter().map(|(id, budget)| budget_facts(budget, self.allowance(id))).collect(),
            api_name: ApiName::Fine,
        }
    }

    fn provider_id(&self, id: InstanceId) -> String {
        let instance = &self.instances[id];
        format!("aws:///{}/{}", zone(&self.groups[instance.group], instance), instance.id)
    }

    fn pod_facts(&self, id: PodId) -> PodFacts {
        let pod = &self.pods[id];
        let workload = &self.workloads[pod.workload];
        let plan = &workload.plan;
        let owner = |kind: &str, name: String| Some(Owner { kind: kind.to_owned(), name });
        let node = pod.node.map(|node| &self.nodes[node]);
        PodFacts {
            namespace: plan.namespace.clone(),
            name: pod.name.clone(),
            uid: uid(id),
            node: node.map(|node| node.name.clone()).unwrap_or_default(),
            host_ip: node.map(|node| node.address.clone()).unwrap_or_default(),
            labels: workload.labels.clone(),
            priority_class: plan.priority.clone(),
            phase: match pod.phase {
                Phase::Pending => "Pending",
                Phase::Running => "Running",
                Phase::Succeeded => "Succeeded",
            }
            .to_owned(),
            // A lost kubelet does not say that its containers have stopped; only the pod's condition changes.
            unready_containers: if pod.phase == Phase::Pending && pod.node.is_some() { vec!["main".to_owned()] } else { Vec::new() },
            ready: pod.ready,
            created: Some(pod.created.timestamp()),
            deleting: pod.deleting.map(super::Moment::timestamp),
            controller: match plan.kind {
                Kind::Deployment => owner("ReplicaSet", format!("{}-7d", plan.name)),
                Kind::StatefulSet => owner("StatefulSet", plan.name.clone()),
                Kind::DaemonSet => owner("DaemonSet", plan.name.clone()),
                Kind::Static => node.and_then(|node| owner("Node", node.name.clone())),
                Kind::Job => owner("Job", plan.name.clone()),
                Kind::Bare => None,
            },
            mirror: plan.kind == Kind::Static,
            local_storage: plan.local_storage,
        }
    }
}

pub(super) fn uid(pod: PodId) -> String {
    format!("uid-{}", place(pod))
}

fn raw_member(instance: &Instance, group: &Group) -> RawMember {
    let by_configuration = group.template == Template::Configuration;
    RawMember {
        id: instance.id.clone(),
        zone: zone(group, instance),
        lifecycle: if instance.warm {
            "Warmed:Stopped"
        } else if instance.in_service {
            "InService"
        } else {
            "Pending"
        }
        .to_owned(),
        health: "Healthy".to_owned(),
        launch_configuration: by_configuration.then(|| configuration(group, instance.version)),
        launch_template: (!by_configuration)
            .then(|| LaunchTemplateRef { id: template_id(group), version: Some(instance.version.to_string()) }),
    }
}

fn template_id(group: &Group) -> String {
    format!("lt-{}", group.spec.name)
}

fn configuration(group: &Group, version: u32) -> String {
    format!("{}-{version}", group.spec.name)
}

fn zone(group: &Group, instance: &Instance) -> String {
    group.zones.get(instance.zone).cloned().unwrap_or_default()
}

fn budget_facts(budget: &Budget, allowance: Allowance) -> BudgetFacts {
    let (max_unavailable, min_available) = match budget.limit {
        Limit::MaxUnavailable(most) => (Some(most.to_string()), None),
        Limit::MaxUnavailablePercent(percent) => (Some(format!("{percent}%")), None),
        Limit::MinAvailable(least) => (None, Some(least.to_string())),
        Limit::MinAvailablePercent(percent) => (None, Some(format!("{percent}%"))),
    };
    BudgetFacts {
        namespace: budget.namespace.clone(),
        name: budget.name.clone(),
        selector: budget.selector.clone(),
        max_unavailable,
        min_available,
        disruptions_allowed: allowance.allowed,
        current_healthy: allowance.healthy,
        desired_healthy: allowance.desired,
        expected_pods: allowance.expected,
    }
}
