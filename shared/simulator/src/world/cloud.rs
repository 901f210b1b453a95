//! Auto Scaling groups, EC2 instances, load balancers.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use kopsline_rolling::{GroupSpec, Manager, Role};

use super::{Event, Moment, Refused, World, place};
use crate::arena::{GroupId, InstanceId, NodeId};
use crate::happening::What;

/// What a group launches from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Template {
    /// A launch template and a number.
    #[default]
    Number,
    /// A launch template and `$Latest`, as kOps writes it.
    Latest,
    /// A mixed instances policy.
    Mixed,
    /// A launch configuration.
    Configuration,
}

/// A group to be made.
#[derive(Debug, Clone)]
pub struct GroupPlan {
    /// What the state store says.
    pub spec: GroupSpec,
    /// Instances launched from version 1.
    pub old: u32,
    /// Instances launched from version 2, which is in force.
    pub new: u32,
    /// Old instances in the warm pool.
    pub warm: u32,
    /// Old instances that an earlier roll detached.
    pub detached: u32,
    /// What it launches from.
    pub template: Template,
    /// How many zones it spans.
    pub zones: u32,
    /// Whether it has a load balancer.
    pub balanced: bool,
    /// Processes that are suspended, such as `Launch`.
    pub suspended: BTreeSet<String>,
    /// What it does not let happen.
    pub refuses: BTreeSet<Refused>,
}

impl GroupPlan {
    /// A plain group.
    pub fn new(spec: GroupSpec, old: u32, new: u32) -> Self {
        Self {
            spec,
            old,
            new,
            warm: 0,
            detached: 0,
            template: Template::default(),
            zones: 3,
            balanced: false,
            suspended: BTreeSet::new(),
            refuses: BTreeSet::new(),
        }
    }
}

/// A group.
#[derive(Debug, Clone)]
pub struct Group {
    /// What the state store says.
    pub spec: GroupSpec,
    /// The Auto Scaling group's name.
    pub auto_scaling_group: String,
    /// Desired capacity.
    pub desired: u32,
    /// What it launches from.
    pub template: Template,
    /// The version of the template in force.
    pub version: u32,
    /// The zones it spans.
    pub zones: Vec<String>,
    /// Whether it has a load balancer.
    pub balanced: bool,
    /// Suspended processes.
    pub suspended: BTreeSet<String>,
    /// What it does not let happen.
    pub refuses: BTreeSet<Refused>,
    /// Its instances, those included that are detached, until they are gone and noticed.
    pub instances: Vec<InstanceId>,
    /// How long its instances boot, if that is known of this group.
    pub boot: Option<SignedDuration>,
    /// An instance that `AZRebalance` terminates once the one in its place is in service.
    rebalancing: Option<(InstanceId, InstanceId)>,
}

/// Whether an instance runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It boots.
    Pending,
    /// It runs.
    Running,
    /// It is gone since then.
    Dead(Moment),
}

/// What an instance is to its group's load balancer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancer {
    /// It gets no connections.
    Out,
    /// It gets connections.
    In,
    /// Its connections are being drained.
    Draining,
}

/// An instance.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts")]
pub struct Instance {
    /// Its id.
    pub id: String,
    /// Its group.
    pub group: GroupId,
    /// Its zone, by its place among those of its group.
    pub zone: usize,
    /// The version of the template that it was launched from.
    pub version: u32,
    /// Whether it runs.
    pub life: Life,
    /// Whether it belongs to its group; a detached one does not.
    pub attached: bool,
    /// Whether it waits in the warm pool.
    pub warm: bool,
    /// Whether its group lists it.
    pub listed: bool,
    /// Whether it is tagged as detached.
    pub marked: bool,
    /// Whether it is in service.
    pub in_service: bool,
    /// Whether it runs a member of etcd and an API server.
    pub member_up: bool,
    /// Whether it will ever join the cluster.
    pub joins: bool,
    /// Whether EC2 refuses to terminate it.
    pub protected: bool,
    /// What it is to the load balancer.
    pub balancer: Balancer,
    /// Its node.
    pub node: Option<NodeId>,
}

impl Instance {
    /// Whether it is not gone.
    pub fn alive(&self) -> bool {
        !matches!(self.life, Life::Dead(_))
    }
}

