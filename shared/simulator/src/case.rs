//! Rolls by seed: clusters, workloads, settings, options and faults.

use jiff::SignedDuration;
use kopsline_rolling::{GroupSpec, IntOrString, Manager, PauseAfter, Role, RollOptions, RollingUpdate, StuckDrain};

use crate::faults::Faults;
use crate::host::{Drive, Planner, Real, Rolled, roll};
use crate::person::Wishes;
use crate::random::Random;
use crate::world::{BudgetPlan, GroupPlan, Kind, Limit, Pace, Refused, Template, WorkloadPlan, World};

/// What a seed may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// Whether there are Kubernetes APIs: never, always, or by chance.
    pub kubernetes: Option<bool>,
    /// Whether anything goes wrong.
    pub faults: bool,
}

impl Default for Mix {
    fn default() -> Self {
        Self { kubernetes: None, faults: true }
    }
}

/// A roll to be.
#[derive(Debug, Clone)]
pub struct Case {
    /// What everything by chance depends on.
    pub seed: u64,
    /// The groups.
    pub groups: Vec<GroupPlan>,
    /// Whether there is a Kubernetes API.
    pub kubernetes: bool,
    /// The workloads.
    pub workloads: Vec<WorkloadPlan>,
    /// Nodes that were cordoned, tainted and excluded before, by number: once in so many, 0 for never.
    pub touched_before: u32,
    /// Nodes annotated to need an update.
    pub annotated: u32,
    /// Instances that EC2 refuses to terminate.
    pub protected: u32,
    /// How long things take.
    pub pace: Pace,
    /// What goes wrong.
    pub faults: Faults,
    /// How the roll is driven.
    pub drive: Drive,
}

impl Case {
    /// The roll of a seed.
    pub fn of(seed: u64, mix: Mix) -> Self {
        let mut random = Random::new(seed);
        let kubernetes = mix.kubernetes.unwrap_or_else(|| !random.once_in(5));
        let mut case = Self {
            seed,
            groups: Vec::new(),
            kubernetes,
            workloads: Vec::new(),
            touched_before: 0,
            annotated: 0,
            protected: 0,
            pace: pace(&mut random),
            faults: if mix.faults { faults(&mut random) } else { Faults::default() },
            drive: drive(&mut random, kubernetes, mix.faults),
        };
        let large = random.once_in(10);
        case.choose_groups(&mut random, large);
        case.choose_selection(&mut random);
        if kubernetes {
            case.choose_workloads(&mut random, large);
            case.touched_before = if random.once_in(6) { 4 } else { 0 };
            case.annotated = if random.once_in(6) { 3 } else { 0 };
        }
        case.protected = if mix.faults && random.once_in(25) { 6 } else { 0 };
        case
    }

    /// Most clusters are small, since what can go wrong goes wrong there too, and much faster.
    fn choose_groups(&mut self, random: &mut Random, large: bool) {
        let nodes = if large { random.between(1, 3) } else { 1 + u32::from(random.once_in(3)) };
        let counts = [
            (Role::Bastion, if random.once_in(4) { random.between(1, 2) } else { 0 }, 2),
            (Role::ControlPlane, *random.pick(if large { &[1, 3] } else { &[0, 0, 1, 1, 1, 3] }).unwrap_or(&1), 3),
            (Role::ApiServer, u32::from(random.once_in(8)), 2),
            (Role::Node, nodes, if large { 6 } else { 3 }),
        ];
        for (role, groups, largest) in counts {
            // Three groups of one member, or one of three, make a control plane that has a quorum to lose.
            let members = if role == Role::ControlPlane && groups == 3 { 1 } else { random.between(1, largest) };
            for number in 0..groups {
                let plan = group_plan(random, role, number, members);
                self.groups.push(plan);
            }
        }
        if random.once_in(8) {
            let spec = GroupSpec {
                name: "karpenter".to_owned(),
                role: Role::Node,
                manager: Manager::Karpenter,
                min_size: 0,
                rolling_update: RollingUpdate::default(),
            };
            self.groups.push(GroupPlan::new(spec, random.between(1, 3), 0));
        }
    }

    /// Some rolls are of one group, or one role, alone.
    fn choose_selection(&mut self, random: &mut Random) {
        let selection = &mut self.drive.options.selection;
        let by_name = random.once_in(16);
        let by_role = !by_name && random.once_in(16);
        if by_name {
            selection.instance_groups.extend(random.pick(&self.groups).map(|group| group.spec.name.clone()));
        }
        if by_role {
            selection.roles.extend(random.pick(&self.groups).map(|group| group.spec.role));
        }
    }

