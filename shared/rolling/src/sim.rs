//! A simulated cloud: Auto Scaling groups that replace what they lose, a clock, and faults; deterministic by seed.
//!
//! It answers as the APIs do, late news included: a group lists a terminated instance as `InService` until it notices.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::inventory::{LaunchTemplateRef, RawGroup, RawInstance, RawInventory, RawMember};
use crate::spec::{ClusterSpec, GroupSpec, Manager};

/// Pseudo-random numbers (`SplitMix64`): small, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Numbers of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `times`; never for 0.
    pub fn once_in(&mut self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }
}

/// How often things go wrong: once in so many calls or observations, 0 for never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A call fails before it has any effect, in a way that may pass.
    pub refused: u64,
    /// A call has its effect, yet its answer is lost.
    pub answer_lost: u64,
    /// Between two observations an instance dies by itself.
    pub death: u64,
    /// Between two observations a group grows by one instance.
    pub growth: u64,
}

/// An instance.
#[derive(Debug, Clone)]
pub struct SimInstance {
    /// Its id.
    pub id: String,
    /// Its zone.
    pub zone: String,
    /// The launch template version it was launched from.
    pub version: u32,
    /// When it is in service.
    pub ready_at: Timestamp,
    /// When it was terminated.
    pub terminated_at: Option<Timestamp>,
    /// Whether it is in the warm pool.
    pub warm: bool,
    /// Whether it was detached from its group.
    pub detached: bool,
}

/// A group.
#[derive(Debug, Clone)]
pub struct SimGroup {
    /// What the state store says.
    pub spec: GroupSpec,
    /// Desired capacity.
    pub desired: u32,
    /// The launch template version in force.
    pub version: u32,
    /// Instances, dead ones included.
    pub instances: Vec<SimInstance>,
    /// Whether it launches nothing.
    pub launch_suspended: bool,
}

/// A termination that had an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Termination {
    /// When.
    pub at: Timestamp,
    /// Of which group.
    pub group: String,
    /// Which instance.
    pub instance: String,
    /// Whether it was in service until then.
    pub served: bool,
    /// How many instances the group lacks now: those it lacked when last observed, and those terminated since.
    pub missing: usize,
    /// The same over all groups of its role.
    pub missing_of_role: usize,
}

/// The simulated cloud.
#[derive(Debug, Clone)]
pub struct Simulation {
    /// The cluster.
    pub cluster: ClusterSpec,
    /// The time.
    pub now: Timestamp,
    /// Groups by instance group name.
    pub groups: BTreeMap<String, SimGroup>,
    /// What goes wrong.
    pub faults: Faults,
    /// How long a new instance takes until it is in service.
    pub boot: SignedDuration,
    /// How long a group takes to notice that an instance is gone.
    pub notice: SignedDuration,
    /// Effective terminations, in order.
    pub terminations: Vec<Termination>,
    /// How many terminations were asked for.
    pub terminate_calls: usize,
    random: Random,
    launched: usize,
    missing: BTreeMap<String, usize>,
}

impl Simulation {
    /// An empty cloud.
    pub fn new(cluster_name: &str, seed: u64) -> Self {
        Self {
            cluster: ClusterSpec { name: cluster_name.to_owned(), rolling_update: crate::RollingUpdate::default(), groups: Vec::new() },
            now: Timestamp::UNIX_EPOCH,
            groups: BTreeMap::new(),
            faults: Faults::default(),
            boot: SignedDuration::from_secs(60),
            notice: SignedDuration::from_secs(20),
            terminations: Vec::new(),
            terminate_calls: 0,
            random: Random::new(seed),
            launched: 0,
            missing: BTreeMap::new(),
        }
    }

    /// Adds a group with `old` instances of version 1 and `new` ones of version 2, which is in force. Ids are the group's
    /// name and a letter or number.
    pub fn add_group(&mut self, spec: GroupSpec, old: u32, new: u32) {
        let instances = (0..old + new).map(|index| self.instance(&spec.name, index, if index < old { 1 } else { 2 })).collect();
        self.cluster.groups.push(spec.clone());
        let group = SimGroup { desired: old + new, version: 2, instances, launch_suspended: false, spec };
        self.groups.insert(group.spec.name.clone(), group);
    }

