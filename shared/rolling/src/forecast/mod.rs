//! What a rolling update would do, in which order, how long it may take and what would hold it up, before it does anything.

mod text;

use std::collections::{BTreeMap, HashMap};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::inventory::{CloudGroup, Inventory, Status};
use crate::kubernetes::{BudgetFacts, ClusterFacts, PodFacts};
use crate::options::RollOptions;
use crate::preview::Preview;
use crate::spec::{Manager, Role};
use crate::state::{GroupRoll, InstanceRoll, Origin, RollState, StartError};

/// How long a drain takes where no earlier roll says it.
const USUAL_DRAIN: SignedDuration = SignedDuration::from_secs(45);
/// How long a new instance takes to join and become ready where no earlier roll says it.
const USUAL_JOIN: SignedDuration = SignedDuration::from_secs(210);
/// The pause between two validations.
const RECHECK: SignedDuration = SignedDuration::from_secs(10);
/// How many pods of a node are named.
const NAMED: usize = 5;

/// The forecast of a rolling update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// The cluster.
    pub cluster: String,
    /// The groups that have instances to replace, in the order of the roll.
    pub groups: Vec<GroupForecast>,
    /// How many instances are replaced.
    pub instances: usize,
    /// How many more instances than usual run at the most.
    pub surge: usize,
    /// How long it may take if nothing is held up.
    pub likely: SignedDuration,
    /// How long it takes at the most before it is through, or fails, or asks; unset without a limit for drains.
    pub longest: Option<SignedDuration>,
    /// What somebody should know before.
    pub warnings: Vec<String>,
    /// Whether the Kubernetes API was looked at, so that pods and budgets are known.
    pub pods_known: bool,
}

/// One instance group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupForecast {
    /// The instance group.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// How many of its instances are replaced at once.
    pub at_once: usize,
    /// The first one is replaced alone, since none runs with the new configuration yet.
    pub first_alone: bool,
    /// How many of its instances are detached first.
    pub surge: usize,
    /// Its `drainAndTerminate` is false: nothing but the warm pool is terminated.
    pub disabled: bool,
    /// Its instances in their order.
    pub instances: Vec<InstanceForecast>,
    /// How many batches there are, the warm pool left out.
    pub batches: usize,
    /// How long it may take.
    pub likely: SignedDuration,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceForecast {
    /// The instance.
    pub id: String,
    /// Its node, if it is known.
    pub node: Option<String>,
    /// Availability zone.
    pub zone: String,
    /// Why it is replaced.
    pub why: Why,
    /// With which batch of its group; 0 is the warm pool.
    pub batch: usize,
    /// Whether it is detached first.
    pub detached_first: bool,
    /// How many pods are evicted.
    pub evicted: usize,
    /// Pods that a budget holds.
    pub held: Vec<HeldPod>,
    /// Evicted pods that nothing starts again elsewhere.
    pub unmanaged: Names,
    /// Evicted pods that lose an `emptyDir`.
    pub local_storage: Names,
}

/// Why an instance is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Why {
    /// It was launched from something else than its group would launch now.
    Configuration {
        /// What it was launched from.
        from: Option<String>,
        /// What the group would launch.
        to: Option<String>,
    },
    /// Its node asks for it.
    Annotated,
    /// Everything is replaced.
    Forced,
    /// An earlier roll took it out of its group.
    Detached,
    /// It waits in the warm pool with an old configuration.
    WarmPool,
}

/// A pod that a budget holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldPod {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// The budget, as `namespace/name`.
    pub budget: String,
    /// Why it can never let it go; unset if it only does not at the moment.
    pub hopeless: Option<String>,
}

/// Some names out of many.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Names {
    /// How many there are.
    pub count: usize,
    /// The first few.
    pub first: Vec<String>,
}

impl Names {
    fn add(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(name());
        }
    }
}

/// How many drains and replacements of a group are remembered.
const REMEMBERED: usize = 100;

/// How long drains and replacements took in earlier rolls, by instance group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    groups: BTreeMap<String, Times>,
}

/// What was measured of one group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Times {
    drains: Vec<SignedDuration>,
    joins: Vec<SignedDuration>,
}

impl Times {
    fn drain(&mut self, time: SignedDuration) {
        remember(&mut self.drains, time);
    }

