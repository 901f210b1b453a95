//! The simulated cloud and cluster: what is true, and how it changes by itself as time passes.
//!
//! Everything is deterministic by seed. How long something takes depends on the thing alone, not on what else happened,
//! so that two runs of one world differ only by what was done to them.

mod cloud;
mod cluster;
mod execute;
mod mischief;
mod observe;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use kopsline_rolling::{ClusterSpec, RawInventory, Role, RollingUpdate};

pub use cloud::{Balancer, Group, GroupPlan, Instance, Life, Template};
pub use cluster::{Allowance, Budget, BudgetPlan, Kind, Limit, Node, Phase, Pod, Workload, WorkloadPlan};
pub use execute::{Effect, Executed, Refused};
pub use observe::{Observed, Unobserved};

use crate::arena::{Arena, BudgetId, GroupId, InstanceId, Key, NodeId, PodId, WorkloadId};
use crate::faults::Faults;
use crate::happening::{Happening, What};
use crate::random::Random;

/// Milliseconds since the world began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Moment(i64);

impl Moment {
    /// So much later.
    #[must_use]
    pub fn after(self, by: SignedDuration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long it has been since an earlier moment.
    pub fn since(self, earlier: Self) -> SignedDuration {
        SignedDuration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// As the host reads its clock.
    pub fn timestamp(self) -> Timestamp {
        Timestamp::from_millisecond(self.0).unwrap_or(Timestamp::MAX)
    }

    /// The first moment that is not before a time.
    pub fn at(time: Timestamp) -> Self {
        Self(time.as_millisecond().saturating_add(i64::from(time.subsec_nanosecond() % 1_000_000 > 0)))
    }
}

/// How long things take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Until a group notices that an instance is gone, and launches another one.
    pub notice: SignedDuration,
    /// From the launch of an instance until it is in service.
    pub boot: SignedDuration,
    /// From there until its node joins the cluster.
    pub join: SignedDuration,
    /// From there until the node is ready.
    pub ready: SignedDuration,
    /// Until the node of an instance that is gone is not ready any more.
    pub node_lost: SignedDuration,
    /// Until the node of an instance that is gone is removed.
    pub node_removed: SignedDuration,
    /// Until a load balancer has drained an instance's connections.
    pub deregister: SignedDuration,
    /// How much longer than all this something may take by chance.
    pub jitter: SignedDuration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            notice: SignedDuration::from_secs(20),
            boot: SignedDuration::from_secs(60),
            join: SignedDuration::from_secs(20),
            ready: SignedDuration::from_secs(10),
            node_lost: SignedDuration::from_secs(40),
            node_removed: SignedDuration::from_secs(60),
            deregister: SignedDuration::from_secs(20),
            jitter: SignedDuration::ZERO,
        }
    }
}

/// Something that the future holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Notice(InstanceId),
    InService(InstanceId),
    MemberUp(InstanceId),
    Join(InstanceId),
    NodeReady(NodeId),
    NodeLost(NodeId),
    NodeRemoved(NodeId),
    Recover(NodeId),
    PodReady(PodId),
    PodGone(PodId),
    Drained(InstanceId),
    OutageOver,
    Mischief,
}