    /// Adds old instances beside a group: to its warm pool, or detached from it.
    pub fn add_beside(&mut self, group: &str, count: u32, warm: bool) {
        let kind = if warm { "wp" } else { "dt" };
        for index in 0..count {
            let mut instance = self.instance(group, index, 1);
            instance.id = format!("{group}-{kind}-{index}");
            (instance.warm, instance.detached) = (warm, !warm);
            if let Some(group) = self.groups.get_mut(group) {
                group.instances.push(instance);
            }
        }
    }

    fn instance(&self, group: &str, index: u32, version: u32) -> SimInstance {
        SimInstance {
            id: format!("{group}-{index}"),
            zone: zone(index),
            version,
            ready_at: self.now,
            terminated_at: None,
            warm: false,
            detached: false,
        }
    }

    /// Lets time pass; the groups launch what they lack.
    pub fn advance(&mut self, by: SignedDuration) {
        let end = self.now.saturating_add(by).unwrap_or(Timestamp::MAX);
        self.launch();
        while self.now < end {
            // Nothing happens until some group notices its next loss.
            let losses = self.groups.values().flat_map(|group| &group.instances).filter_map(|instance| instance.terminated_at);
            let noticed =
                losses.map(|at| at.saturating_add(self.notice).unwrap_or(Timestamp::MAX)).filter(|noticed| *noticed > self.now).min();
            self.now = noticed.unwrap_or(end).min(end);
            self.launch();
        }
    }

    fn launch(&mut self) {
        for group in self.groups.values_mut().filter(|group| !group.launch_suspended && group.spec.manager == Manager::CloudGroup) {
            let counted =
                group.instances.iter().filter(|instance| instance.is_member() && !instance.is_noticed(self.now, self.notice)).count();
            for _ in counted..group.desired as usize {
                self.launched += 1;
                let ready_at = self.now.saturating_add(self.boot).unwrap_or(Timestamp::MAX);
                let zone = group
                    .instances
                    .iter()
                    .rev()
                    .find(|lost| lost.terminated_at.is_some())
                    .map_or_else(|| zone(0), |lost| lost.zone.clone());
                group.instances.push(SimInstance {
                    id: format!("{}-new{}", group.spec.name, self.launched),
                    zone,
                    version: group.version,
                    ready_at,
                    terminated_at: None,
                    warm: false,
                    detached: false,
                });
            }
        }
    }

    /// How many instances a group really lacks.
    pub fn missing(&self, group: &SimGroup) -> usize {
        let serving = group.instances.iter().filter(|instance| instance.serves(self.now)).count();
        (group.desired as usize).saturating_sub(serving)
    }

    /// Answers as the APIs would, after what went wrong since the last time.
    pub fn observe(&mut self) -> RawInventory {
        let names: Vec<String> = self.groups.keys().cloned().collect();
        for name in &names {
            let (death, growth) = (self.random.once_in(self.faults.death), self.random.once_in(self.faults.growth));
            let (now, pick) = (self.now, self.random.below(64));
            let Some(group) = self.groups.get_mut(name) else { continue };
            if growth {
                group.desired += 1;
            }
            let mut alive: Vec<_> = group.instances.iter_mut().filter(|instance| instance.terminated_at.is_none()).collect();
            let chosen = usize::try_from(pick).unwrap_or(0) % alive.len().max(1);
            if death && let Some(victim) = alive.get_mut(chosen) {
                victim.terminated_at = Some(now);
            }
        }
        self.missing = self.groups.iter().map(|(name, group)| (name.clone(), self.missing(group))).collect();
        self.answer()
    }

