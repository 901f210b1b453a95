//! The rows of kOps' own suite with a Kubernetes API (1.36 `rollingupdate_test.go`, `rollingupdate_warmpool_test.go`).
//! Instances are named after their group and a letter; old ones come first. See `world` for the traces.
//!
//! Where kOps' harness lets one of two concurrent drains end later than the other, its trace has one validation more.

use jiff::SignedDuration;

use super::world::*;
use crate::{Action, GroupPhase, Outcome, Refusal, Role, RollOptions, RollingUpdate};

fn all(options: RollOptions) -> World {
    World::standard(options, 3, 3, 2, 1)
}

fn mix(options: RollOptions) -> World {
    World::standard(options, 3, 0, 0, 0)
}

fn node_1(options: RollOptions) -> World {
    World::single(options, "node-1", Role::Node, 3, 3)
}

const GROUP_OF_THREE: &str = "V+ T3 dr node-1a st node-1a V+ V+ dr node-1b st node-1b V+ V+ dr node-1c st node-1c V+ V+";

#[test]
fn row_2_all_need_update() {
    let mut world = all(as_kops());
    assert!(is_done(&world.run()));
    assert_eq!(world.left(), [0; 4]);
    let second = GROUP_OF_THREE.replace("node-1", "node-2");
    assert_eq!(
        world.trace(),
        format!("st bastion-1a V+ V+ V+ T2 dr master-1a st master-1a V+ V+ dr master-1b st master-1b V+ V+ {GROUP_OF_THREE} {second}")
    );
    assert_eq!(world.attempts(), 21);
    let of = |wanted: fn(&Action) -> Option<&String>| world.done.iter().filter_map(wanted).collect::<Vec<_>>();
    let tainted = of(|action| if let Action::Taint { node } = action { Some(node) } else { None });
    let cordoned = of(|action| if let Action::Cordon { node } = action { Some(node) } else { None });
    let excluded = of(|action| if let Action::ExcludeFromLoadBalancers { node } = action { Some(node) } else { None });
    assert_eq!((tainted.len(), &tainted, &tainted), (8, &cordoned, &excluded), "each once, and tainted before its cordon");
}

#[test]
fn row_3_cloudonly_never_asks_the_kubernetes_api() {
    let mut world = all(RollOptions { cloudonly: true, wait_for_replacement: false, ..as_kops() });
    world.say = Box::new(|_, _| Err("must not be asked".to_owned()));
    assert!(is_done(&world.run()));
    assert_eq!(world.trace().matches("st ").count(), 9);
    assert!(world.done.iter().all(|action| matches!(action, Action::Terminate { .. })), "{:?}", world.done);
    assert_eq!((world.attempts(), world.left()), (0, [0; 4]));
}

#[test]
fn row_4_all_need_update_no_fail_on_validate() {
    let mut world = all(RollOptions { fail_on_validate_error: false, ..as_kops() });
    world.say = always_fails();
    assert!(is_done(&world.run()));
    assert_eq!((world.attempts(), world.left()), (12, [0; 4]));
    assert!(!world.trace().contains("V+"));
}

#[test]
fn row_5_none_need_update() {
    let mut world = World::standard(as_kops(), 0, 0, 0, 0);
    world.say = always_fails();
    assert!(is_done(&world.run()));
    assert_eq!((world.trace(), world.left()), (String::new(), [3, 3, 2, 1]));
    assert!(world.done.is_empty());
}

#[test]
fn row_6_none_need_update_with_force() {
    let mut world = World::standard(RollOptions { force: true, ..as_kops() }, 0, 0, 0, 0);
    assert!(is_done(&world.run()));
    assert_eq!((world.attempts(), world.left()), (21, [0; 4]));
}

#[test]
fn row_7_no_groups() {
    assert!(is_done(&World::new(as_kops()).run()));
}

#[test]
fn row_9_all_need_update_fails_validation() {
    let mut world = all(as_kops());
    world.say = always_fails();
    let outcome = world.run();
    assert!(
        reason(&outcome).starts_with("bastion not replaced, stopping the rolling update: instance group \"bastion-1\":"),
        "{outcome:?}"
    );
    assert!(reason(&outcome).contains("system-cluster-critical pod \"coredns\" is pending"), "{outcome:?}");
    assert_eq!((world.trace().as_str(), world.left()), ("st bastion-1a V-", [3, 3, 2, 0]));
}

#[test]
fn row_11_nodes_1_needs_update_fails_validation() {
    let mut world = node_1(as_kops());
    world.say = always_fails();
    assert!(matches!(world.run(), Outcome::Failed { .. }));
    assert_eq!((world.trace().as_str(), world.left_in("node-1")), ("V-", 3));
    assert!(world.done.is_empty(), "it validates before it taints: {:?}", world.done);
}

#[test]
fn row_12_nodes_1_needs_update_errors_validation() {
    let mut world = node_1(as_kops());
    world.say = always_errors();
    assert!(reason(&world.run()).contains("the Kubernetes API does not answer: connection refused"));
    assert_eq!((world.trace().as_str(), world.left_in("node-1")), ("V-", 3));
}

