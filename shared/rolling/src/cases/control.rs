//! What Kopsline adds: the baseline, `AZRebalance`, the quorum, what is given back, pauses, windows and aborts.

use jiff::{SignedDuration, Timestamp};

use super::world::*;
use crate::{
    Action, Answer, Choice, FailureKind, GroupPhase, LeftoverReason, Outcome, PauseAfter, Refusal, Role, RollOptions, RollState,
    StartError, WaitReason, What, classify, preview,
};

/// Kopsline's own options, but for the pauses.
fn options() -> RollOptions {
    let zero = SignedDuration::ZERO;
    RollOptions {
        bastion_interval: zero,
        control_plane_interval: zero,
        node_interval: zero,
        post_drain_delay: zero,
        validate_count: 1,
        ..RollOptions::default()
    }
}

fn node_1(old: u32) -> World {
    World::single(options(), "node-1", Role::Node, 3, old)
}

fn minutes(minutes: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH.saturating_add(SignedDuration::from_mins(minutes)).unwrap()
}

#[test]
fn failures_that_were_there_before_do_not_block_and_are_told() {
    let mut world = node_1(2);
    world.say = always_fails();
    assert!(is_done(&world.run()));
    let state = world.state.as_ref().unwrap();
    let [failure] = &state.baseline.as_deref().unwrap() else { panic!() };
    assert_eq!((failure.kind, failure.name.as_str()), (FailureKind::Pod, "kube-system/coredns"));
    assert!(world.events.iter().any(|event| matches!(&event.what, What::Baseline { failures } if failures.len() == 1)));
    assert!(world.trace().starts_with("V+ T2"));
}

#[test]
fn a_failure_that_is_new_blocks_in_spite_of_the_baseline() {
    let mut world = node_1(2);
    world.say = Box::new(|groups, facts| {
        facts.pods.push(critical_pod());
        if groups["node-1"].machines.iter().any(|machine| machine.id.contains("new")) {
            let mut other = critical_pod();
            other.name = "dns-controller".to_owned();
            facts.pods.push(other);
        }
        Ok(())
    });
    let outcome = world.run();
    assert!(reason(&outcome).contains("\"dns-controller\" is pending") && !reason(&outcome).contains("coredns"), "{outcome:?}");
    assert_eq!((world.left_in("node-1"), world.scars()), (2, vec![]));
}

