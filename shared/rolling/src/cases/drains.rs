//! Drains, and what becomes of those that are stuck.

use jiff::SignedDuration;

use super::world::*;
use crate::{
    About, Action, Answer, Choice, GroupPhase, InstancePhase, LeftoverReason, Outcome, Owner, PodFacts, Refusal, Role, RollOptions,
    StuckDrain, WaitReason, What,
};

fn options() -> RollOptions {
    RollOptions {
        fail_on_drain_error: true,
        drain_timeout: SignedDuration::from_mins(15),
        validation_timeout: SignedDuration::from_mins(15),
        validate_count: 1,
        ..as_kops()
    }
}

/// Two old nodes and a new one; a pod on the first.
fn world(options: RollOptions) -> World {
    let mut world = World::single(options, "node-1", Role::Node, 3, 2);
    world.pod("node-1a", "web");
    world
}

/// The pod's budget expects two pods and wants one, but allows nothing at the moment.
fn blocked(options: RollOptions) -> World {
    let mut world = world(options);
    world.budget("web", 2, 0);
    world
}

/// The pod's budget wants its only pod.
fn hopeless(options: RollOptions) -> World {
    let mut world = world(options);
    world.budget("web", 1, 0);
    world
}

fn drains(wait: &crate::Until) -> bool {
    matches!(wait.reason, WaitReason::Drain { .. })
}

fn evictions(world: &World) -> Vec<String> {
    let evicted = |action: &Action| match action {
        Action::Evict { pod } => Some(pod.to_string()),
        _ => None,
    };
    world.done.iter().filter_map(evicted).collect()
}

#[test]
fn pods_are_evicted_but_those_that_stay() {
    let mut world = world(options());
    world.pod("node-1a", "bare");
    world.pod("node-1a", "cache").local_storage = true;
    world.pod("node-1a", "static").mirror = true;
    world.pod("node-1a", "agent").controller = Some(Owner { kind: "DaemonSet".to_owned(), name: "agent".to_owned() });
    world.pod("node-1a", "job").phase = "Succeeded".to_owned();
    world.pod("node-1b", "elsewhere");
    assert!(is_done(&world.run()));
    assert_eq!(evictions(&world), ["shop/web", "shop/bare", "shop/cache", "shop/elsewhere"]);
    let order: Vec<_> =
        world.done.iter().map(|action| serde_json::to_value(action).unwrap()["action"].as_str().unwrap().to_owned()).collect();
    let first: Vec<_> = order.iter().map(String::as_str).skip(2).take(7).collect();
    assert_eq!(first, ["cordon", "exclude_from_load_balancers", "deregister", "evict", "evict", "evict", "terminate"]);
    let instance = world.instance("node-1a");
    assert!(instance.started <= instance.cordoned && instance.cordoned < instance.drained && instance.drained <= instance.terminated);
    assert!(instance.replaced.is_some());
}

#[test]
fn the_delay_after_a_drain_is_kept() {
    let mut world = World::single(RollOptions { post_drain_delay: SignedDuration::from_secs(30), ..options() }, "node-1", Role::Node, 2, 1);
    let wait = world.until(|wait| matches!(wait.reason, WaitReason::PostDrainDelay { .. }));
    assert_eq!(wait.at.as_millisecond(), 30_100, "a moment for a fresh look after the cordon");
    assert!(is_done(&world.run()));
    let instance = world.instance("node-1a");
    assert_eq!(instance.terminated.unwrap().duration_since(instance.drained.unwrap()), SignedDuration::from_secs(30));
}

#[test]
fn a_pod_that_a_budget_holds_is_tried_again_until_it_may_go() {
    let mut world = blocked(options());
    let wait = world.until(|wait| matches!(&wait.reason, WaitReason::Drain { budget: Some(_), .. }));
    assert_eq!(
        wait.reason.to_string(),
        "1 pod to leave node node-1a.local (node-1a of node-1); shop/web is held by PodDisruptionBudget shop/web-budget"
    );
    world.step();
    world.step();
    world.budgets[0].disruptions_allowed = 1;
    assert!(is_done(&world.run()));
    let told = world.events.iter().filter(|event| matches!(event.what, What::Refused { .. })).count();
    assert_eq!(told, 1, "that a budget holds a pod is told once");
}