    fn choose_workloads(&mut self, random: &mut Random, large: bool) {
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            self.workloads.push(WorkloadPlan::critical(Kind::Static, name, 0));
        }
        self.workloads.push(WorkloadPlan::critical(Kind::DaemonSet, "cilium", 0));
        if random.once_in(2) {
            self.workloads.push(WorkloadPlan {
                budget: Some(BudgetPlan { limit: Limit::MaxUnavailablePercent(50) }),
                ..WorkloadPlan::critical(Kind::Deployment, "coredns", 2)
            });
        }
        for number in 0..random.between(1, if large { 4 } else { 2 }) {
            let kind = *random
                .pick(&[Kind::Deployment, Kind::Deployment, Kind::Deployment, Kind::StatefulSet, Kind::Bare, Kind::Job])
                .unwrap_or(&Kind::Deployment);
            let replicas = random.between(1, if large { 6 } else { 3 });
            let limits = [
                Limit::MaxUnavailable(1),
                Limit::MaxUnavailablePercent(34),
                Limit::MinAvailable(replicas.saturating_sub(1)),
                Limit::MinAvailablePercent(50),
            ];
            let hopeless = [Limit::MaxUnavailable(0), Limit::MinAvailable(replicas), Limit::MinAvailablePercent(100)];
            let limit = match random.below(24) {
                0..=9 => None,
                23 => random.pick(&hopeless).copied(),
                _ => random.pick(&limits).copied(),
            };
            self.workloads.push(WorkloadPlan {
                start: SignedDuration::from_secs(i64::from(random.between(1, 40))),
                grace: SignedDuration::from_secs(i64::from(random.between(0, 30))),
                local_storage: random.once_in(4),
                budget: limit.filter(|_| kind != Kind::Job).map(|limit| BudgetPlan { limit }),
                ..WorkloadPlan::new(kind, &format!("app-{number}"), replicas)
            });
        }
    }

    /// The world of this roll.
    pub fn world(&self) -> World {
        let mut world = World::new("c.test", self.seed);
        world.kubernetes = self.kubernetes;
        (world.pace, world.faults) = (self.pace, self.faults);
        for group in &self.groups {
            world.add_group(group.clone());
        }
        for workload in &self.workloads {
            world.add_workload(workload.clone());
        }
        let mut random = Random::of(self.seed, 77);
        world.touch(&mut random, self.touched_before, self.annotated, self.protected);
        world
    }

    /// Rolls it.
    pub fn roll(&self) -> Rolled {
        self.roll_with(&mut Real)
    }

    /// Rolls it, and records what happens.
    pub fn told(&self) -> Rolled {
        let mut world = self.world();
        world.happenings = Some(Vec::new());
        roll(world, &self.drive, &mut Real)
    }

    /// Rolls it with another planner.
    pub fn roll_with(&self, planner: &mut dyn Planner) -> Rolled {
        roll(self.world(), &self.drive, planner)
    }
}

fn pace(random: &mut Random) -> Pace {
    let mut seconds = |low, high| SignedDuration::from_secs(i64::from(random.between(low, high)));
    Pace {
        notice: seconds(1, 40),
        boot: seconds(5, 90),
        join: seconds(1, 60),
        ready: seconds(1, 30),
        node_lost: seconds(5, 50),
        node_removed: seconds(10, 90),
        deregister: seconds(0, 40),
        jitter: seconds(0, 20),
    }
}

fn faults(random: &mut Random) -> Faults {
    let often = |random: &mut Random| *random.pick(&[0, 0, 4, 20]).unwrap_or(&0);
    let seldom = |random: &mut Random| *random.pick(&[0, 0, 0, 12, 60]).unwrap_or(&0);
    // Most rolls have one or two kinds of trouble; some have all.
    let share = *random.pick(&[1, 3, 3, 6]).unwrap_or(&3);
    let mut some = |kind: fn(&mut Random) -> u32| if random.once_in(share) { kind(random) } else { 0 };
    let (often, seldom): (fn(&mut Random) -> u32, fn(&mut Random) -> u32) = (often, seldom);
    Faults {
        refused: some(often),
        answer_lost: some(often),
        throttled: some(often),
        kill: some(often),
        duplicate: some(often),
        death: some(seldom),
        vanish: some(seldom),
        sickness: some(seldom),
        growth: some(seldom),
        outage: some(seldom),
        expiry: some(seldom),
        never_joins: some(|random| *random.pick(&[0, 0, 10]).unwrap_or(&0)),
        stale: some(often),
        blind: some(often),
    }
}

