//! What kOps' code does and its suite does not pin (1.36 `pkg/instancegroups`), and where Kopsline differs on purpose.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::world::*;
use crate::{Action, GroupPhase, GroupSpec, Manager, Outcome, Refusal, Role, RollOptions, RollingUpdate, WaitReason, What};

fn strict() -> RollOptions {
    RollOptions { fail_on_drain_error: true, ..as_kops() }
}

/// Refuses the calls of this kind for this instance or its node, for good.
fn refuse(kind: &'static str, id: &'static str) -> Box<dyn FnMut(&crate::Command) -> Option<crate::CommandError>> {
    Box::new(move |command| {
        let json = serde_json::to_value(&command.action).unwrap();
        let subject = ["node", "instance"].iter().find_map(|key| json.get(key)).and_then(|value| value.as_str()).unwrap_or_default();
        (json["action"] == kind && subject.trim_end_matches(".local") == id).then(|| refusal(Refusal::Permanent, "Forbidden: no"))
    })
}

#[test]
fn a_drain_error_stops_its_worker_group_and_the_next_group_still_runs() {
    let mut world = World::standard(strict(), 3, 3, 0, 0);
    world.refuse = refuse("cordon", "node-1b");
    let outcome = world.run();
    assert_eq!(reason(&outcome), "instance group \"node-1\": node-1b (node node-1b.local) could not be cordoned: Forbidden: no");
    assert_eq!(world.left(), [2, 0, 2, 1]);
    assert!(matches!(world.roll_of("node-1").phase, GroupPhase::Failed { .. }));
    assert_eq!(world.scars(), [""; 0], "the rest of the group is given back");
}

#[test]
fn a_drain_error_of_the_control_plane_stops_everything() {
    let mut world = World::standard(strict(), 3, 3, 2, 0);
    world.refuse = refuse("cordon", "master-1a");
    assert!(reason(&world.run()).starts_with("control plane not replaced, stopping the rolling update"));
    assert_eq!((world.left(), world.scars()), ([3, 3, 2, 1], vec![]));
}

#[test]
fn a_drain_error_is_told_and_the_instance_terminated_without_fail_on_drain_error() {
    let mut world = World::single(as_kops(), "node-1", Role::Node, 2, 1);
    world.refuse = refuse("cordon", "node-1a");
    world.pod("node-1a", "web");
    assert!(is_done(&world.run()));
    assert!(
        world.events.iter().any(|event| matches!(&event.what, What::DrainIgnored { error } if error.contains("could not be cordoned")))
    );
    assert!(
        world.done.iter().any(|action| matches!(action, Action::Evict { .. })),
        "unlike kOps, which terminates it at once, it is drained as far as possible"
    );
}

#[test]
fn a_deregistration_error_stops_the_whole_roll() {
    let mut world = World::standard(strict(), 3, 3, 0, 0);
    world.refuse = refuse("deregister", "node-1b");
    let outcome = world.run();
    assert!(reason(&outcome).contains("node-1b (node node-1b.local) could not be taken out of its load balancers: Forbidden: no"));
    assert_eq!((world.left(), world.scars()), ([2, 3, 2, 1], vec![]));

    let mut world = World::standard(as_kops(), 3, 3, 0, 0);
    world.refuse = refuse("deregister", "node-1b");
    assert!(is_done(&world.run()), "without fail_on_drain_error it is told only");
}

#[test]
fn a_deregistration_takes_as_long_as_connections_need() {
    let mut world = World::single(as_kops(), "node-1", Role::Node, 2, 1);
    let mut asked = 0;
    world.refuse = Box::new(move |command| {
        let deregisters = matches!(command.action, Action::Deregister { .. });
        asked += usize::from(deregisters);
        (deregisters && asked <= 60).then(|| refusal(Refusal::Pending, "draining"))
    });
    let wait = world.until(|wait| matches!(wait.reason, WaitReason::Deregistration { .. }));
    assert_eq!(wait.reason.to_string(), "the load balancers to let go of node-1a of node-1");
    assert!(is_done(&world.run()));
    let took = world.now.as_second();
    assert!((250..=60 * 5 + 1 + 1 + 10).contains(&took), "5 s each, but for the first; the validations; no timeout of the drain: {took}");
    assert!(!world.events.iter().any(|event| matches!(event.what, What::Refused { .. })), "that is no failure");
}