impl World {
    /// Makes a group and its instances, all of them in service. Ids are the group's name and a number.
    pub fn add_group(&mut self, plan: GroupPlan) -> GroupId {
        let GroupPlan { spec, old, new, warm, detached, template, zones, balanced, suspended, refuses } = plan;
        let name = spec.name.clone();
        self.spec.groups.push(spec.clone());
        let group = self.groups.push(Group {
            auto_scaling_group: match spec.manager {
                Manager::CloudGroup => spec.role.auto_scaling_group_name(&spec.name, &self.spec.name),
                Manager::Karpenter => spec.name.clone(),
            },
            spec,
            desired: old + new,
            template,
            version: 2,
            zones: (0..zones.max(1)).map(|zone| format!("zone-{zone}")).collect(),
            balanced,
            suspended,
            refuses,
            instances: Vec::new(),
            boot: None,
            rebalancing: None,
        });
        let spread = |number: u32| (number % zones.max(1)) as usize;
        for number in 0..old + new {
            let id = self.place_instance(group, format!("{name}-{number}"), spread(number), if number < old { 1 } else { 2 });
            self.settle_in(id);
        }
        for number in 0..warm {
            let id = self.place_instance(group, format!("{name}-wp-{number}"), spread(number), 1);
            (self.instances[id].warm, self.instances[id].life) = (true, Life::Running);
        }
        for number in 0..detached {
            let id = self.place_instance(group, format!("{name}-dt-{number}"), spread(number), 1);
            let instance = &mut self.instances[id];
            (instance.attached, instance.marked) = (false, true);
            self.settle_in(id);
        }
        group
    }

    pub(crate) fn place_instance(&mut self, group: GroupId, id: String, zone: usize, version: u32) -> InstanceId {
        let name = id.clone();
        let key = self.instances.push(Instance {
            id,
            group,
            zone,
            version,
            life: Life::Pending,
            attached: true,
            warm: false,
            listed: true,
            marked: false,
            in_service: false,
            member_up: false,
            joins: true,
            protected: false,
            balancer: Balancer::Out,
            node: None,
        });
        self.by_id.insert(name, key);
        self.groups[group].instances.push(key);
        self.unbalanced.insert(group);
        self.changed();
        key
    }

    /// An instance that has been there for long.
    pub(super) fn settle_in(&mut self, id: InstanceId) {
        self.serve(id, None);
    }

    /// An instance that is in service and, where there is a cluster, has a ready node: of this name, if it has one.
    pub(crate) fn serve(&mut self, id: InstanceId, name: Option<&str>) {
        let (role, balanced) = self.role_and_balancer(id);
        let instance = &mut self.instances[id];
        (instance.life, instance.in_service) = (Life::Running, true);
        instance.member_up = role == Role::ControlPlane;
        if balanced && instance.attached {
            instance.balancer = Balancer::In;
        }
        if self.kubernetes && role != Role::Bastion {
            let node = self.add_node(id);
            if let Some(name) = name {
                name.clone_into(&mut self.nodes[node].name);
            }
            self.make_ready(node);
        }
    }

    fn role_and_balancer(&self, id: InstanceId) -> (Role, bool) {
        let group = &self.groups[self.instances[id].group];
        (group.spec.role, group.balanced)
    }

    /// How many instances a group counts as its own.
    fn counted(&self, group: GroupId) -> usize {
        let counts = |id: &&InstanceId| {
            let instance = &self.instances[**id];
            instance.attached && !instance.warm && instance.listed
        };
        self.groups[group].instances.iter().filter(counts).count()
    }

    /// Launches what a group lacks.
    pub(super) fn launch(&mut self, id: GroupId) {
        let group = &self.groups[id];
        if group.suspended.contains("Launch") {
            return;
        }
        for _ in self.counted(id)..group.desired as usize {
            let zone = self.emptiest_zone(id);
            self.launch_into(id, zone);
        }
    }

    fn launch_into(&mut self, group: GroupId, zone: usize) -> InstanceId {
        let key = self.instances.next_key();
        let (mut name, version) = (format!("{}-new{}", self.groups[group].spec.name, place(key)), self.groups[group].version);
        while self.by_id.contains_key(&name) {
            name.push('a');
        }
        let id = self.place_instance(group, name, zone, version);
        let never = self.faults.never_joins > 0 && self.faulty() && {
            let mut random = crate::random::Random::of(self.seed, (9 << 40) | u64::from(place(id)));
            random.once_in(self.faults.never_joins)
        };
        self.instances[id].joins = !never;
        self.struck += u64::from(never);
        let boot = self.takes(self.groups[group].boot.unwrap_or(self.pace.boot), place(id), 1);
        self.later(boot, Event::InService(id));
        self.tell(|world| What::Launched { instance: world.instances[id].id.clone(), group: world.group_name(id) });
        id
    }

    pub(super) fn group_name(&self, id: InstanceId) -> String {
        self.groups[self.instances[id].group].spec.name.clone()
    }

    /// How many of a group's instances are in each of its zones.
    fn per_zone(&self, group: GroupId) -> Vec<u32> {
        let group = &self.groups[group];
        let mut zones = vec![0; group.zones.len()];
        for instance in group.instances.iter().map(|id| &self.instances[*id]) {
            if instance.attached
                && !instance.warm
                && instance.listed
                && let Some(count) = zones.get_mut(instance.zone)
            {
                *count += 1;
            }
        }
        zones
    }