    fn join(&mut self, time: SignedDuration) {
        remember(&mut self.joins, time);
    }
}

/// Keeps the newest: groups change, and so do their pods.
fn remember(times: &mut Vec<SignedDuration>, time: SignedDuration) {
    if times.len() >= REMEMBERED {
        times.remove(0);
    }
    times.push(time);
}

impl History {
    /// Takes in what a roll measured.
    pub fn learn(&mut self, roll: &RollState) {
        for group in &roll.groups {
            let times = self.groups.entry(group.name.clone()).or_default();
            for instance in &group.instances {
                if let (Some(cordoned), Some(drained)) = (instance.cordoned, instance.drained) {
                    times.drain(drained.duration_since(cordoned));
                }
                if let (Some(left), Some(replaced)) = (instance.detached.or(instance.terminated), &instance.replaced) {
                    times.join(replaced.at.duration_since(left).max(SignedDuration::ZERO));
                }
            }
        }
    }

    /// How long the drain of an instance of a group usually takes.
    pub fn usual_drain(&self, group: &str) -> SignedDuration {
        self.usual(group, |times| &times.drains, USUAL_DRAIN)
    }

    /// How long it usually takes from the end of an instance of a group until another one is in its place.
    pub fn usual_replacement(&self, group: &str) -> SignedDuration {
        self.usual(group, |times| &times.joins, USUAL_JOIN)
    }

    /// The median of a group, else of all groups, else what is usual.
    fn usual(&self, group: &str, of: fn(&Times) -> &Vec<SignedDuration>, otherwise: SignedDuration) -> SignedDuration {
        let own = self.groups.get(group).and_then(|times| median(of(times).clone()));
        own.or_else(|| median(self.groups.values().flat_map(of).copied().collect())).unwrap_or(otherwise)
    }
}

fn median(mut times: Vec<SignedDuration>) -> Option<SignedDuration> {
    times.sort();
    times.get(times.len() / 2).copied()
}

/// Forecasts a rolling update: what [`RollState::start`] would begin with the same arguments.
pub fn forecast(
    inventory: &Inventory,
    kubernetes: Option<&ClusterFacts>,
    options: &RollOptions,
    approved: Option<&Preview>,
    history: &History,
) -> Result<Forecast, StartError> {
    let roll = RollState::start(inventory, options.clone(), jiff::Timestamp::UNIX_EPOCH, approved)?;
    let pods = Pods::new(kubernetes.filter(|_| !options.cloudonly));
    let clock = Clock { options, history };
    let groups: Vec<_> = roll.groups.iter().map(|group| group_forecast(group, inventory, &pods, &clock)).collect();
    let bastions = groups.iter().filter(|group| group.role == Role::Bastion);
    let others = groups.iter().filter(|group| group.role != Role::Bastion);
    // Bastion groups go side by side, the others one after the other.
    let side_by_side = bastions.clone().map(|group| group.likely).max().unwrap_or_default();
    let likely = others.clone().fold(side_by_side, |sum, group| sum.saturating_add(group.likely));
    let surge = bastions.map(|group| group.surge).sum::<usize>().max(others.map(|group| group.surge).max().unwrap_or(0));
    Ok(Forecast {
        cluster: inventory.cluster.name.clone(),
        instances: groups.iter().filter(|group| !group.disabled).map(|group| group.instances.len()).sum(),
        surge,
        likely,
        longest: clock.longest(&groups),
        warnings: warnings(&roll, inventory, &groups),
        pods_known: kubernetes.is_some() && !options.cloudonly,
        groups,
    })
}