#[test]
fn row_13_cluster_fails_validation_after_one_master() {
    let mut world = all(as_kops());
    world.groups.get_mut("master-1").unwrap().launches = false;
    let outcome = world.run();
    assert!(reason(&outcome).starts_with("control plane not replaced, stopping the rolling update: instance group \"master-1\""));
    assert!(reason(&outcome).contains("after terminating master-1a (node master-1a.local)"), "{outcome:?}");
    assert_eq!(world.trace(), "st bastion-1a V+ V+ V+ T2 dr master-1a st master-1a V-");
    assert_eq!(world.left(), [3, 3, 1, 0]);
}

#[test]
fn row_15_failure_of_another_worker_group_is_ignored() {
    let mut world = mix(as_kops());
    world.say = not_ready("node-2a.local");
    assert!(is_done(&world.run()));
    assert_eq!((world.trace().as_str(), world.attempts(), world.left()), (GROUP_OF_THREE, 7, [0, 3, 2, 1]));
}

#[test]
fn row_17_master_group_failure() {
    let mut world = mix(as_kops());
    world.say = not_ready("master-1b.local");
    assert!(reason(&world.run()).contains(r#"node "master-1b.local" of role "control-plane" is not ready"#));
    assert_eq!((world.trace().as_str(), world.left()), ("V-", [3, 3, 2, 1]));
}

#[test]
fn row_18_failure_without_a_group() {
    let mut world = mix(as_kops());
    world.say = always_fails();
    assert!(matches!(world.run(), Outcome::Failed { .. }));
    assert_eq!((world.trace().as_str(), world.left()), ("V-", [3, 3, 2, 1]));
}

#[test]
fn row_20_cluster_fails_validation_after_one_node() {
    let mut world = node_1(as_kops());
    world.groups.get_mut("node-1").unwrap().launches = false;
    let outcome = world.run();
    assert!(reason(&outcome).contains(r#"InstanceGroup "node-1" did not have enough nodes 2 vs 3"#), "{outcome:?}");
    assert_eq!((world.trace().as_str(), world.left_in("node-1")), ("V+ T3 dr node-1a st node-1a V-", 2));
    assert_eq!(world.scars(), [""; 0], "unlike kOps, what was not replaced is given back");
}

#[test]
fn row_21_cluster_errors_validation_after_one_node() {
    let mut world = node_1(as_kops());
    world.groups.get_mut("node-1").unwrap().launches = false;
    world.say = Box::new(|groups, _| if groups["node-1"].machines.len() < 3 { Err("connection refused".to_owned()) } else { Ok(()) });
    assert!(matches!(world.run(), Outcome::Failed { .. }));
    assert_eq!((world.trace().as_str(), world.left_in("node-1")), ("V+ T3 dr node-1a st node-1a V-", 2));
}

#[test]
fn row_23_validates_after_bastion() {
    let mut world = all(RollOptions { validation_timeout: SignedDuration::from_mins(15), ..as_kops() });
    // The world looks twice before the first validation: to start the roll, and to terminate the bastion.
    let mut looks = 0;
    world.say = Box::new(move |_, facts| {
        looks += 1;
        if looks <= 4 {
            facts.pods.push(critical_pod());
        }
        Ok(())
    });
    assert!(is_done(&world.run()));
    assert!(world.trace().starts_with("st bastion-1a V- V- V- V+ V+ V+ T2 dr master-1a"), "{}", world.trace());
    assert_eq!((world.attempts(), world.left()), (24, [0; 4]));
}

#[test]
fn row_27_taint_all_but_one_need_update() {
    let mut world = World::single(as_kops(), "node-1", Role::Node, 3, 2);
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ T2 dr node-1a st node-1a V+ V+ dr node-1b st node-1b V+ V+");
    assert_eq!(world.left_in("node-1"), 1);
}

#[test]
fn row_28_max_surge_ignored_for_master() {
    let mut world = World::single(as_kops(), "master-1", Role::ControlPlane, 3, 2);
    world.cluster.rolling_update = settings(2, None);
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ T2 dr master-1a st master-1a V+ V+ dr master-1b st master-1b V+ V+");
    assert_eq!(world.left_in("master-1"), 1);
}

#[test]
fn row_30_disabled_surge() {
    let mut world = all(as_kops());
    world.cluster.rolling_update = RollingUpdate { drain_and_terminate: Some(false), ..settings(1, None) };
    let outcome = world.run();
    assert_eq!(world.trace(), "dt bastion-1a V+ V+ V+ T2 V+ T3 dt node-1c V+ V+ V+ T3 dt node-2c V+ V+");
    assert_eq!((world.attempts(), world.left()), (9, [3, 3, 2, 1]));
    let Outcome::Done { still_need_update } = outcome else { panic!("{outcome:?}") };
    assert!(still_need_update.iter().all(|left| left.why == crate::LeftoverReason::Disabled));
    assert_eq!(still_need_update.len(), 9);
    assert_eq!(world.roll_of("node-1").phase, GroupPhase::Disabled);
}

#[test]
fn row_31_max_unavailable_all_need_update() {
    let mut world = World::single(RollOptions { validate_count: 1, ..as_kops() }, "node-1", Role::Node, 7, 7);
    world.cluster.rolling_update = settings(0, Some(2));
    assert!(is_done(&world.run()));
    assert_eq!(
        world.trace(),
        "V+ T7 dr node-1a st node-1a V+ dr node-1b dr node-1c st node-1b st node-1c V+ dr node-1d dr node-1e st node-1d st node-1e V+ \
         dr node-1f dr node-1g st node-1f st node-1g V+",
        "first alone, then two at a time; validated with 7, 6, 4, 2, 0 to come, never with 5 or 3"
    );
}

#[test]
fn row_32_max_unavailable_all_but_one_need_update() {
    let mut world = World::single(RollOptions { validate_count: 1, ..as_kops() }, "node-1", Role::Node, 7, 6);
    world.cluster.rolling_update = settings(0, Some(2));
    assert!(is_done(&world.run()));
    assert_eq!(
        world.trace(),
        "V+ T6 dr node-1a dr node-1b st node-1a st node-1b V+ dr node-1c dr node-1d st node-1c st node-1d V+ \
         dr node-1e dr node-1f st node-1e st node-1f V+"
    );
    assert_eq!(world.left_in("node-1"), 1);
}

/// The gates of rows 31, 33 and 39: one completion closes the gate; what ends meanwhile is swept up; with every slot taken
/// the last instances are validated one by one.
#[test]
fn row_31_slow_instances_are_swept_up() {
    let options = RollOptions {
        validate_count: 1,
        validation_timeout: SignedDuration::from_mins(15),
        node_interval: SignedDuration::from_secs(15),
        ..as_kops()
    };
    let mut world = World::single(options, "node-1", Role::Node, 6, 5);
    world.cluster.rolling_update = settings(0, Some(2));
    world.pod("node-1b", "slow");
    world.grace.insert("slow".to_owned(), 9);
    // The validation after node-1a takes until node-1b is through, too.
    world.say = Box::new(|groups, facts| {
        let has = |id: &str| groups["node-1"].machines.iter().any(|machine| machine.id == id);
        if !has("node-1a") && has("node-1b") {
            facts.pods.push(critical_pod());
        }
        Ok(())
    });
    assert!(is_done(&world.run()));
    assert_eq!(
        world.trace(),
        "V+ T5 dr node-1a dr node-1b st node-1a st node-1b V+ dr node-1c st node-1c V+ dr node-1d st node-1d V+ dr node-1e st node-1e V+ V+",
        "node-1b ends one step late, so from then on the slots are freed one by one; the last two are validated each"
    );
}

#[test]
fn row_34_max_surge_all_need_update() {
    let mut world = World::single(RollOptions { validate_count: 1, ..as_kops() }, "node-1", Role::Node, 6, 6);
    world.cluster.rolling_update = settings(2, None);
    assert!(is_done(&world.run()));
    assert_eq!(
        world.trace(),
        "V+ T6 dt node-1f V+ dt node-1e V+ dr node-1a dr node-1b st node-1a st node-1b V+ dr node-1c dr node-1d st node-1c st node-1d V+ \
         dr node-1e dr node-1f st node-1e st node-1f V+"
    );
    assert_eq!(world.left_in("node-1"), 0);
    assert_eq!(world.groups["node-1"].machines.len(), 6);
}

#[test]
fn row_35_max_surge_all_but_one_need_update() {
    let mut world = World::single(RollOptions { validate_count: 1, ..as_kops() }, "node-1", Role::Node, 7, 6);
    world.cluster.rolling_update = settings(2, None);
    assert!(is_done(&world.run()));
    assert!(world.trace().starts_with("V+ T6 dt node-1f dt node-1e V+ dr node-1a dr node-1b st"), "{}", world.trace());
    assert_eq!((world.left_in("node-1"), world.attempts()), (1, 5));
}

#[test]
fn row_37_detach_fails() {
    let mut world = World::single(as_kops(), "node-1", Role::Node, 3, 2);
    world.cluster.rolling_update = settings(10, None);
    world.refuse = Box::new(|command| {
        matches!(command.action, Action::Detach { .. }).then(|| refusal(Refusal::Permanent, "ValidationError: not in service"))
    });
    assert!(is_done(&world.run()));
    assert_eq!(
        world.trace(),
        "V+ T2 dt node-1b! dt node-1a! V+ V+ dr node-1a dr node-1b st node-1a st node-1b V+ V+",
        "one validation round even so, and the concurrency stays 2"
    );
    assert_eq!(world.left_in("node-1"), 1);
}

#[test]
fn row_41_only_warm_pool_nodes() {
    let mut world = World::single(as_kops(), "node-1", Role::Node, 3, 0);
    world.warm("node-1", &["wp-a", "wp-b", "wp-c"]);
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ st wp-a st wp-b st wp-c");
}

#[test]
fn row_42_warm_pool_before_joined_nodes() {
    let mut world = node_1(as_kops());
    world.warm("node-1", &["wp-a", "wp-b", "wp-c"]);
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), GROUP_OF_THREE.replace("T3", "T3 st wp-a st wp-b st wp-c"));
}