#[test]
fn a_pod_that_comes_later_and_tolerates_the_cordon_is_not_waited_for() {
    let mut world = world(options());
    world.grace.insert("web".to_owned(), 200);
    world.until(drains);
    let created = Some(world.now.saturating_add(SignedDuration::from_mins(3)).unwrap());
    let pod = world.pod("node-1a", "late");
    (pod.created, pod.phase) = (created, "Running".to_owned());
    assert!(is_done(&world.run()));
    assert_eq!(evictions(&world), ["shop/web"]);
}

#[test]
fn another_pod_of_the_same_name_on_another_node_is_not_waited_for() {
    let mut world = world(options());
    world.until(drains);
    world.pods.clear();
    let pod = world.pod("node-1c", "web");
    pod.uid = "another".to_owned();
    assert!(is_done(&world.run()));
}

#[test]
fn a_drain_that_takes_too_long_stops_the_group_and_names_pod_and_budget() {
    let mut world = blocked(options());
    let outcome = world.run();
    assert_eq!(
        reason(&outcome),
        "instance group \"node-1\": node node-1a.local (node-1a) could not be drained: \
         PodDisruptionBudget shop/web-budget does not allow the eviction of pod shop/web"
    );
    assert!((900..920).contains(&world.now.as_second()), "{}", world.now);
    assert_eq!((world.left_in("node-1"), world.scars()), (3, vec![]));
    assert!(matches!(world.instance("node-1a").phase, InstancePhase::Failed { .. }));
}

#[test]
fn a_drain_without_a_timeout_goes_on() {
    let mut world = blocked(RollOptions { drain_timeout: SignedDuration::ZERO, ..options() });
    for _ in 0..1_000 {
        assert_eq!(world.step(), None);
    }
    assert!(world.now.as_second() > 4_000);
    world.budgets.clear();
    assert!(is_done(&world.run()));
}

#[test]
fn a_budget_that_can_never_allow_it_is_found_out_at_once() {
    let mut world = hopeless(options());
    assert_eq!(
        reason(&world.run()),
        "instance group \"node-1\": node node-1a.local (node-1a) could not be drained: PodDisruptionBudget shop/web-budget does not \
         allow the eviction of pod shop/web and never will: minAvailable 1 leaves no room with its only pod"
    );
    assert!(world.now.as_second() < 10);

    let mut world = hopeless(RollOptions { detect_hopeless_budgets: false, ..options() });
    world.run();
    assert!(world.now.as_second() >= 900, "as kOps does");

    let mut world = hopeless(options());
    world.pods[0].ready = false;
    world.run();
    assert!(world.now.as_second() >= 900, "the budget does not count a pod that is not healthy");
}

#[test]
fn two_budgets_for_one_pod_never_let_it_go() {
    let mut world = blocked(options());
    world.budget("web", 2, 1);
    world.budgets[1].name = "other".to_owned();
    assert!(reason(&world.run()).contains("more than one PodDisruptionBudget covers the pod"));
}

#[test]
fn without_fail_on_drain_error_the_pods_are_deleted_and_the_instance_terminated() {
    for forced in
        [RollOptions { fail_on_drain_error: false, ..options() }, RollOptions { on_stuck_drain: Some(StuckDrain::Force), ..options() }]
    {
        let mut world = hopeless(forced);
        assert!(is_done(&world.run()));
        assert!(world.done.contains(&Action::DeletePod { pod: world_pod("web") }));
        assert_eq!(world.left_in("node-1"), 1);
    }
}

fn world_pod(name: &str) -> crate::PodRef {
    crate::PodRef { namespace: "shop".to_owned(), name: name.to_owned(), uid: format!("uid-{name}") }
}