#[test]
fn the_api_keeps_its_last_server_registered() {
    let sizes = |sizes: &[(&str, Role, u32)]| {
        let mut world = World::new(as_kops());
        for (name, role, min_size) in sizes {
            world.add(GroupSpec { min_size: *min_size, ..spec(name, *role) }, 1, 1);
        }
        assert!(is_done(&world.run()));
        let deregistered = |action: &Action| match action {
            Action::Deregister { instance, .. } => Some(instance.clone()),
            _ => None,
        };
        world.done.iter().filter_map(deregistered).collect::<Vec<_>>()
    };
    let (cp, api, node) = (("cp", Role::ControlPlane), ("api", Role::ApiServer), ("node", Role::Node));
    assert_eq!(sizes(&[(cp.0, cp.1, 1), (node.0, node.1, 1)]), ["nodea"]);
    assert_eq!(sizes(&[(cp.0, cp.1, 1), (api.0, api.1, 1)]), ["cpa", "apia"]);
    assert_eq!(sizes(&[(cp.0, cp.1, 1), (api.0, api.1, 0)]), [""; 0]);
}

#[test]
fn a_node_that_vanished_counts_as_drained() {
    let mut world = World::single(strict(), "node-1", Role::Node, 2, 1);
    world.pod("node-1a", "web");
    world.grace.insert("web".to_owned(), 1_000);
    world.until(|wait| matches!(wait.reason, WaitReason::Drain { .. }));
    world.machine("node-1a").joined = false;
    assert!(is_done(&world.run()));
    assert_eq!(world.left_in("node-1"), 1);
}

#[test]
fn an_instance_that_is_no_node_is_terminated_as_it_is() {
    let mut world = World::single(RollOptions { fail_on_validate_error: false, ..strict() }, "node-1", Role::Node, 2, 1);
    world.machine("node-1a").joined = false;
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V- st node-1a V+ V+");
}

#[test]
fn bastion_groups_go_side_by_side_and_finish_before_an_error_counts() {
    let mut world = World::new(as_kops());
    for name in ["bastion-1", "bastion-2"] {
        world.add(spec(name, Role::Bastion), 2, 2);
    }
    world.add(spec("node-1", Role::Node), 1, 1);
    world.refuse = refuse("terminate", "bastion-1a");
    let outcome = world.run();
    assert_eq!(
        reason(&outcome),
        "bastion not replaced, stopping the rolling update: instance group \"bastion-1\": bastion-1a could not be terminated: Forbidden: no"
    );
    assert_eq!(world.trace(), "st bastion-1a st bastion-2a V+ V+ st bastion-2b V+ V+");
    assert_eq!(world.left_in("node-1"), 1);
}

#[test]
fn control_plane_groups_go_one_by_one_by_name_whatever_max_unavailable_says() {
    let mut world = World::new(as_kops());
    world.cluster.rolling_update = settings(0, Some(3));
    for name in ["master-b", "master-a"] {
        world.add(spec(name, Role::ControlPlane), 2, 2);
    }
    assert!(is_done(&world.run()));
    let group = |name: &str| format!("V+ T2 dr {name}a st {name}a V+ V+ dr {name}b st {name}b V+ V+");
    assert_eq!(
        world.trace(),
        format!("{} {}", group("master-a"), group("master-b")),
        "kOps would take three at a time, and with them the etcd quorum"
    );
}

