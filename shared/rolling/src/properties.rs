//! What holds for every roll, whatever the cluster, the settings and the faults.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use proptest::prelude::*;

use crate::sim::{Faults, Simulation, Termination};
use crate::{
    Action, CommandError, CommandResult, Control, GroupSpec, IntOrString, Manager, Observation, Outcome, Refusal, Role, RollOptions,
    RollState, RollingUpdate, Settings, classify, next,
};

/// When a process dies, counted in commands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kill {
    Never,
    /// The intent is stored, the command is not executed.
    Before(usize),
    /// The command is executed, its result is lost.
    After(usize),
}

/// A host of the planner: observes, asks, stores, executes, waits. Panics when the planner breaks its contract.
pub(crate) fn drive(sim: &mut Simulation, options: &RollOptions, kill: Kill) -> RollState {
    let mut stored: Option<RollState> = None;
    let mut executed = 0;
    for _ in 0..20_000 {
        let inventory = classify(&sim.observe(), &sim.cluster).unwrap();
        let mut state = match &stored {
            Some(state) => RollState::from_json(&state.to_json().unwrap()).unwrap(),
            None => RollState::start(&inventory, options.clone(), sim.now, None).unwrap(),
        };
        let mut results = Vec::new();
        'process: loop {
            let decision = next(
                &state,
                &Observation {
                    now: sim.now,
                    inventory: &inventory,
                    kubernetes: Err("cloudonly"),
                    results: &results,
                    control: &Control::default(),
                },
            );
            stored = Some(decision.state.clone());
            state = decision.state;
            if state.outcome != Outcome::Running {
                assert!(decision.commands.is_empty() && decision.wait.is_none());
                return state;
            }
            if let Some(until) = decision.wait {
                assert!(decision.commands.is_empty());
                assert!(until.at > sim.now, "a wait must lead forward: {until:?} at {}", sim.now);
                sim.advance(until.at.duration_since(sim.now));
                break 'process;
            }
            assert!(!decision.commands.is_empty(), "neither a command nor a wait: the roll stands still");
            results.clear();
            for command in decision.commands {
                executed += 1;
                if kill == Kill::Before(executed) {
                    sim.advance(SignedDuration::from_secs(7));
                    break 'process;
                }
                let Action::Terminate { instance } = &command.action else { panic!("{command:?}") };
                let result = sim.terminate(instance).map_err(|message| CommandError { kind: Refusal::Transient, message });
                if kill == Kill::After(executed) {
                    sim.advance(SignedDuration::from_secs(7));
                    break 'process;
                }
                results.push(CommandResult { command, result });
            }
        }
    }
    panic!("the roll does not end");
}

#[derive(Debug, Clone)]
struct GroupCase {
    old: u32,
    new: u32,
    warm: u32,
    detached: u32,
    max_surge: Option<i32>,
    max_unavailable: Option<i32>,
    disabled: bool,
}

#[derive(Debug, Clone)]
struct Case {
    seed: u64,
    bastions: Vec<GroupCase>,
    control_planes: Vec<GroupCase>,
    api_servers: Vec<GroupCase>,
    nodes: Vec<GroupCase>,
    karpenter: u32,
    force: bool,
    wait_for_replacement: bool,
    boot: i64,
}

fn group_case(largest: u32) -> impl Strategy<Value = GroupCase> {
    let beside = prop_oneof![4 => Just(0u32), 1 => 1..3u32];
    let setting = || prop_oneof![Just(None), (0..4i32).prop_map(Some)];
    (0..=largest, 0..=largest / 2, beside.clone(), beside, setting(), setting(), prop::bool::weighted(0.1)).prop_map(
        |(old, new, warm, detached, max_surge, max_unavailable, disabled)| GroupCase {
            old,
            new,
            warm,
            detached,
            max_surge,
            max_unavailable,
            disabled,
        },
    )
}