/// The world.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent facts")]
pub struct World {
    /// The cluster as the state store has it.
    pub spec: ClusterSpec,
    /// Groups.
    pub groups: Arena<GroupId, Group>,
    /// Instances, dead ones included.
    pub instances: Arena<InstanceId, Instance>,
    /// Nodes, removed ones included.
    pub nodes: Arena<NodeId, Node>,
    /// Pods, gone ones included.
    pub pods: Arena<PodId, Pod>,
    /// Workloads.
    pub workloads: Arena<WorkloadId, Workload>,
    /// Budgets.
    pub budgets: Arena<BudgetId, Budget>,
    /// Whether there is a Kubernetes API; without one everything is as under kOps' `--cloudonly`.
    pub kubernetes: bool,
    /// What goes wrong.
    pub faults: Faults,
    /// When faults cease.
    pub faults_end: Moment,
    /// How many things went wrong so far.
    pub struck: u64,
    /// How long things take.
    pub pace: Pace,
    /// How many pods a node takes.
    pub capacity: usize,
    /// What happened, where it is recorded.
    pub happenings: Option<Vec<Happening>>,
    now: Moment,
    seed: u64,
    random: Random,
    future: BinaryHeap<Reverse<(Moment, u64, Event)>>,
    events: u64,
    by_id: HashMap<String, InstanceId>,
    /// What it began with was seen elsewhere, names included; what comes new must not be called the same.
    seen: bool,
    live_pods: BTreeSet<PodId>,
    live_nodes: BTreeSet<NodeId>,
    pending: Vec<PodId>,
    schedulable: bool,
    cursor: u32,
    unsettled: BTreeSet<WorkloadId>,
    unbalanced: BTreeSet<GroupId>,
    outage_until: Option<Moment>,
    throttled_until: Moment,
    certificate_valid: bool,
    changes: u64,
    /// When the last answer ceased to be true.
    outdated: Option<Moment>,
    answer: Option<Arc<RawInventory>>,
    silent_answer: Option<(u64, Arc<RawInventory>)>,
}

impl World {
    /// An empty world.
    pub fn new(cluster: &str, seed: u64) -> Self {
        Self {
            spec: ClusterSpec { name: cluster.to_owned(), rolling_update: RollingUpdate::default(), groups: Vec::new() },
            groups: Arena::default(),
            instances: Arena::default(),
            nodes: Arena::default(),
            pods: Arena::default(),
            workloads: Arena::default(),
            budgets: Arena::default(),
            kubernetes: false,
            faults: Faults::default(),
            faults_end: Moment::default().after(SignedDuration::from_hours(2)),
            struck: 0,
            pace: Pace::default(),
            capacity: cluster::CAPACITY,
            happenings: None,
            now: Moment::default(),
            seed,
            random: Random::new(seed),
            future: BinaryHeap::new(),
            events: 0,
            by_id: HashMap::new(),
            seen: false,
            live_pods: BTreeSet::new(),
            live_nodes: BTreeSet::new(),
            pending: Vec::new(),
            schedulable: false,
            cursor: 0,
            unsettled: BTreeSet::new(),
            unbalanced: BTreeSet::new(),
            outage_until: None,
            throttled_until: Moment::default(),
            certificate_valid: true,
            changes: 0,
            outdated: None,
            answer: None,
            silent_answer: None,
        }
    }

    /// What everything by chance depends on.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The time.
    pub fn now(&self) -> Moment {
        self.now
    }

    /// Lets what is pending at the beginning happen: pods find their nodes, faults begin.
    pub fn begin(&mut self) {
        for group in self.groups.keys() {
            self.launch(group);
        }
        self.settle();
        if self.faults.strike_by_time() {
            self.later(SignedDuration::from_secs(30), Event::Mischief);
        }
    }

    /// Lets time pass until `end`.
    pub fn advance_to(&mut self, end: Moment) {
        while let Some(&Reverse((at, _, event))) = self.future.peek() {
            if at > end {
                break;
            }
            self.future.pop();
            self.now = at;
            self.happen(event);
            let more_at_once = self.future.peek().is_some_and(|Reverse((next, ..))| *next == at);
            if !more_at_once {
                self.settle();
            }
        }
        self.now = self.now.max(end);
    }

    /// Lets so much time pass.
    pub fn advance(&mut self, by: SignedDuration) {
        self.advance_to(self.now.after(by));
    }

    /// Whether a fault that strikes once in so many chances strikes now.
    fn strikes(&mut self, times: u32) -> bool {
        let struck = self.random.once_in(times);
        self.struck += u64::from(struck);
        struck
    }

    /// From now on, what comes new has names that nothing has that was there before.
    pub(crate) fn is_seen(&mut self) {
        self.seen = true;
    }