#[test]
fn an_api_server_group_comes_after_the_control_plane_and_does_not_stop_the_rest() {
    let mut world = World::new(strict());
    world.add(spec("a-node", Role::Node), 1, 1);
    world.add(spec("api", Role::ApiServer), 1, 1);
    world.add(spec("master", Role::ControlPlane), 1, 1);
    world.refuse = refuse("cordon", "apia");
    assert!(reason(&world.run()).starts_with("instance group \"api\": apia"));
    assert_eq!(world.trace(), "V+ T1 dr mastera st mastera V+ V+ V+ T1 dr apia V+ T1 dr a-nodea st a-nodea V+ V+");
}

#[test]
fn cloudonly_keeps_the_surge_in_the_concurrency_and_detaches_nothing() {
    let options = RollOptions { cloudonly: true, wait_for_replacement: false, node_interval: SignedDuration::from_secs(15), ..as_kops() };
    let mut world = World::single(options, "node-1", Role::Node, 4, 3);
    world.cluster.rolling_update = settings(2, Some(1));
    assert!(is_done(&world.run()));
    assert_eq!((world.trace().as_str(), world.now.as_second()), ("st node-1a st node-1b st node-1c", 15));
}

#[test]
fn nothing_unavailable_and_no_surge_means_one_at_a_time() {
    let mut world = World::single(RollOptions { validate_count: 1, ..as_kops() }, "node-1", Role::Node, 3, 2);
    world.cluster.rolling_update = settings(0, Some(0));
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ T2 dr node-1a st node-1a V+ dr node-1b st node-1b V+");
}

/// kOps takes the failed detachment for a proof, and goes on two at a time with a configuration that nobody has tried.
#[test]
fn a_first_detachment_that_fails_proves_nothing() {
    let mut world = World::single(RollOptions { validate_count: 1, ..as_kops() }, "node-1", Role::Node, 4, 4);
    world.cluster.rolling_update = settings(2, None);
    world.refuse = Box::new(|command| {
        matches!(command.action, Action::MarkDetached { .. }).then(|| refusal(Refusal::Permanent, "UnauthorizedOperation"))
    });
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ T4 V+ dr node-1a st node-1a V+ dr node-1b dr node-1c st node-1b st node-1c V+ dr node-1d st node-1d V+");
}

#[test]
fn slots_that_are_taken_by_detached_instances_need_no_wait() {
    let mut world = World::single(RollOptions { validate_count: 1, ..as_kops() }, "node-1", Role::Node, 3, 3);
    world.cluster.rolling_update = settings(2, None);
    for id in ["node-1b", "node-1c"] {
        (world.machine(id).detached, world.machine(id).tagged) = (true, true);
    }
    world.groups.get_mut("node-1").unwrap().desired = 1;
    assert!(is_done(&world.run()));
    assert_eq!(
        world.trace(),
        "V+ T3 dr node-1a st node-1a V+ dr node-1b dr node-1c st node-1b st node-1c V+",
        "no detachment, no validation before the first, which is alone even so; the detached ones are last"
    );
    assert_eq!(world.groups["node-1"].machines.len(), 1);
}

#[test]
fn karpenter_instances_are_not_detached_but_keep_the_concurrency() {
    let mut world = World::new(RollOptions { force: true, validate_count: 1, ..as_kops() });
    world.cluster.rolling_update = settings(2, None);
    world.add(GroupSpec { manager: Manager::Karpenter, ..spec("spot", Role::Node) }, 3, 0);
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ T3 dr spota dr spotb st spota st spotb V+ dr spotc st spotc V+");
    assert!(!world.done.iter().any(|action| matches!(action, Action::Deregister { .. } | Action::MarkDetached { .. })));
}

#[test]
fn annotated_nodes_are_replaced_too() {
    let mut world = World::single(as_kops(), "node-1", Role::Node, 3, 1);
    world.machine("node-1c").needs_update = true;
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ T2 dr node-1a st node-1a V+ V+ dr node-1c st node-1c V+ V+");
}