fn drive(random: &mut Random, kubernetes: bool, faults: bool) -> Drive {
    let seconds = |random: &mut Random, low, high| SignedDuration::from_secs(i64::from(random.between(low, high)));
    let mut options = RollOptions {
        cloudonly: !kubernetes,
        force: random.once_in(6),
        wait_for_replacement: !random.once_in(6),
        ..RollOptions::default()
    };
    let mut wishes = Wishes::default();
    if kubernetes {
        options.validate_count = *random.pick(&[0, 1, 2, 2, 2]).unwrap_or(&2);
        options.fail_on_validate_error = !random.once_in(15);
        options.validation_baseline = !random.once_in(6);
        options.post_drain_delay = seconds(random, 0, 10);
        options.drain_timeout = *random
            .pick(&[SignedDuration::from_mins(15), SignedDuration::from_mins(3), SignedDuration::from_mins(1)])
            .unwrap_or(&options.drain_timeout);
        options.fail_on_drain_error = !random.once_in(8);
        options.on_stuck_drain = *random
            .pick(&[None, None, None, Some(StuckDrain::Fail), Some(StuckDrain::Force), Some(StuckDrain::Skip), Some(StuckDrain::Ask)])
            .unwrap_or(&None);
        options.detect_hopeless_budgets = !random.once_in(5);
        options.suspend_rebalance = !random.once_in(6);
        options.interactive = random.once_in(20);
        options.pause_after = *random
            .pick(&[None, None, None, None, None, None, Some(PauseAfter::Percent(40)), Some(PauseAfter::FirstOfEachGroup)])
            .unwrap_or(&None);
        options.pause_for = random.once_in(2).then(|| seconds(random, 10, 200));
        wishes.answer_takes = seconds(random, 0, 400);
    }
    if faults && random.once_in(5) {
        wishes.approves = true;
        wishes.approval_takes = seconds(random, 1, 900);
    }
    if faults && random.once_in(8) {
        wishes.paused = Some((seconds(random, 1, 600), seconds(random, 1, 200)));
    }
    if faults && random.once_in(12) {
        wishes.closed = Some((seconds(random, 1, 600), seconds(random, 1, 600)));
    }
    if faults && random.once_in(10) {
        wishes.aborts = Some(seconds(random, 1, 1200));
    }
    Drive { options, wishes, reads_back: 16, ..Drive::default() }
}

fn group_plan(random: &mut Random, role: Role, number: u32, members: u32) -> GroupPlan {
    let control_plane = role == Role::ControlPlane;
    let setting = |random: &mut Random| match random.below(8) {
        0..=3 => None,
        4 => Some(IntOrString::Text(format!("{}%", random.between(1, 80)))),
        _ => Some(IntOrString::Int(i32::try_from(random.below(4)).unwrap_or(0))),
    };
    let rolling_update = RollingUpdate {
        drain_and_terminate: random.once_in(15).then_some(false),
        max_surge: if control_plane { None } else { setting(random) },
        max_unavailable: setting(random),
    };
    let spec = GroupSpec { name: format!("{role}-{number}"), role, manager: Manager::CloudGroup, min_size: members, rolling_update };
    let new = if random.once_in(3) { random.below(members + 1) } else { 0 };
    let mut plan = GroupPlan::new(spec, members - new, new);
    plan.warm = if random.once_in(8) && !control_plane { random.between(1, 2) } else { 0 };
    plan.detached = if random.once_in(10) && !control_plane && role != Role::Bastion { random.between(1, 2) } else { 0 };
    plan.template = *random
        .pick(&[Template::Latest, Template::Latest, Template::Number, Template::Mixed, Template::Configuration])
        .unwrap_or(&Template::Latest);
    plan.zones = random.between(1, 3);
    plan.balanced = random.once_in(3);
    if random.once_in(20) {
        plan.suspended.insert("AZRebalance".to_owned());
    }
    if random.once_in(25) {
        plan.refuses.insert(*random.pick(&[Refused::Detach, Refused::Deregister]).unwrap_or(&Refused::Detach));
    }
    plan
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for GroupPlan { spec, old, new, warm, detached, zones, balanced, suspended, refuses, .. } in &self.groups {
            let RollingUpdate { drain_and_terminate, max_unavailable, max_surge } = &spec.rolling_update;
            let number = |value: &Option<IntOrString>| match value {
                None => "-".to_owned(),
                Some(IntOrString::Int(number)) => number.to_string(),
                Some(IntOrString::Text(text)) => text.clone(),
            };
            write!(f, "{}: {old} old, {new} new, {warm} warm, {detached} detached; {zones} zones", spec.name)?;
            write!(f, "; surge {}, unavailable {}", number(max_surge), number(max_unavailable))?;
            for (what, holds) in [("balanced", *balanced), ("DISABLED", *drain_and_terminate == Some(false))] {
                if holds {
                    write!(f, ", {what}")?;
                }
            }
            for process in suspended {
                write!(f, ", {process} suspended")?;
            }
            for what in refuses {
                write!(f, ", refuses {what:?}")?;
            }
            writeln!(f)?;
        }
        for WorkloadPlan { kind, namespace, name, replicas, budget, .. } in &self.workloads {
            let limit = budget.map(|budget| format!(", {:?}", budget.limit)).unwrap_or_default();
            writeln!(f, "{kind:?} {namespace}/{name}: {replicas}{limit}")?;
        }
        writeln!(f, "touched 1/{}, annotated 1/{}, protected 1/{}", self.touched_before, self.annotated, self.protected)?;
        writeln!(f, "{:?}", self.drive.options)?;
        writeln!(f, "{:?}", self.drive.wishes)?;
        writeln!(f, "{:?}", self.faults)
    }
}