#[test]
fn a_forced_pod_that_does_not_end_goes_down_with_its_instance() {
    let mut world = hopeless(RollOptions { on_stuck_drain: Some(StuckDrain::Force), ..options() });
    world.grace.insert("web".to_owned(), 100_000);
    assert!(is_done(&world.run()));
    let instance = world.instance("node-1a");
    assert_eq!(instance.drained.unwrap().duration_since(instance.cordoned.unwrap()).as_secs() / 10, 6, "after a minute");
}

#[test]
fn a_skipped_instance_is_left_as_it_was_and_reported() {
    let mut world = hopeless(RollOptions { on_stuck_drain: Some(StuckDrain::Skip), ..options() });
    let Outcome::Done { still_need_update } = world.run() else { panic!() };
    assert_eq!(
        still_need_update.iter().map(|left| (left.instance.as_str(), left.why)).collect::<Vec<_>>(),
        [("node-1a", LeftoverReason::Skipped)]
    );
    assert!(matches!(&world.instance("node-1a").phase, InstancePhase::Skipped { why } if why.contains("shop/web-budget")));
    assert_eq!((world.scars(), world.left_in("node-1")), (vec![], 2));
    assert_eq!(world.roll_of("node-1").phase, GroupPhase::Done);
    assert_eq!(world.state.as_ref().unwrap().summary().skipped, 1);
}

fn asking() -> RollOptions {
    RollOptions { on_stuck_drain: Some(StuckDrain::Ask), ..options() }
}

fn answer(question: &str, choice: Choice) -> Answer {
    Answer { question: question.to_owned(), choice, by: "ann".to_owned() }
}

fn asks(wait: &crate::Until) -> bool {
    matches!(wait.reason, WaitReason::Question { .. })
}

#[test]
fn a_question_names_what_is_stuck_and_what_may_be_answered() {
    let mut world = hopeless(asking());
    let wait = world.until(asks);
    let state = world.state.clone().unwrap();
    let [question] = &state.questions[..] else { panic!("{:?}", state.questions) };
    assert_eq!((question.id.as_str(), question.group.as_str()), ("drain-node-1a-1", "node-1"));
    assert_eq!(question.choices(), [Choice::Wait, Choice::Skip, Choice::Force, Choice::Fail, Choice::Abort]);
    assert_eq!(question.default, Some(Choice::Fail));
    assert_eq!(question.deadline.unwrap().duration_since(question.asked), SignedDuration::from_hours(1));
    let About::StuckDrain { instance, node, pod, budget, remaining, hopeless } = &question.about else { panic!() };
    assert_eq!((instance.as_str(), node.as_str(), *remaining), ("node-1a", "node-1a.local", 1));
    assert_eq!((pod.as_deref(), budget.as_deref()), (Some("shop/web"), Some("shop/web-budget")));
    assert!(hopeless.is_some());
    assert_eq!(
        wait.reason.to_string(),
        "an answer to question drain-node-1a-1: the drain of node node-1a.local (node-1a of node-1) is stuck on pod shop/web, whose \
         PodDisruptionBudget shop/web-budget does not allow its eviction and never will: minAvailable 1 leaves no room with its only pod"
    );
}

#[test]
fn the_deadline_of_a_question_decides_as_fail_on_drain_error_says() {
    let mut world = hopeless(asking());
    assert!(matches!(world.run(), Outcome::Failed { .. }));
    assert!((3600..3620).contains(&world.now.as_second()));
    let mut world = hopeless(RollOptions { fail_on_drain_error: false, ..asking() });
    assert!(is_done(&world.run()));
}