fn case() -> impl Strategy<Value = Case> {
    let groups = |largest, most| prop::collection::vec(group_case(largest), 0..=most);
    (
        any::<u64>(),
        groups(2, 2),
        groups(3, 3),
        groups(2, 1),
        groups(6, 3),
        0..3u32,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.8),
        1..120i64,
    )
        .prop_map(|(seed, bastions, control_planes, api_servers, nodes, karpenter, force, wait_for_replacement, boot)| Case {
            seed,
            bastions,
            control_planes,
            api_servers,
            nodes,
            karpenter,
            force,
            wait_for_replacement,
            boot,
        })
}

fn faults() -> impl Strategy<Value = Faults> {
    let often = || prop_oneof![Just(0u64), Just(3), Just(20)];
    let seldom = || prop_oneof![Just(0u64), Just(40), Just(200)];
    (often(), often(), seldom(), seldom()).prop_map(|(refused, answer_lost, death, growth)| Faults { refused, answer_lost, death, growth })
}

impl Case {
    fn simulation(&self, faults: Faults) -> Simulation {
        let mut sim = Simulation::new("c.test", self.seed);
        sim.boot = SignedDuration::from_secs(self.boot);
        sim.faults = faults;
        let roles = [
            (Role::Node, &self.nodes),
            (Role::ApiServer, &self.api_servers),
            (Role::ControlPlane, &self.control_planes),
            (Role::Bastion, &self.bastions),
        ];
        for (role, groups) in roles {
            for (index, group) in groups.iter().enumerate() {
                let rolling_update = RollingUpdate {
                    drain_and_terminate: group.disabled.then_some(false),
                    max_surge: group.max_surge.map(IntOrString::Int),
                    max_unavailable: group.max_unavailable.map(IntOrString::Int),
                };
                let spec = GroupSpec { name: format!("{role}-{index}"), role, manager: Manager::CloudGroup, min_size: 1, rolling_update };
                let name = spec.name.clone();
                sim.add_group(spec, group.old, group.new);
                sim.add_beside(&name, group.warm, true);
                sim.add_beside(&name, group.detached, false);
            }
        }
        if self.karpenter > 0 {
            let spec = GroupSpec {
                name: "karpenter".to_owned(),
                role: Role::Node,
                manager: Manager::Karpenter,
                min_size: 0,
                rolling_update: RollingUpdate::default(),
            };
            sim.add_group(spec, self.karpenter, 0);
        }
        sim
    }

    fn options(&self) -> RollOptions {
        RollOptions { force: self.force, cloudonly: true, wait_for_replacement: self.wait_for_replacement, ..RollOptions::default() }
    }
}