    fn emptiest_zone(&self, group: GroupId) -> usize {
        let zones = self.per_zone(group);
        let emptiest = zones.iter().enumerate().min_by_key(|(zone, count)| (**count, *zone));
        emptiest.map_or(0, |(zone, _)| zone)
    }

    /// `AZRebalance`: where one zone has two instances more than another, a group launches one in the emptier zone and,
    /// once that is in service, terminates one in the fuller, drained or not.
    pub(super) fn rebalance(&mut self) {
        for id in std::mem::take(&mut self.unbalanced) {
            let group = &self.groups[id];
            if group.spec.manager == Manager::Karpenter || group.suspended.contains("AZRebalance") || group.suspended.contains("Launch") {
                continue;
            }
            if let Some((new, old)) = group.rebalancing {
                let (new, old_alive) = (&self.instances[new], self.instances[old].alive() && self.instances[old].attached);
                if !new.alive() || !old_alive {
                    self.groups[id].rebalancing = None;
                } else if new.in_service {
                    self.groups[id].rebalancing = None;
                    self.tell(|world| What::Rebalanced { instance: world.instances[old].id.clone(), group: world.group_name(old) });
                    self.die(old, true);
                }
                continue;
            }
            if group.zones.len() < 2 || self.counted(id) != group.desired as usize {
                continue;
            }
            let settled = |member: &InstanceId| {
                let instance = &self.instances[*member];
                !instance.attached || instance.warm || (instance.alive() && instance.in_service)
            };
            if !group.instances.iter().all(settled) {
                continue;
            }
            let zones = self.per_zone(id);
            let (fullest, most) = zones.iter().enumerate().max_by_key(|(_, count)| **count).map_or((0, 0), |(zone, count)| (zone, *count));
            let least = zones.iter().min().copied().unwrap_or(0);
            if most < least + 2 {
                continue;
            }
            let victim = self.groups[id].instances.iter().copied().find(|member| {
                let instance = &self.instances[*member];
                instance.zone == fullest && instance.attached && !instance.warm && instance.alive()
            });
            if let Some(victim) = victim {
                let zone = self.emptiest_zone(id);
                let new = self.launch_into(id, zone);
                self.groups[id].rebalancing = Some((new, victim));
            }
        }
    }

    /// An instance stops: terminated, or by itself.
    pub(super) fn die(&mut self, id: InstanceId, group_notices: bool) {
        let notice = self.takes(self.pace.notice, place(id), 2);
        let (lost, removed) = (self.takes(self.pace.node_lost, place(id), 3), self.takes(self.pace.node_removed, place(id), 3));
        let instance = &mut self.instances[id];
        if !instance.alive() {
            return;
        }
        (instance.life, instance.member_up, instance.balancer) = (Life::Dead(self.now), false, Balancer::Out);
        let (node, group) = (instance.node, instance.group);
        self.unbalanced.insert(group);
        self.changed();
        if group_notices {
            self.later(notice, Event::Notice(id));
        } else {
            self.notice(id);
        }
        if let Some(node) = node {
            self.later(lost, Event::NodeLost(node));
            self.later(removed.max(lost), Event::NodeRemoved(node));
        }
    }

    pub(super) fn notice(&mut self, id: InstanceId) {
        self.instances[id].listed = false;
        let group = self.instances[id].group;
        self.groups[group].instances.retain(|member| *member != id);
        self.unbalanced.insert(group);
        self.changed();
        self.launch(group);
    }

    pub(super) fn in_service(&mut self, id: InstanceId) {
        let (role, balanced) = self.role_and_balancer(id);
        let instance = &mut self.instances[id];
        if !instance.alive() {
            return;
        }
        (instance.life, instance.in_service) = (Life::Running, true);
        if balanced && instance.attached {
            instance.balancer = Balancer::In;
        }
        let (joins, group) = (instance.joins, instance.group);
        self.unbalanced.insert(group);
        self.changed();
        self.tell(|world| What::InService { instance: world.instances[id].id.clone(), group: world.group_name(id) });
        if !joins {
            return;
        }
        let join = self.takes(self.pace.join, place(id), 4);
        if role == Role::ControlPlane {
            self.later(join, Event::MemberUp(id));
        } else if self.kubernetes && role != Role::Bastion {
            self.later(join, Event::Join(id));
        }
    }

    pub(super) fn member_up(&mut self, id: InstanceId) {
        if self.instances[id].alive() {
            self.instances[id].member_up = true;
            self.changed();
            if self.kubernetes {
                self.later(SignedDuration::ZERO, Event::Join(id));
            }
        }
    }

    pub(super) fn drained(&mut self, id: InstanceId) {
        let instance = &mut self.instances[id];
        if instance.balancer == Balancer::Draining {
            instance.balancer = Balancer::Out;
        }
    }
}