#[test]
fn answers_are_carried_out() {
    let cases: [(Choice, fn(&Outcome) -> bool, usize); 4] = [
        (Choice::Skip, |outcome| matches!(outcome, Outcome::Done { still_need_update } if still_need_update.len() == 1), 2),
        (Choice::Force, is_done, 1),
        (Choice::Fail, |outcome| matches!(outcome, Outcome::Failed { .. }), 3),
        (
            Choice::Abort,
            |outcome| matches!(outcome, Outcome::Aborted { reason } if reason == "ann answered question drain-node-1a-1 with abort"),
            3,
        ),
    ];
    for (choice, ends, left) in cases {
        let mut world = hopeless(asking());
        world.until(asks);
        world.control.answers.push(answer("drain-node-1a-1", Choice::Continue));
        world.step();
        assert_eq!(world.state.as_ref().unwrap().questions.len(), 1, "what is not offered is no answer");
        world.control.answers = vec![answer("drain-node-1a-1", choice)];
        let outcome = world.run();
        assert!(ends(&outcome), "{choice}: {outcome:?}");
        assert_eq!((world.left_in("node-1"), world.scars()), (left, vec![]), "{choice}");
        assert!(
            world
                .events
                .iter()
                .any(|event| matches!(&event.what, What::Decided { choice: made, by, .. } if *made == choice && by == "ann"))
        );
        assert!(world.state.unwrap().questions.is_empty());
    }
}

#[test]
fn to_wait_is_to_wait_for_another_timeout_and_to_be_asked_again() {
    let mut world = blocked(asking());
    let first = world.until(asks).at;
    world.control.answers.push(answer("drain-node-1a-1", Choice::Wait));
    let second = world.until(|wait| matches!(&wait.reason, WaitReason::Question { id, .. } if id == "drain-node-1a-2")).at;
    assert!((900..940).contains(&second.duration_since(first).as_secs()), "{}", second.duration_since(first));
    world.control.answers.push(answer("drain-node-1a-2", Choice::Skip));
    assert!(matches!(world.run(), Outcome::Done { .. }));
}

#[test]
fn a_question_that_solves_itself_is_withdrawn() {
    let mut world = blocked(asking());
    world.until(asks);
    world.budgets[0].disruptions_allowed = 1;
    assert!(is_done(&world.run()));
    assert!(world.events.iter().any(|event| matches!(&event.what, What::Withdrawn { question } if question == "drain-node-1a-1")));
}

#[test]
fn a_refused_eviction_is_a_drain_error() {
    let forbid = || -> Box<dyn FnMut(&crate::Command) -> Option<crate::CommandError>> {
        Box::new(|command| matches!(command.action, Action::Evict { .. }).then(|| refusal(Refusal::Permanent, "Forbidden: pods/eviction")))
    };
    let mut world = world(options());
    world.refuse = forbid();
    assert_eq!(
        reason(&world.run()),
        "instance group \"node-1\": node node-1a.local (node-1a) could not be drained: pod shop/web: Forbidden: pods/eviction"
    );
    let mut lenient = self::world(RollOptions { fail_on_drain_error: false, ..options() });
    lenient.refuse = forbid();
    assert!(is_done(&lenient.run()));
}

#[test]
fn the_api_may_be_away_in_the_middle_of_a_drain() {
    let mut world = world(options());
    world.grace.insert("web".to_owned(), 60);
    world.until(drains);
    world.say = always_errors();
    let wait = world.until(|wait| matches!(wait.reason, WaitReason::Kubernetes { .. }));
    assert_eq!(wait.reason.to_string(), "the Kubernetes API to answer: connection refused");
    world.say = Box::new(|_, _| Ok(()));
    assert!(is_done(&world.run()));
}

#[test]
fn many_pods_are_named_by_one() {
    let mut world = World::single(options(), "node-1", Role::Node, 2, 1);
    for number in 0..100 {
        let name = format!("web-{number}");
        world.pod("node-1a", &name);
        world.grace.insert(name, 60);
    }
    let wait = world.until(drains);
    assert!(wait.reason.to_string().starts_with("100 pods to leave node node-1a.local (node-1a of node-1); shop/web-0 is one of them"));
    let size = world.state.as_ref().unwrap().to_json().unwrap().len();
    assert!(size < 4_000, "no list of pods: {size}");
    assert!(is_done(&world.run()));
}

#[test]
fn pods_of_other_namespaces_have_other_budgets() {
    let mut world = world(options());
    world.budget("web", 1, 0);
    world.budgets[0].namespace = "elsewhere".to_owned();
    assert!(is_done(&world.run()));
    assert!(!PodFacts { phase: "Failed".to_owned(), ..PodFacts::default() }.is_evictable());
}