/// The rules, checked on what the cloud saw, not on what the planner recorded.
fn check_history(case: &Case, before: &Simulation, after: &Simulation, state: &RollState) {
    let inventory = classify(&before.answer(), &before.cluster).unwrap();
    let mut frozen = BTreeSet::new();
    for group in inventory.groups.values() {
        let forced = if case.force { group.ready.as_slice() } else { &[] };
        frozen.extend(group.need_update.iter().chain(forced).map(|instance| instance.id.clone()));
    }

    let mut seen = BTreeSet::new();
    let mut last_turn = (Role::Bastion, String::new());
    for (index, termination) in after.terminations.iter().enumerate() {
        let Termination { group: name, instance, .. } = termination;
        assert!(frozen.contains(instance), "{instance} was not to be replaced");
        assert!(seen.insert(instance), "{instance} was terminated twice");

        let group = &inventory.groups[name];
        let role = group.spec.role;
        let turn = (role, if role == Role::Bastion { String::new() } else { name.clone() });
        assert!(last_turn <= turn, "{turn:?} after {last_turn:?}");
        last_turn = turn;

        let is_warm = |id: &str| id.contains("-wp-");
        if is_warm(instance) {
            continue;
        }
        let joined = frozen.iter().filter(|id| group.instances().any(|known| known.id == **id) && !is_warm(id)).count();
        let settings = Settings::resolve(
            &RollingUpdate::default(),
            &group.spec.rolling_update,
            group.spec.manager,
            group.ready.len() + group.need_update.len(),
        );
        assert!(settings.drain_and_terminate, "{name} is disabled");
        let allowed = if role == Role::ControlPlane { 1 } else { (settings.max_surge.min(joined) + settings.max_unavailable).max(1) };

        let earlier: Vec<_> = after.terminations[..index].iter().filter(|other| !is_warm(&other.instance)).collect();
        let recent = |other: &&&Termination| termination.at.duration_since(other.at) < SignedDuration::from_secs(15);
        let same_group = earlier.iter().filter(|other| other.group == *name).filter(recent).count();
        assert!(same_group < allowed, "{} instances of {name} within the interval, {allowed} allowed", same_group + 1);
        if role == Role::ControlPlane {
            let same_role = earlier.iter().filter(|other| inventory.groups[&other.group].spec.role == role).filter(recent).count();
            assert_eq!(same_role, 0, "two control-plane instances within the interval");
        }
        if group.ready.is_empty() && earlier.iter().filter(|other| other.group == *name).count() == 1 {
            assert_eq!(same_group, 0, "the first instance of {name} was not alone");
        }
        // The size of a Karpenter group is not known, so its replacements cannot be awaited.
        if case.wait_for_replacement && termination.served && group.spec.manager == Manager::CloudGroup {
            assert!(termination.missing <= allowed, "{} instances of {name} down, {allowed} allowed", termination.missing);
            if role == Role::ControlPlane {
                assert!(termination.missing_of_role <= 1, "{} control-plane instances down", termination.missing_of_role);
            }
        }
    }

    if let Outcome::Done { still_need_update } = &state.outcome {
        for id in &frozen {
            let (name, group) = after.groups.iter().find(|(_, group)| group.instances.iter().any(|instance| instance.id == *id)).unwrap();
            let alive = group.instances.iter().any(|instance| instance.id == *id && instance.terminated_at.is_none());
            let disabled = group.spec.rolling_update.drain_and_terminate == Some(false) && !id.contains("-wp-");
            assert_eq!(alive, disabled && alive, "{id} of {name} was left over");
            let forced_only = case.force && inventory.groups[name].ready.iter().any(|instance| instance.id == *id);
            let reported = still_need_update.iter().any(|leftover| leftover.instance == *id);
            assert_eq!(reported, alive && !forced_only, "{id}");
        }
    }
}

/// A share of proptest's usual number of cases, so that `PROPTEST_CASES` can ask for more.
fn one_in(share: u32) -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { cases: usual.cases / share, failure_persistence: None, ..usual }
}

proptest! {
    #![proptest_config(one_in(2))]

    #[test]
    fn a_quiet_cloud_is_rolled_to_the_end(case in case()) {
        let before = case.simulation(Faults::default());
        let mut sim = before.clone();
        let state = drive(&mut sim, &case.options(), Kill::Never);
        check_history(&case, &before, &sim, &state);
        prop_assert!(matches!(state.outcome, Outcome::Done { .. }), "{:?}", state.outcome);
        prop_assert_eq!(sim.terminate_calls, sim.terminations.len());
    }

    #[test]
    fn no_fault_breaks_a_rule(case in case(), faults in faults()) {
        let before = case.simulation(faults);
        let mut sim = before.clone();
        let state = drive(&mut sim, &case.options(), Kill::Never);
        check_history(&case, &before, &sim, &state);
    }
}

proptest! {
    #![proptest_config(one_in(20))]

    #[test]
    fn a_kill_at_any_command_gives_the_same_end(case in case()) {
        let before = case.simulation(Faults::default());
        let terminated = |sim: &Simulation| sim.terminations.iter().map(|termination| termination.instance.clone()).collect::<BTreeSet<_>>();
        let mut undisturbed = before.clone();
        let end = drive(&mut undisturbed, &case.options(), Kill::Never);
        for command in 1..=undisturbed.terminate_calls {
            for kill in [Kill::Before(command), Kill::After(command)] {
                let mut sim = before.clone();
                let state = drive(&mut sim, &case.options(), kill);
                check_history(&case, &before, &sim, &state);
                prop_assert_eq!(&state.outcome, &end.outcome, "{:?}", kill);
                prop_assert_eq!(terminated(&sim), terminated(&undisturbed), "{:?}", kill);
            }
        }
    }
}