    /// Answers as the APIs would.
    pub fn answer(&self) -> RawInventory {
        let mut raw = RawInventory::default();
        let tag = ("KubernetesCluster".to_owned(), self.cluster.name.clone());
        for (name, group) in &self.groups {
            let mut answer = RawGroup {
                name: group.spec.role.auto_scaling_group_name(name, &self.cluster.name),
                tags: BTreeMap::from([tag.clone()]),
                min: 1,
                desired: group.desired,
                max: group.desired + 5,
                launch_template: Some(template(name, group.version)),
                ..RawGroup::default()
            };
            if group.launch_suspended {
                answer.suspended_processes.push("Launch".to_owned());
            }
            for instance in &group.instances {
                if instance.terminated_at.is_none() {
                    let mut tags = BTreeMap::from([tag.clone(), ("kops.k8s.io/instancegroup".to_owned(), name.clone())]);
                    if instance.detached {
                        tags.insert("kops.k8s.io/detached-from-asg".to_owned(), answer.name.clone());
                    }
                    let state = if instance.ready_at <= self.now { "running" } else { "pending" }.to_owned();
                    raw.instances.push(RawInstance {
                        id: instance.id.clone(),
                        zone: instance.zone.clone(),
                        state,
                        tags,
                        ..RawInstance::default()
                    });
                }
                if instance.detached || instance.is_noticed(self.now, self.notice) {
                    continue;
                }
                let lifecycle = match (instance.warm, instance.ready_at <= self.now) {
                    (true, _) => "Warmed:Stopped",
                    (false, true) => "InService",
                    (false, false) => "Pending",
                };
                let member = RawMember {
                    id: instance.id.clone(),
                    zone: instance.zone.clone(),
                    lifecycle: lifecycle.to_owned(),
                    health: "Healthy".to_owned(),
                    launch_configuration: None,
                    launch_template: Some(template(name, instance.version)),
                };
                if instance.warm { &mut answer.warm_members } else { &mut answer.members }.push(member);
            }
            if group.spec.manager == Manager::CloudGroup {
                raw.groups.push(answer);
            }
        }
        raw
    }

    /// Terminates an instance; one that is gone is a success. An error may pass.
    pub fn terminate(&mut self, id: &str) -> Result<(), String> {
        self.terminate_calls += 1;
        if self.random.once_in(self.faults.refused) {
            return Err("RequestLimitExceeded".to_owned());
        }
        let mut hit = None;
        for (name, group) in &mut self.groups {
            if let Some(instance) = group.instances.iter_mut().find(|instance| instance.id == id && instance.terminated_at.is_none()) {
                hit = Some((name.clone(), group.spec.role, instance.serves(self.now)));
                instance.terminated_at = Some(self.now);
            }
        }
        if let Some((group, role, served)) = hit {
            if served {
                *self.missing.entry(group.clone()).or_default() += 1;
            }
            let of_role = |name: &String| self.groups.get(name).is_some_and(|group| group.spec.role == role);
            let missing_of_role = self.missing.iter().filter(|(name, _)| of_role(name)).map(|(_, missing)| missing).sum();
            let missing = self.missing.get(&group).copied().unwrap_or(0);
            self.terminations.push(Termination { at: self.now, group, instance: id.to_owned(), served, missing, missing_of_role });
        }
        if self.random.once_in(self.faults.answer_lost) { Err("the connection was reset".to_owned()) } else { Ok(()) }
    }
}

impl SimInstance {
    fn is_member(&self) -> bool {
        !self.warm && !self.detached
    }

    fn serves(&self, now: Timestamp) -> bool {
        self.is_member() && self.terminated_at.is_none() && self.ready_at <= now
    }

    fn is_noticed(&self, now: Timestamp, notice: SignedDuration) -> bool {
        self.terminated_at.is_some_and(|at| now.duration_since(at) >= notice)
    }
}

fn zone(index: u32) -> String {
    format!("zone-{}", index % 3)
}

fn template(group: &str, version: u32) -> LaunchTemplateRef {
    LaunchTemplateRef { id: format!("lt-{group}"), version: Some(version.to_string()) }
}