#[test]
fn a_warm_pool_that_cannot_be_deleted_stops_the_group_before_any_drain() {
    let mut world = World::single(as_kops(), "node-1", Role::Node, 3, 3);
    world.warm("node-1", &["wp-a"]);
    world.refuse = refuse("terminate", "wp-a");
    assert!(reason(&world.run()).contains("wp-a could not be terminated"));
    assert_eq!((world.trace().as_str(), world.scars()), ("V+ T3 st wp-a", vec![]));
}

#[test]
fn validate_count_0_keeps_the_first_validation_only() {
    let mut world = World::single(RollOptions { validate_count: 0, ..as_kops() }, "node-1", Role::Node, 3, 3);
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ T3 dr node-1a st node-1a dr node-1b st node-1b dr node-1c st node-1c");
}

#[test]
fn a_validation_after_the_deadline_still_counts_if_it_passes() {
    let mut world = World::single(as_kops(), "node-1", Role::Node, 2, 1);
    // The timeout is 0, and two successes in a row take 10 s.
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ T1 dr node-1a st node-1a V+ V+");
}

#[test]
fn a_flapping_cluster_starts_counting_again() {
    let options = RollOptions { validation_timeout: SignedDuration::from_mins(15), validate_count: 3, ..as_kops() };
    let mut world = World::single(options, "node-1", Role::Node, 2, 1);
    let mut looks = 0;
    world.say = Box::new(move |_, facts| {
        looks += 1;
        if [5, 8].contains(&looks) {
            facts.pods.push(critical_pod());
        }
        Ok(())
    });
    assert!(is_done(&world.run()));
    assert_eq!(world.trace(), "V+ T1 dr node-1a st node-1a V+ V+ V- V+ V+ V- V+ V+ V+");
}

#[test]
fn a_worker_group_that_does_not_validate_stops_the_groups_after_it() {
    let mut world = World::standard(as_kops(), 3, 3, 0, 0);
    world.groups.get_mut("node-1").unwrap().launches = false;
    assert!(
        reason(&world.run()).starts_with("instance group \"node-1\": the cluster did not validate within 0s after terminating node-1a")
    );
    assert_eq!(world.left(), [2, 3, 2, 1]);
}

#[test]
fn errors_of_worker_groups_are_told_together_at_the_end() {
    let mut world = World::standard(strict(), 3, 3, 0, 0);
    world.refuse = Box::new(|command| {
        matches!(&command.action, Action::Cordon { node } if node == "node-1a.local" || node == "node-2b.local")
            .then(|| refusal(Refusal::Permanent, "no"))
    });
    assert_eq!(
        reason(&world.run()),
        "instance group \"node-1\": node-1a (node node-1a.local) could not be cordoned: no; \
         instance group \"node-2\": node-2b (node node-2b.local) could not be cordoned: no"
    );
}

#[test]
fn a_taint_that_is_refused_stops_the_group_only_with_fail_on_drain_error() {
    for (options, stops) in [(strict(), true), (as_kops(), false)] {
        let mut world = World::single(options, "node-1", Role::Node, 2, 2);
        world.refuse = refuse("taint", "node-1b");
        assert_eq!(matches!(world.run(), Outcome::Failed { .. }), stops);
        assert_eq!(world.left_in("node-1"), if stops { 2 } else { 0 });
        assert_eq!(world.scars(), [""; 0]);
    }
}

#[test]
fn failures_that_may_pass_are_tried_again() {
    let mut world =
        World::single(RollOptions { validation_timeout: SignedDuration::from_mins(15), ..strict() }, "node-1", Role::Node, 3, 3);
    world.cluster.rolling_update = settings(1, None);
    let mut calls: BTreeMap<String, u32> = BTreeMap::new();
    world.refuse = Box::new(move |command| {
        let count = calls.entry(serde_json::to_string(&command.action).unwrap()).or_default();
        *count += 1;
        (*count <= 2).then(|| refusal(Refusal::Transient, "Throttling"))
    });
    world.pod("node-1a", "web");
    assert!(is_done(&world.run()));
    assert_eq!((world.left_in("node-1"), world.scars()), (0, vec![]));
}

