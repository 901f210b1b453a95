//! The host may be killed before and after every single call, and the roll comes to the same end; the record explains
//! everything that was done; the state stays small.

use jiff::SignedDuration;

use super::world::*;
use crate::{Action, Outcome, Role, RollOptions, RollState, StuckDrain, What};

fn options() -> RollOptions {
    RollOptions {
        bastion_interval: SignedDuration::from_secs(1),
        control_plane_interval: SignedDuration::from_secs(1),
        node_interval: SignedDuration::from_secs(1),
        validate_count: 1,
        ..RollOptions::default()
    }
}

/// Every kind of step: bastions, the control plane, a surge, a warm pool, concurrency, pods, a drain that is skipped.
fn rich() -> World {
    let mut world = World::new(RollOptions { on_stuck_drain: Some(StuckDrain::Skip), ..options() });
    world.cluster.rolling_update = settings(1, Some(1));
    world.add(spec("bastion-1", Role::Bastion), 1, 1);
    world.add(spec("master-1", Role::ControlPlane), 3, 2);
    world.add(spec("node-1", Role::Node), 3, 3);
    world.add(spec("node-2", Role::Node), 2, 1);
    world.warm("node-1", &["wp-a"]);
    for instance in ["master-1a", "node-1a", "node-1b", "node-2a"] {
        world.pod(instance, &format!("pod-{instance}"));
    }
    world.budget("pod-node-1b", 1, 0);
    world
}

/// Nothing is replaced in the end.
fn aborted() -> World {
    let mut world = World::new(options());
    world.cluster.rolling_update = settings(0, Some(2));
    world.add(spec("node-1", Role::Node), 3, 3);
    for instance in ["node-1a", "node-1b"] {
        world.pod(instance, &format!("pod-{instance}"));
        world.grace.insert(format!("pod-{instance}"), 1_000_000);
    }
    world.options.drain_timeout = SignedDuration::from_secs(20);
    world
}

fn end(mut world: World, kill: Option<Kill>) -> (Outcome, Vec<Machine>, World) {
    world.kill = kill;
    let outcome = world.run();
    let mut machines: Vec<_> = world.groups.values().flat_map(|group| group.machines.clone()).collect();
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    (outcome, machines, world)
}

/// New instances are numbered as they come, which a kill may change.
fn essence(machines: &[Machine]) -> Vec<Machine> {
    let mut machines = machines.to_vec();
    for machine in &mut machines {
        if let Some(at) = machine.id.find("new") {
            machine.id.truncate(at);
        }
    }
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    machines
}

#[test]
fn a_kill_at_any_call_gives_the_same_end() {
    for scenario in [rich as fn() -> World, aborted] {
        let (outcome, machines, undisturbed) = end(scenario(), None);
        assert!(undisturbed.executed > 10);
        for call in 1..=undisturbed.executed {
            for kill in [Kill::Before(call), Kill::After(call)] {
                let (killed, after, world) = end(scenario(), Some(kill));
                assert_eq!(killed, outcome, "{kill:?}");
                assert_eq!(essence(&after), essence(&machines), "{kill:?}");
                assert_eq!(world.scars(), undisturbed.scars(), "{kill:?}");
            }
        }
    }
}

#[test]
fn the_record_explains_every_effect() {
    let (_, _, world) = end(rich(), None);
    let mut told: Vec<Action> = world
        .events
        .iter()
        .filter_map(|event| if let What::Effect { effect } = &event.what { Some(effect.clone()) } else { None })
        .collect();
    let mut done = world.done.clone();
    // What was refused was told, too.
    told.retain(|action| done.contains(action));
    told.sort();
    done.sort();
    assert_eq!(told, done);
    let kinds = |name: &str| world.events.iter().filter(|event| serde_json::to_value(event).unwrap()["event"] == name).count();
    assert_eq!((kinds("group_started"), kinds("group_ended"), kinds("ended")), (4, 4, 1));
    assert_eq!((kinds("drained"), kinds("skipped")), (5, 1));
    assert_eq!(kinds("terminated"), 1 + 2 + 3 + 1);
    assert_eq!(kinds("joined"), 1 + 2 + 2 + 1, "nothing comes for the warm one");
    let json = serde_json::to_string(&world.events).unwrap();
    assert_eq!(serde_json::from_str::<Vec<crate::RollEvent>>(&json).unwrap(), world.events);
}

#[test]
fn each_instance_has_its_times() {
    let (_, _, world) = end(rich(), None);
    for id in ["master-1a", "node-1a", "node-2a"] {
        let instance = world.instance(id);
        let times = [
            instance.started,
            instance.cordoned,
            instance.drained,
            instance.terminated,
            instance.replaced.as_ref().map(|replaced| replaced.at),
        ];
        assert!(times.iter().all(Option::is_some), "{id}: {times:?}");
        if instance.detached.is_none() {
            assert!(times.is_sorted(), "{id}: {times:?}");
        }
    }
    assert!(world.instance("node-1c").detached.is_some());
    assert!(world.instance("node-1c").detached < world.instance("node-1c").started);
}

#[test]
fn many_nodes_are_tainted_in_bites_and_none_is_forgotten() {
    for kill in [None, Some(Kill::Before(1 + 250)), Some(Kill::After(1 + 250)), Some(Kill::Before(1 + 450))] {
        let mut world = World::new(options());
        world.add(spec("node-1", Role::Node), 500, 499);
        world.kill = kill;
        while world.groups["node-1"].machines.iter().all(|machine| !machine.cordoned) {
            assert_eq!(world.step(), None);
        }
        let tainted = world.groups["node-1"].machines.iter().filter(|machine| machine.tainted).count();
        assert_eq!(tainted, 499, "{kill:?}: {}", world.trace());
        assert!(world.trace().contains("T200"));
    }
}

#[test]
fn the_state_is_small_and_reads_back() {
    let mut world = World::new(options());
    world.add(spec("node-1", Role::Node), 1_000, 1_000);
    for number in 0..3_000 {
        world.pod(&format!("node-1x{}", number % 900), &format!("pod-{number}"));
    }
    world.start();
    let before = world.state.as_ref().unwrap().to_json().unwrap().len();
    world.until(|wait| matches!(wait.reason, crate::WaitReason::Drain { .. }));
    let state = world.state.clone().unwrap();
    let json = state.to_json().unwrap();
    assert!(json.len() < 350 * 1_000 && json.len() < before + 40_000, "{} then {}", before, json.len());
    assert_eq!(RollState::from_json(&json).unwrap(), state);
}