fn group_forecast(group: &GroupRoll, inventory: &Inventory, pods: &Pods<'_>, clock: &Clock<'_>) -> GroupForecast {
    let cloud = inventory.groups.get(&group.name);
    let known: HashMap<&str, &crate::inventory::Instance> =
        cloud.into_iter().flat_map(CloudGroup::instances).map(|instance| (instance.id.as_str(), instance)).collect();
    let joined: Vec<&InstanceRoll> = group.instances.iter().filter(|instance| instance.origin != Origin::WarmPool).collect();
    // Slots are taken from the end; those of detached instances are taken already.
    let slots = joined.len() - group.surge.min(joined.len());
    let alone = group.first_alone && group.surge == 0;
    let mut instances = Vec::new();
    let mut position = 0_usize;
    for instance in &group.instances {
        let is_warm = instance.origin == Origin::WarmPool;
        let batch = match position {
            _ if is_warm => 0,
            _ if alone && position == 0 => 1,
            _ if alone => (position - 1) / group.concurrency + 2,
            _ => position / group.concurrency + 1,
        };
        let detached_first = !is_warm && position >= slots && instance.origin != Origin::Detached;
        let seen = known.get(instance.id.as_str());
        let why = match instance.origin {
            Origin::WarmPool => Why::WarmPool,
            Origin::Detached => Why::Detached,
            Origin::Forced => Why::Forced,
            Origin::NeedsUpdate => {
                let (from, to) = (seen.and_then(|seen| seen.configuration.clone()), cloud.and_then(|cloud| cloud.configuration.clone()));
                let asks =
                    seen.is_some_and(|seen| seen.status == Status::NeedsUpdate) && (from == to || group.manager == Manager::Karpenter);
                if asks { Why::Annotated } else { Why::Configuration { from, to } }
            }
        };
        let mut found = InstanceForecast {
            id: instance.id.clone(),
            node: instance.node.clone(),
            zone: instance.zone.clone(),
            why,
            batch,
            detached_first,
            evicted: 0,
            held: Vec::new(),
            unmanaged: Names::default(),
            local_storage: Names::default(),
        };
        if let Some(node) = instance.node.as_deref().filter(|_| group.settings.drain_and_terminate) {
            pods.describe(node, &mut found);
        }
        instances.push(found);
        position += usize::from(!is_warm);
    }
    let batches = if group.settings.drain_and_terminate { instances.iter().map(|instance| instance.batch).max().unwrap_or(0) } else { 0 };
    let new_surge = instances.iter().filter(|instance| instance.detached_first).count();
    GroupForecast {
        name: group.name.clone(),
        role: group.role,
        at_once: group.concurrency,
        first_alone: alone && joined.len() > 1,
        surge: new_surge,
        disabled: !group.settings.drain_and_terminate,
        likely: clock.group(group, batches, new_surge),
        batches,
        instances,
    }
}

/// Evictable pods by node, and budgets by namespace.
struct Pods<'a> {
    by_node: HashMap<&'a str, Vec<&'a PodFacts>>,
    budgets: HashMap<&'a str, Vec<&'a BudgetFacts>>,
}

impl<'a> Pods<'a> {
    fn new(facts: Option<&'a ClusterFacts>) -> Self {
        let (mut by_node, mut budgets) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for pod in facts.into_iter().flat_map(|facts| &facts.pods).filter(|pod| pod.is_evictable()) {
            by_node.entry(pod.node.as_str()).or_default().push(pod);
        }
        for budget in facts.into_iter().flat_map(|facts| &facts.budgets) {
            budgets.entry(budget.namespace.as_str()).or_default().push(budget);
        }
        Self { by_node, budgets }
    }

    fn describe(&self, node: &str, found: &mut InstanceForecast) {
        for pod in self.by_node.get(node).into_iter().flatten() {
            let name = || pod.reference().to_string();
            found.evicted += 1;
            if pod.controller.is_none() {
                found.unmanaged.add(name);
            }
            if pod.local_storage {
                found.local_storage.add(name);
            }
            let budgets = self.budgets.get(pod.namespace.as_str()).into_iter().flatten();
            let covering: Vec<_> = budgets.filter(|budget| budget.selector.covers(&pod.labels)).collect();
            let Some(tightest) = covering.iter().min_by_key(|budget| budget.disruptions_allowed) else { continue };
            let hopeless = match covering.len() {
                1 => tightest.hopeless().filter(|_| pod.ready),
                _ => Some("more than one PodDisruptionBudget covers the pod, which the Eviction API refuses".to_owned()),
            };
            if hopeless.is_some() || tightest.disruptions_allowed <= 0 {
                let budget = format!("{}/{}", tightest.namespace, tightest.name);
                found.held.push(HeldPod { pod: name(), budget, hopeless });
            }
        }
    }
}

struct Clock<'a> {
    options: &'a RollOptions,
    history: &'a History,
}