#[test]
fn the_surge_follows_the_settings_of_the_group() {
    let mut world = World::standard(RollOptions { validate_count: 1, ..as_kops() }, 2, 2, 0, 0);
    world.cluster.groups[0].rolling_update = RollingUpdate { ..settings(1, None) };
    assert!(is_done(&world.run()));
    assert_eq!(
        world.trace(),
        "V+ T2 dt node-1b V+ dr node-1a st node-1a V+ dr node-1b st node-1b V+ V+ T2 dr node-2a st node-2a V+ dr node-2b st node-2b V+"
    );
}

#[test]
fn one_instance_at_a_time_and_a_question_after_each() {
    let mut world = World::single(RollOptions { interactive: true, validate_count: 1, ..as_kops() }, "node-1", Role::Node, 5, 4);
    world.cluster.rolling_update = settings(3, Some(3));
    let asks = |id: &'static str| move |wait: &crate::Until| matches!(&wait.reason, WaitReason::Question { id: open, .. } if open == id);
    world.until(asks("next-node-1a"));
    assert_eq!(world.trace(), "V+ T4 dt node-1d V+ dr node-1a st node-1a V+", "a surge of one at most");
    let answer = |question: &str, choice| crate::Answer { question: question.to_owned(), choice, by: "ann".to_owned() };
    world.control.answers.push(answer("next-node-1a", crate::Choice::Continue));
    world.until(asks("next-node-1b"));
    world.control.answers.push(answer("next-node-1b", crate::Choice::Always));
    assert!(is_done(&world.run()));
    assert_eq!(world.left_in("node-1"), 1);
    let asked = world.events.iter().filter(|event| matches!(event.what, What::Asked { .. })).count();
    assert_eq!(asked, 2);
}

#[test]
fn what_is_still_drained_holds_nobody_back() {
    let timeout = SignedDuration::from_mins(15);
    let options =
        RollOptions { wait_for_replacement: true, validate_count: 1, validation_timeout: timeout, drain_timeout: timeout, ..as_kops() };
    let mut world = World::single(options, "node-1", Role::Node, 5, 5);
    world.cluster.rolling_update = settings(0, Some(2));
    world.pod("node-1b", "web");
    world.budget("web", 2, 0);
    assert!(is_done(&world.run()));
    assert_eq!(
        world.trace(),
        "V+ T5 dr node-1a st node-1a V+ dr node-1b dr node-1c st node-1c V+ dr node-1d st node-1d V+ dr node-1e st node-1e V+ st node-1b V+"
    );
}

/// Refuses calls of these kinds on these instances, as often as they are named.
fn each_once<const N: usize>(refusals: [(&'static str, &'static str, Refusal); N]) -> Refuse {
    let mut refusals = refusals.to_vec();
    Box::new(move |command| {
        let call = serde_json::to_string(&command.action).unwrap();
        let found = refusals.iter().position(|(kind, on, _)| call.contains(kind) && call.contains(on))?;
        Some(refusal(refusals.remove(found).2, "refused"))
    })
}

#[test]
fn what_was_drained_and_taken_back_counts_as_missing() {
    let options = RollOptions {
        wait_for_replacement: true,
        validate_count: 0,
        validation_timeout: SignedDuration::from_mins(15),
        post_drain_delay: SignedDuration::from_secs(2),
        ..as_kops()
    };
    let mut world = World::single(options, "node-1", Role::Node, 5, 5);
    world.cluster.rolling_update = settings(0, Some(3));
    let refusals = [("cordon", "node-1c"), ("cordon", "node-1d"), ("terminate", "node-1b"), ("cordon", "node-1c"), ("cordon", "node-1d")];
    world.refuse = each_once(refusals.map(|(kind, on)| (kind, on, Refusal::Transient)));
    // The first one went alone. By now node-1b is drained, node-1c and node-1d are not cordoned yet, and all three wait.
    world.until(|wait| matches!(&wait.reason, WaitReason::Retry { instance, .. } if instance == "node-1b"));
    let group = world.groups.get_mut("node-1").unwrap();
    group.launches = false;
    group.machines.retain(|machine| machine.id != "node-1e");
    let died = world.now;
    world.until(|wait| wait.at.duration_since(died) > SignedDuration::from_mins(1));
    let cordoned = |action: &Action| matches!(action, Action::Cordon { .. });
    assert_eq!(world.done.iter().filter(|action| cordoned(action)).count(), 3, "{}", world.trace());
    assert!(!world.machine("node-1d").cordoned);
    world.groups.get_mut("node-1").unwrap().launches = true;
    world.launch("node-1");
    assert!(is_done(&world.run()));
    assert_eq!((world.left_in("node-1"), world.scars()), (0, vec![]));
}