#[test]
fn the_baseline_never_covers_the_control_plane() {
    let mut world = World::standard(options(), 3, 0, 0, 0);
    world.say = not_ready("master-1b.local");
    assert!(reason(&world.run()).contains("master-1b.local"));
    assert_eq!(world.trace().matches("V+").count(), 0);

    let mut world = World::standard(options(), 3, 0, 0, 0);
    world.groups.get_mut("master-1").unwrap().desired = 3;
    assert!(reason(&world.run()).contains(r#"InstanceGroup "master-1" did not have enough nodes 2 vs 3"#));
}

#[test]
fn a_group_that_was_short_before_is_rolled_but_never_gets_shorter() {
    let mut world = node_1(3);
    world.groups.get_mut("node-1").unwrap().desired = 4;
    world.groups.get_mut("node-1").unwrap().launches = false;
    let outcome = world.run();
    assert!(reason(&outcome).contains("did not have enough nodes 2 vs 4"), "{outcome:?}");
    assert_eq!(world.left_in("node-1"), 2);

    let mut world = node_1(3);
    world.groups.get_mut("node-1").unwrap().desired = 4;
    // Each loss is made good, the old shortage never.
    world.say = Box::new(|_, _| Ok(()));
    for group in world.groups.values_mut() {
        group.launches = false;
    }
    let mut seen = 0;
    let outcome = loop {
        if let Some(outcome) = world.step() {
            break outcome;
        }
        let lost = 3 - world.left_in("node-1");
        if lost > seen {
            seen = lost;
            let group = world.groups.get_mut("node-1").unwrap();
            let mut new = group.machines[0].clone();
            (new.id, new.old, new.tainted) = (format!("node-1new{seen}"), false, false);
            group.machines.push(new);
        }
    };
    assert!(is_done(&outcome), "{outcome:?}");
    assert_eq!((world.left_in("node-1"), world.roll_of("node-1").lacking), (0, 1));
}

#[test]
fn rebalancing_is_suspended_before_the_first_instance_and_resumed_at_the_end() {
    let mut world = World::standard(options(), 2, 0, 0, 0);
    assert!(is_done(&world.run()));
    assert!(
        matches!(world.done.first(), Some(Action::SuspendRebalance { auto_scaling_group }) if auto_scaling_group == "node-1.test.k8s.local")
    );
    assert!(matches!(world.done.last(), Some(Action::ResumeRebalance { .. })));
    assert_eq!(world.scars(), [""; 0]);
}

#[test]
fn what_somebody_else_suspended_stays_suspended() {
    let mut world = node_1(2);
    world.groups.get_mut("node-1").unwrap().suspended.insert("AZRebalance".to_owned());
    assert!(is_done(&world.run()));
    assert!(!world.done.iter().any(|action| matches!(action, Action::SuspendRebalance { .. } | Action::ResumeRebalance { .. })));
    assert_eq!(world.scars(), ["node-1: AZRebalance"]);
}

#[test]
fn rebalancing_is_resumed_however_the_group_ends() {
    let mut failing = node_1(2);
    failing.groups.get_mut("node-1").unwrap().launches = false;
    assert!(matches!(failing.run(), Outcome::Failed { .. }));
    assert_eq!(failing.scars(), [""; 0]);

    let mut disabled = node_1(2);
    disabled.cluster.rolling_update.drain_and_terminate = Some(false);
    disabled.run();
    assert_eq!(disabled.scars(), ["node-1a: tainted", "node-1b: tainted"], "as in kOps; but the process is resumed");
}

#[test]
fn a_process_that_cannot_be_suspended_stops_nothing_and_one_that_cannot_be_resumed_is_told() {
    let mut world = node_1(1);
    world.refuse =
        Box::new(|command| matches!(command.action, Action::SuspendRebalance { .. }).then(|| refusal(Refusal::Permanent, "AccessDenied")));
    assert!(is_done(&world.run()));
    assert!(world.events.iter().any(|event| matches!(&event.what, What::Refused { message, .. } if message == "AccessDenied")));
    let mut world = node_1(1);
    world.refuse =
        Box::new(|command| matches!(command.action, Action::ResumeRebalance { .. }).then(|| refusal(Refusal::Permanent, "AccessDenied")));
    assert_eq!(reason(&world.run()), "instance group \"node-1\": could not resume AZRebalance node-1.test.k8s.local: AccessDenied");
    assert_eq!(world.left_in("node-1"), 2);
}

/// The first call suspends it, and its answer is lost; the next ones are refused.
#[test]
fn a_process_that_may_be_suspended_is_resumed() {
    let mut world = node_1(1);
    let mut calls = 0;
    world.refuse = Box::new(move |command| {
        calls += i32::from(matches!(command.action, Action::SuspendRebalance { .. }));
        (matches!(command.action, Action::SuspendRebalance { .. }) && calls > 1).then(|| refusal(Refusal::Permanent, "AccessDenied"))
    });
    world.kill = Some(Kill::After(1));
    // The cloud does not show it yet.
    world.look();
    world.groups.get_mut("node-1").unwrap().suspended.clear();
    world.look();
    world.groups.get_mut("node-1").unwrap().suspended.insert("AZRebalance".to_owned());
    assert!(is_done(&world.run()));
    assert_eq!(world.scars(), [""; 0]);
}

#[test]
fn no_control_plane_instance_is_started_beside_a_weak_one() {
    let mut world = World::new(RollOptions { fail_on_validate_error: false, ..options() });
    world.add(spec("master-a", Role::ControlPlane), 1, 1);
    world.add(spec("master-b", Role::ControlPlane), 2, 0);
    world.machine("master-ba").ready = false;
    let outcome = world.run();
    assert!(reason(&outcome).contains("control-plane member master-ba is not in service and ready"), "{outcome:?}");
    assert!(!world.trace().contains("dr"), "{}", world.trace());
}

#[test]
fn a_drained_control_plane_instance_is_not_terminated_when_another_member_is_lost_meanwhile() {
    let mut world = World::single(options(), "master-1", Role::ControlPlane, 3, 1);
    world.pod("master-1a", "slow");
    world.grace.insert("slow".to_owned(), 60);
    world.until(|wait| matches!(wait.reason, WaitReason::Drain { .. }));
    world.machine("master-1c").ready = false;
    let wait = world.until(|wait| matches!(wait.reason, WaitReason::Validation { .. }));
    assert_eq!(wait.reason.to_string(), "the cluster to validate for master-1: control-plane member master-1c is not in service and ready");
    world.machine("master-1c").ready = true;
    assert!(is_done(&world.run()));

    let mut world = World::single(options(), "master-1", Role::ControlPlane, 3, 1);
    world.until(|wait| matches!(wait.reason, WaitReason::News { .. } | WaitReason::Drain { .. }));
    world.machine("master-1c").ready = false;
    assert!(reason(&world.run()).contains("master-1a is drained, but was not terminated"));
    assert_eq!((world.left_in("master-1"), world.scars()), (3, vec![]));
}

#[test]
fn an_aborted_roll_gives_back_what_it_did_not_replace() {
    let mut world = node_1(3);
    world.cluster.rolling_update = settings(0, Some(2));
    world.machine("node-1c").cordoned = true;
    for instance in ["node-1a", "node-1b"] {
        world.pod(instance, &format!("slow-{instance}"));
        world.grace.insert(format!("slow-{instance}"), 1_000);
    }
    world.until(|wait| matches!(wait.reason, WaitReason::Drain { .. }));
    assert!(!world.scars().is_empty());
    world.control.aborted = Some("ann: wrong image".to_owned());
    let outcome = world.run();
    assert_eq!(outcome, Outcome::Aborted { reason: "ann: wrong image".to_owned() });
    assert_eq!(world.scars(), ["node-1c: cordoned"], "which somebody else did");
    assert_eq!(world.left_in("node-1"), 3);
    let state = world.state.as_ref().unwrap();
    assert!(state.finished.is_some() && state.questions.is_empty());
    assert!(matches!(state.groups[0].phase, GroupPhase::Failed { .. }));
    assert!(world.events.iter().any(|event| matches!(event.what, What::Unwinding { .. })));
}

#[test]
fn an_abort_before_anything_began_touches_nothing() {
    let mut world = World::standard(options(), 3, 3, 2, 1);
    world.control.aborted = Some("ann".to_owned());
    assert!(matches!(world.run(), Outcome::Aborted { .. }));
    assert!(world.done.is_empty());
}

#[test]
fn an_abort_finds_out_what_became_of_a_termination() {
    for (kill, left) in [(Kill::Before as fn(usize) -> Kill, 3), (Kill::After, 2)] {
        let mut world = node_1(2);
        // The calls before: one suspends, two taint, three prepare.
        world.kill = Some(kill(7));
        while world.executed < 7 {
            world.step();
        }
        assert!(matches!(world.instance("node-1a").phase, crate::InstancePhase::Terminating { .. }));
        world.control.aborted = Some("ann".to_owned());
        assert!(matches!(world.run(), Outcome::Aborted { .. }));
        assert_eq!((world.left_in("node-1"), world.scars()), (left, vec![]), "what was not done is not done any more");
    }
}

#[test]
fn an_abort_does_not_believe_a_list_that_may_be_late() {
    let mut world = node_1(2);
    let listed = world.machine("node-1a").clone();
    world.kill = Some(Kill::After(7));
    while world.executed < 7 {
        world.step();
    }
    world.groups.get_mut("node-1").unwrap().machines.push(listed);
    world.control.aborted = Some("ann".to_owned());
    assert_eq!(world.step(), None, "it looks again");
    world.groups.get_mut("node-1").unwrap().machines.retain(|machine| machine.id != "node-1a");
    assert!(matches!(world.run(), Outcome::Aborted { .. }));
    assert!(world.instance("node-1a").terminated.is_some());
}

#[test]
fn what_cannot_be_given_back_is_told() {
    let mut world = node_1(2);
    world.pod("node-1a", "slow");
    world.grace.insert("slow".to_owned(), 1_000);
    world.until(|wait| matches!(wait.reason, WaitReason::Drain { .. }));
    world.control.aborted = Some("ann".to_owned());
    world.refuse = Box::new(|command| match &command.action {
        Action::Uncordon { .. } => Some(refusal(Refusal::Permanent, "Forbidden")),
        _ => None,
    });
    assert_eq!(reason(&world.run()), "ann; could not uncordon node-1a: Forbidden");
    assert_eq!(world.scars(), ["node-1a: cordoned"]);
}

#[test]
fn a_pause_starts_nothing_new_and_finishes_what_is_in_flight() {
    let mut world = node_1(3);
    world.pod("node-1a", "slow");
    world.grace.insert("slow".to_owned(), 30);
    world.until(|wait| matches!(wait.reason, WaitReason::Drain { .. }));
    world.control.paused = true;
    let wait = world.until(|wait| wait.reason == WaitReason::Paused);
    assert_eq!(wait.reason.to_string(), "somebody to resume the roll");
    for _ in 0..20 {
        assert_eq!(world.step(), None);
    }
    assert_eq!((world.left_in("node-1"), world.trace().matches("st ").count()), (2, 1));
    world.control.paused = false;
    assert!(is_done(&world.run()));
}

#[test]
fn a_pause_holds_back_groups_taints_warm_pools_and_the_surge() {
    let mut world = World::standard(options(), 3, 3, 2, 1);
    world.control.paused = true;
    for _ in 0..10 {
        assert_eq!(world.step(), None);
    }
    assert!(world.done.is_empty());
}

#[test]
fn a_closed_window_is_waited_for() {
    let mut world = node_1(3);
    world.control.closed_until = Some(minutes(120));
    let wait = world.until(|wait| matches!(wait.reason, WaitReason::Closed { .. }));
    assert_eq!(wait.reason.to_string(), "the change window, which is closed until 1970-01-01T02:00:00Z");
    assert!(is_done(&world.run()));
    assert!(world.roll_of("node-1").started.unwrap() >= minutes(120));
}

#[test]
fn a_roll_that_was_paused_for_long_looks_again_before_it_goes_on() {
    let mut world = node_1(3);
    let mut paused = false;
    while world.left_in("node-1") == 3 {
        world.step();
    }
    world.control.paused = true;
    for _ in 0..30 {
        world.step();
    }
    paused |= world.wait.as_ref().is_some_and(|wait| wait.reason == WaitReason::Paused);
    assert!(paused);
    world.say = always_fails();
    world.control.paused = false;
    assert!(reason(&world.run()).contains("coredns"));
    assert_eq!(world.left_in("node-1"), 2);
}

#[test]
fn the_roll_pauses_once_after_so_many_per_cent() {
    let mut world = World::standard(RollOptions { pause_after: Some(PauseAfter::Percent(30)), ..options() }, 3, 3, 0, 0);
    let wait = world.until(|wait| matches!(wait.reason, WaitReason::Question { .. }));
    assert_eq!(wait.reason.to_string(), "an answer to question checkpoint: 2 of 6 instances are replaced; go on?");
    assert_eq!(world.left_in("node-1"), 1);
    for _ in 0..100 {
        assert_eq!(world.step(), None, "it waits for approval");
    }
    world.control.answers.push(Answer { question: "checkpoint".to_owned(), choice: Choice::Continue, by: "ann".to_owned() });
    assert!(is_done(&world.run()));
}

#[test]
fn the_pause_may_end_by_itself() {
    let pause_for = Some(SignedDuration::from_hours(1));
    let mut world = World::standard(RollOptions { pause_after: Some(PauseAfter::Percent(50)), pause_for, ..options() }, 2, 2, 0, 0);
    assert!(is_done(&world.run()));
    assert!((3600..3700).contains(&world.now.as_second()), "{}", world.now);
}

#[test]
fn the_first_of_each_group_is_alone_and_looked_at() {
    let options = RollOptions { pause_after: Some(PauseAfter::FirstOfEachGroup), ..options() };
    let mut world = World::standard(options, 3, 2, 0, 0);
    world.cluster.rolling_update = settings(0, Some(3));
    for (group, left) in [("node-1", 2), ("node-2", 2)] {
        let id = format!("checkpoint-{group}");
        world.until(|wait| matches!(&wait.reason, WaitReason::Question { id: open, .. } if *open == id));
        assert_eq!(world.left_in(group), left);
        world.control.answers.push(Answer { question: id, choice: Choice::Continue, by: String::new() });
    }
    assert!(is_done(&world.run()));
}

#[test]
fn an_answer_may_stop_the_roll_at_a_checkpoint() {
    let mut world = World::standard(RollOptions { pause_after: Some(PauseAfter::Percent(30)), ..options() }, 3, 3, 0, 0);
    world.control.answers.push(Answer { question: "checkpoint".to_owned(), choice: Choice::Abort, by: "ann".to_owned() });
    assert_eq!(world.run(), Outcome::Aborted { reason: "ann answered question checkpoint with abort".to_owned() });
    assert_eq!((world.left()[..2].to_vec(), world.scars()), (vec![1, 3], vec![]));
}

#[test]
fn only_instances_of_the_approved_preview_are_touched() {
    let mut world = node_1(3);
    let (raw, _) = world.raw();
    let mut approved = preview(&classify(&raw, &world.cluster).unwrap(), &world.options.selection, false).unwrap();
    approved.rows[0].replace.retain(|replacement| replacement.id != "node-1b");
    let inventory = classify(&raw, &world.cluster).unwrap();
    world.state = Some(RollState::start(&inventory, options(), world.now, Some(&approved)).unwrap());
    let Outcome::Done { still_need_update } = world.run() else { panic!() };
    let left: Vec<_> = still_need_update.iter().map(|left| (left.instance.as_str(), left.why)).collect();
    assert_eq!((left, world.left_in("node-1")), (vec![("node-1b", LeftoverReason::NotApproved)], 1));
    assert!(!world.done.contains(&Action::Taint { node: "node-1b.local".to_owned() }));
}

#[test]
fn a_roll_without_a_kubernetes_api_must_say_so() {
    let mut world = node_1(3);
    let (mut raw, _) = world.raw();
    raw.kubernetes = None;
    let inventory = classify(&raw, &world.cluster).unwrap();
    let error = RollState::start(&inventory, options(), world.now, None).unwrap_err();
    assert!(matches!(error, StartError::NoKubernetes));
    assert!(RollState::start(&inventory, RollOptions { cloudonly: true, ..options() }, world.now, None).is_ok());
}

#[test]
fn a_replacement_that_never_joins_fails_the_roll_by_name() {
    let mut world = World::standard(options(), 3, 3, 0, 0);
    world.until(|wait| matches!(wait.reason, WaitReason::News { .. }));
    world.groups.get_mut("node-1").unwrap().launches = false;
    while world.left_in("node-1") == 3 {
        world.step();
    }
    // The group launches it, but it never becomes a node.
    world.groups.get_mut("node-1").unwrap().launches = true;
    world.launch("node-1");
    let new = world.groups["node-1"].machines.last().unwrap().id.clone();
    world.machine(&new).joined = false;
    let wait = world.until(|wait| matches!(wait.reason, WaitReason::Validation { .. }));
    assert_eq!(wait.reason.to_string(), format!("the cluster to validate for node-1: machine {new:?} has not yet joined cluster"));
    assert_eq!(
        reason(&world.run()),
        format!(
            "instance group \"node-1\": the cluster did not validate within 15m after terminating node-1a (node node-1a.local): \
             machine {new:?} has not yet joined cluster; nothing further was touched"
        )
    );
    assert_eq!((world.left()[..2].to_vec(), world.scars()), (vec![2, 3], vec![]));
}

#[test]
fn a_group_that_launches_nothing_is_explained() {
    let mut world = node_1(2);
    let group = world.groups.get_mut("node-1").unwrap();
    (group.launches, _) = (false, group.suspended.insert("Launch".to_owned()));
    let outcome = world.run();
    assert!(reason(&outcome).ends_with("; its Auto Scaling group has suspended processes: Launch"), "{outcome:?}");
}

/// Terminated instances stay in the cloud's answer for a while; kOps would take them for members.
#[test]
fn an_instance_that_is_about_to_go_is_no_member_even_if_the_cloud_lists_it() {
    let mut world = World::single(options(), "master-1", Role::ControlPlane, 3, 2);
    world.groups.get_mut("master-1").unwrap().launches = false;
    let outcome = world.run();
    assert_eq!(world.trace().matches("st ").count(), 1, "{}", world.trace());
    assert!(matches!(outcome, Outcome::Failed { .. }));
}