    fn later(&mut self, by: SignedDuration, event: Event) {
        self.events += 1;
        self.future.push(Reverse((self.now.after(by), self.events, event)));
    }

    /// So long, and by chance a little longer: always the same for the same thing.
    fn takes(&self, by: SignedDuration, thing: u32, kind: u32) -> SignedDuration {
        let most = u32::try_from(self.pace.jitter.as_secs()).unwrap_or(0);
        if most == 0 {
            return by;
        }
        let mut random = Random::of(self.seed, (u64::from(kind) << 32) | u64::from(thing));
        by.saturating_add(SignedDuration::from_secs(i64::from(random.between(0, most))))
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Notice(instance) => self.notice(instance),
            Event::InService(instance) => self.in_service(instance),
            Event::MemberUp(instance) => self.member_up(instance),
            Event::Join(instance) => self.join(instance),
            Event::NodeReady(node) => self.node_ready(node),
            Event::NodeLost(node) => self.node_lost(node),
            Event::NodeRemoved(node) => self.node_removed(node),
            Event::Recover(node) => self.recover(node),
            Event::PodReady(pod) => self.pod_ready(pod),
            Event::PodGone(pod) => self.pod_gone(pod),
            Event::Drained(instance) => self.drained(instance),
            Event::OutageOver => self.outage_over(),
            Event::Mischief => self.mischief(),
        }
    }

    /// What controllers do as soon as they can.
    fn settle(&mut self) {
        self.rebalance();
        if self.kubernetes && self.api_up() {
            self.reconcile();
            self.schedule();
        }
    }

    fn changed(&mut self) {
        self.changes += 1;
        self.outdated.get_or_insert(self.now);
    }

    fn tell(&mut self, what: impl FnOnce(&Self) -> What) {
        if self.happenings.is_none() {
            return;
        }
        let happening = Happening { at: self.now, what: what(self) };
        if let Some(happenings) = &mut self.happenings {
            happenings.push(happening);
        }
    }

    /// Records something that the host did, where happenings are recorded.
    pub fn note(&mut self, what: What) {
        self.tell(|_| what);
    }

    /// Whether the Kubernetes API answers: the members of etcd that are up make a quorum, and nothing else is in the way.
    pub fn api_up(&self) -> bool {
        if self.outage_until.is_some_and(|until| self.now < until) {
            return false;
        }
        let (up, all) = self.members();
        all == 0 || up > all / 2
    }

    /// How many members of etcd are up, and how many there should be.
    pub fn members(&self) -> (usize, usize) {
        let control_planes = self.groups.iter().filter(|(_, group)| group.spec.role == Role::ControlPlane);
        control_planes.fold((0, 0), |(up, all), (_, group)| {
            let alive = group.instances.iter().filter(|&&id| self.instances[id].member_up).count();
            (up + alive, all + group.desired as usize)
        })
    }

    /// The instance with this id.
    pub fn instance(&self, id: &str) -> Option<InstanceId> {
        self.by_id.get(id).copied()
    }

    /// The node with this name, unless it was removed.
    pub fn node(&self, name: &str) -> Option<NodeId> {
        self.live_nodes.iter().copied().find(|&node| self.nodes[node].name == name)
    }

    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<GroupId> {
        self.groups.iter().find(|(_, group)| group.spec.name == name).map(|(key, _)| key)
    }

    /// The nodes that the API knows.
    pub fn live_nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.live_nodes.iter().map(|&node| (node, &self.nodes[node]))
    }

    /// The pods that the API knows.
    pub fn live_pods(&self) -> impl Iterator<Item = (PodId, &Pod)> {
        self.live_pods.iter().map(|&pod| (pod, &self.pods[pod]))
    }

    /// A process begins: it takes a client certificate of its own.
    pub fn renew_certificate(&mut self) {
        self.certificate_valid = true;
    }

    /// When something may happen next by itself.
    pub fn next_event(&self) -> Option<Moment> {
        self.future.peek().map(|Reverse((at, ..))| *at)
    }
}

fn place(key: impl Key) -> u32 {
    key.place()
}