#[test]
fn what_could_not_be_drained_counts_as_missing() {
    let options = RollOptions {
        wait_for_replacement: true,
        validate_count: 0,
        validation_timeout: SignedDuration::from_mins(15),
        fail_on_drain_error: true,
        ..as_kops()
    };
    let mut world = World::single(options, "node-1", Role::Node, 5, 5);
    world.cluster.rolling_update = settings(0, Some(3));
    world.refuse = each_once([
        ("exclude", "node-1b", Refusal::Permanent),
        ("cordon", "node-1c", Refusal::Transient),
        ("cordon", "node-1d", Refusal::Transient),
    ]);
    // The first one went alone. By now node-1b is given up and still cordoned, node-1c and node-1d are not cordoned yet.
    world.until(|wait| matches!(&wait.reason, WaitReason::Retry { instance, .. } if instance == "node-1c"));
    let group = world.groups.get_mut("node-1").unwrap();
    group.launches = false;
    group.machines.retain(|machine| machine.id != "node-1e");
    assert!(!is_done(&world.run()), "{}", world.trace());
    let cordoned = |id: &str| world.done.iter().any(|action| matches!(action, Action::Cordon { node } if node.contains(id)));
    assert_eq!(["node-1b", "node-1c", "node-1d"].map(cordoned), [true, true, false], "{}", world.trace());
    assert_eq!(world.scars(), Vec::<String>::new());
}

#[test]
fn a_cluster_that_does_not_validate_is_looked_at_ever_less_often() {
    let options = RollOptions { wait_for_replacement: true, validate_count: 1, ..as_kops() };
    let mut world = World::single(RollOptions { validation_timeout: SignedDuration::from_mins(3), ..options }, "node-1", Role::Node, 2, 1);
    world.groups.get_mut("node-1").unwrap().launches = false;
    assert!(reason(&world.run()).contains("has 1 of 2 instances in service"));
    let since = world.instance("node-1a").terminated.unwrap();
    let looks = world.events.iter().filter(|event| matches!(event.what, What::ValidationFailed { .. }));
    let looks: Vec<_> = looks.map(|event| event.at.duration_since(since).as_secs()).collect();
    assert_eq!(looks, [0, 5, 10, 20, 40, 70, 100, 130, 160, 180]);
}

#[test]
fn what_only_the_nodes_tell_is_reported_though_the_api_is_away_in_the_end() {
    let mut world = World::single(RollOptions { suspend_rebalance: true, ..as_kops() }, "node-1", Role::Node, 2, 0);
    world.cluster.groups[0].rolling_update.drain_and_terminate = Some(false);
    // Suspended, tainted; killed before `AZRebalance` is resumed.
    world.kill = Some(Kill::Before(3));
    world.machine("node-1a").needs_update = true;
    let mut looks = 0;
    world.say = Box::new(move |_, _| {
        looks += 1;
        if looks > 1 { Err("connection refused".to_owned()) } else { Ok(()) }
    });
    let Outcome::Done { still_need_update } = world.run() else { panic!() };
    assert_eq!(still_need_update.iter().map(|left| left.instance.as_str()).collect::<Vec<_>>(), ["node-1a"]);
}