impl Clock<'_> {
    /// How long a group may take.
    fn group(&self, group: &GroupRoll, batches: usize, surge: usize) -> SignedDuration {
        let options = self.options;
        let interval = options.interval(group.role);
        let join = self.history.usual_replacement(&group.name);
        let drains = !options.cloudonly && group.role != Role::Bastion;
        let drain =
            if drains { self.history.usual_drain(&group.name).saturating_add(options.post_drain_delay) } else { SignedDuration::ZERO };
        let rechecks = if options.cloudonly { 0 } else { options.validate_count.saturating_sub(1) };
        let waits = options.wait_for_replacement || (!options.cloudonly && options.validate_count > 0);
        let joined = if waits { interval.max(join) } else { interval };
        let settled = joined.saturating_add(times(RECHECK, rechecks));
        let surge_rounds = match surge {
            0 => 0,
            1 => 1,
            _ => 1 + u32::from(group.first_alone),
        };
        let batches = u32::try_from(batches).unwrap_or(u32::MAX);
        times(drain.saturating_add(settled), batches).saturating_add(times(settled, surge_rounds))
    }

    /// How long the roll takes at the most before it is through, or fails, or asks.
    fn longest(&self, groups: &[GroupForecast]) -> Option<SignedDuration> {
        let options = self.options;
        if !options.cloudonly && options.drain_timeout.is_zero() {
            return None;
        }
        let batch = |group: &GroupForecast| {
            let drain = if options.cloudonly || group.role == Role::Bastion { SignedDuration::ZERO } else { options.drain_timeout };
            let settled = options.interval(group.role).saturating_add(options.validation_timeout);
            drain.saturating_add(options.post_drain_delay).saturating_add(settled)
        };
        Some(groups.iter().fold(SignedDuration::ZERO, |sum, group| {
            let rounds = group.batches.saturating_add(group.surge.min(2));
            let all = times(batch(group), u32::try_from(rounds).unwrap_or(u32::MAX));
            sum.saturating_add(all).saturating_add(options.validation_timeout)
        }))
    }
}

fn times(duration: SignedDuration, factor: u32) -> SignedDuration {
    duration.saturating_mul(i32::try_from(factor).unwrap_or(i32::MAX))
}

fn warnings(roll: &RollState, inventory: &Inventory, groups: &[GroupForecast]) -> Vec<String> {
    let mut warnings = Vec::new();
    let control_plane = inventory.groups.values().filter(|group| group.spec.role == Role::ControlPlane);
    let members: usize = control_plane.map(|group| group.target as usize).sum();
    if groups.iter().any(|group| group.role == Role::ControlPlane && !group.disabled) {
        match members {
            1 => warnings.push("the only control-plane instance is replaced: the API is away until the next one is up".to_owned()),
            2 => warnings.push("of two control-plane instances one is replaced: etcd has no quorum until the next one is up".to_owned()),
            _ => {}
        }
    }
    for group in groups {
        let Some(cloud) = inventory.groups.get(&group.name) else { continue };
        if group.disabled {
            warnings.push(format!("{} keeps its old instances: drainAndTerminate is false", group.name));
        }
        if cloud.suspended_processes.iter().any(|process| process == "Launch") {
            warnings.push(format!("{} will not get its replacements: the process Launch is suspended", group.name));
        }
        let hopeless = group.instances.iter().flat_map(|instance| &instance.held).filter(|held| held.hopeless.is_some()).count();
        if hopeless > 0 {
            warnings.push(format!(
                "{}: {} can never be evicted as long as budgets stay as they are",
                group.name,
                text::count(hopeless, "pod")
            ));
        }
        let unmanaged: usize = group.instances.iter().map(|instance| instance.unmanaged.count).sum();
        if unmanaged > 0 {
            warnings.push(format!("{}: nobody starts {} again", group.name, text::count(unmanaged, "pod")));
        }
    }
    if !roll.not_approved.is_empty() {
        warnings.push(format!("not approved, and so left alone: {}", text::count(roll.not_approved.len(), "instance")));
    }
    warnings.extend(
        inventory.unmatched.iter().map(|name| format!("the Auto Scaling group {name} belongs to no instance group and is left alone")),
    );
    warnings
}

#[cfg(test)]
mod tests;
