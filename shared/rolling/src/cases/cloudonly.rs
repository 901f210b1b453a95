//! The rows of kOps' own test suite (1.36 `pkg/instancegroups`) that apply without a Kubernetes API, and what the suite
//! leaves open. Instances are named after their group and a number; old ones come first.

use jiff::{SignedDuration, Timestamp};

use crate::properties::{Kill, drive};
use crate::sim::Simulation;
use crate::{
    Action, Command, CommandError, CommandResult, Control, Decision, GroupPhase, GroupSpec, IntOrString, Inventory, Manager, Observation,
    Origin, Outcome, Refusal, Role, RollOptions, RollState, RollingUpdate, Selection, WaitReason, classify, next,
};

fn spec(name: &str, role: Role) -> GroupSpec {
    GroupSpec { name: name.to_owned(), role, manager: Manager::CloudGroup, min_size: 1, rolling_update: RollingUpdate::default() }
}

/// kOps' standard groups, with so many old instances out of 3, 3, 2 and 1.
fn standard(node_1: u32, node_2: u32, master: u32, bastion: u32) -> Simulation {
    let mut sim = Simulation::new("test.k8s.local", 1);
    for (name, role, size, old) in [
        ("node-1", Role::Node, 3, node_1),
        ("node-2", Role::Node, 3, node_2),
        ("master-1", Role::ControlPlane, 2, master),
        ("bastion-1", Role::Bastion, 1, bastion),
    ] {
        sim.add_group(spec(name, role), old, size - old);
    }
    sim
}

fn group(name: &str, role: Role, old: u32, new: u32) -> Simulation {
    let mut sim = Simulation::new("test.k8s.local", 1);
    sim.add_group(spec(name, role), old, new);
    sim
}

fn roll(sim: &mut Simulation, options: &RollOptions) -> RollState {
    drive(sim, options, Kill::Never)
}

fn terminated(sim: &Simulation) -> Vec<&str> {
    sim.terminations.iter().map(|termination| termination.instance.as_str()).collect()
}

fn seconds(sim: &Simulation) -> Vec<i64> {
    sim.terminations.iter().map(|termination| termination.at.as_second()).collect()
}

fn done() -> Outcome {
    Outcome::Done { still_need_update: vec![] }
}

fn cloudonly() -> RollOptions {
    RollOptions { cloudonly: true, ..RollOptions::default() }
}

/// kOps' own pace: intervals only.
fn no_waiting() -> RollOptions {
    RollOptions { wait_for_replacement: false, ..cloudonly() }
}

const ALL_IN_ORDER: [&str; 9] =
    ["bastion-1-0", "master-1-0", "master-1-1", "node-1-0", "node-1-1", "node-1-2", "node-2-0", "node-2-1", "node-2-2"];

#[test]
fn row_3_all_need_update_cloudonly() {
    for options in [cloudonly(), no_waiting()] {
        let mut sim = standard(3, 3, 2, 1);
        assert_eq!(roll(&mut sim, &options).outcome, done());
        assert_eq!(terminated(&sim), ALL_IN_ORDER);
    }
}

#[test]
fn row_5_none_need_update() {
    let mut sim = standard(0, 0, 0, 0);
    let state = roll(&mut sim, &cloudonly());
    assert_eq!((state.outcome, state.groups.len(), sim.terminate_calls), (done(), 0, 0));
    assert_eq!(state.finished, Some(state.started), "it ends without waiting");
}

#[test]
fn row_6_none_need_update_with_force() {
    let mut sim = standard(0, 0, 0, 0);
    assert_eq!(roll(&mut sim, &RollOptions { force: true, ..cloudonly() }).outcome, done());
    assert_eq!(terminated(&sim), ALL_IN_ORDER, "and the replacements are left alone");
}

#[test]
fn row_7_no_groups() {
    let mut sim = Simulation::new("test.k8s.local", 1);
    assert_eq!(roll(&mut sim, &cloudonly()).outcome, done());
}

fn with_cluster_settings(mut sim: Simulation, settings: &RollingUpdate) -> Simulation {
    sim.cluster.rolling_update = settings.clone();
    sim
}

#[test]
fn row_29_disabled() {
    let mut sim =
        with_cluster_settings(standard(3, 3, 2, 1), &RollingUpdate { drain_and_terminate: Some(false), ..RollingUpdate::default() });
    let state = roll(&mut sim, &cloudonly());
    assert_eq!(sim.terminate_calls, 0);
    assert!(state.groups.iter().all(|group| group.phase == GroupPhase::Disabled));
    assert!(
        matches!(&state.outcome, Outcome::Done { still_need_update } if still_need_update.len() == 9),
        "they are reported: {:?}",
        state.outcome
    );
}

#[test]
fn row_41_only_warm_pool_instances() {
    let mut sim = group("node-1", Role::Node, 0, 3);
    sim.add_beside("node-1", 3, true);
    assert_eq!(roll(&mut sim, &cloudonly()).outcome, done());
    assert_eq!(terminated(&sim), ["node-1-wp-0", "node-1-wp-1", "node-1-wp-2"]);
    assert_eq!(seconds(&sim), [0, 0, 0], "at once");
}

#[test]
fn row_42_warm_pool_before_joined_instances() {
    let mut sim = group("node-1", Role::Node, 3, 0);
    sim.add_beside("node-1", 3, true);
    assert_eq!(roll(&mut sim, &cloudonly()).outcome, done());
    assert_eq!(terminated(&sim), ["node-1-wp-0", "node-1-wp-1", "node-1-wp-2", "node-1-0", "node-1-1", "node-1-2"]);
}

#[test]
fn disabled_groups_lose_their_old_warm_pool_even_so() {
    let mut sim = with_cluster_settings(
        group("node-1", Role::Node, 1, 0),
        &RollingUpdate { drain_and_terminate: Some(false), ..RollingUpdate::default() },
    );
    sim.add_beside("node-1", 1, true);
    roll(&mut sim, &cloudonly());
    assert_eq!(terminated(&sim), ["node-1-wp-0"]);
}

#[test]
fn detached_instances_come_last() {
    let mut sim = group("node-1", Role::Node, 2, 1);
    sim.add_beside("node-1", 1, false);
    let state = roll(&mut sim, &cloudonly());
    assert_eq!(terminated(&sim), ["node-1-0", "node-1-1", "node-1-dt-0"]);
    let detached = state.groups[0].instances.last().unwrap();
    assert_eq!((detached.origin, &detached.replaced), (Origin::Detached, &None));
}

#[test]
fn the_surge_stays_in_the_concurrency_and_the_first_instance_is_alone() {
    let settings =
        RollingUpdate { max_surge: Some(IntOrString::Int(2)), max_unavailable: Some(IntOrString::Int(1)), ..RollingUpdate::default() };
    let mut sim = with_cluster_settings(group("node-1", Role::Node, 7, 0), &settings);
    roll(&mut sim, &no_waiting());
    assert_eq!(seconds(&sim), [0, 15, 15, 15, 30, 30, 30]);

    let mut sim = with_cluster_settings(group("node-1", Role::Node, 6, 1), &settings);
    roll(&mut sim, &no_waiting());
    assert_eq!(seconds(&sim), [0, 0, 0, 15, 15, 15], "with an up-to-date instance the configuration has proven itself");
}

#[test]
fn the_control_plane_is_replaced_one_by_one_whatever_the_settings() {
    let settings =
        RollingUpdate { max_surge: Some(IntOrString::Int(2)), max_unavailable: Some(IntOrString::Int(3)), ..RollingUpdate::default() };
    let mut sim = with_cluster_settings(group("master-b", Role::ControlPlane, 3, 1), &settings);
    sim.add_group(spec("master-a", Role::ControlPlane), 1, 1);
    roll(&mut sim, &no_waiting());
    assert_eq!(terminated(&sim), ["master-a-0", "master-b-0", "master-b-1", "master-b-2"]);
    assert_eq!(seconds(&sim), [0, 15, 30, 45]);
}

#[test]
fn bastion_groups_are_rolled_side_by_side_and_before_the_rest() {
    let mut sim = group("bastion-b", Role::Bastion, 2, 0);
    sim.add_group(spec("bastion-a", Role::Bastion), 1, 0);
    sim.add_group(spec("api", Role::ApiServer), 1, 0);
    sim.add_group(spec("a-node", Role::Node), 1, 0);
    sim.add_group(spec("master", Role::ControlPlane), 1, 0);
    roll(&mut sim, &no_waiting());
    assert_eq!(terminated(&sim), ["bastion-a-0", "bastion-b-0", "bastion-b-1", "master-0", "api-0", "a-node-0"]);
    assert_eq!(seconds(&sim)[..3], [0, 0, 15]);
}

#[test]
fn intervals_are_those_of_the_role() {
    let mut sim = standard(2, 0, 2, 1);
    let options = RollOptions {
        bastion_interval: SignedDuration::from_secs(5),
        control_plane_interval: SignedDuration::from_secs(100),
        node_interval: SignedDuration::from_secs(20),
        ..no_waiting()
    };
    roll(&mut sim, &options);
    assert_eq!(seconds(&sim), [0, 5, 105, 205, 225]);
}

#[test]
fn only_selected_groups_are_rolled() {
    let mut sim = standard(3, 3, 2, 1);
    let options = RollOptions { selection: Selection { instance_groups: vec!["node-2".to_owned()], roles: vec![] }, ..cloudonly() };
    assert_eq!(roll(&mut sim, &options).outcome, done());
    assert_eq!(terminated(&sim), ["node-2-0", "node-2-1", "node-2-2"]);
    let mut sim = standard(3, 3, 2, 1);
    let options = RollOptions { selection: Selection { instance_groups: vec![], roles: vec![Role::Bastion] }, ..cloudonly() };
    roll(&mut sim, &options);
    assert_eq!(terminated(&sim), ["bastion-1-0"]);
}

#[test]
fn karpenter_groups_keep_the_interval_only() {
    let mut sim = Simulation::new("test.k8s.local", 1);
    sim.add_group(GroupSpec { manager: Manager::Karpenter, ..spec("spot", Role::Node) }, 2, 0);
    let state = roll(&mut sim, &RollOptions { force: true, ..cloudonly() });
    assert_eq!((state.outcome, seconds(&sim)), (done(), vec![0, 15]));
}

#[test]
fn the_next_instance_waits_for_the_replacement() {
    let mut sim = group("node-1", Role::Node, 2, 1);
    (sim.boot, sim.notice) = (SignedDuration::from_secs(60), SignedDuration::from_secs(20));
    let state = roll(&mut sim, &cloudonly());
    assert_eq!(seconds(&sim), [0, 81], "20 s to notice, 60 s to start; looked at after 15, 16, 17, 19, 23, 31 s and then every 10 s");
    let [first, second] = &state.groups[0].instances[..] else { panic!() };
    assert_eq!(first.replaced.as_ref().map(|replaced| (replaced.by.as_str(), replaced.at.as_second())), Some(("node-1-new1", 81)));
    assert_eq!(second.replaced.as_ref().map(|replaced| replaced.by.as_str()), Some("node-1-new2"));
    assert_eq!(first.terminated.map(Timestamp::as_second), Some(0));
}

#[test]
fn a_replacement_that_never_comes_fails_the_roll_and_nothing_further_is_touched() {
    let mut sim = standard(3, 3, 2, 0);
    sim.groups.get_mut("master-1").unwrap().launch_suspended = true;
    let state = roll(&mut sim, &cloudonly());
    let Outcome::Failed { reason } = &state.outcome else { panic!("{:?}", state.outcome) };
    assert_eq!(
        reason,
        "instance group \"master-1\" had 1 of 2 instances in service for 15m after terminating master-1-0; nothing further was touched; \
         its Auto Scaling group has suspended processes: Launch"
    );
    assert_eq!(terminated(&sim), ["master-1-0"]);
    assert_eq!(sim.now.as_second(), 15 + 15 * 60);
}

#[test]
fn an_incomplete_control_plane_is_not_touched_even_where_another_group_lacks_the_member() {
    let mut sim = group("master-a", Role::ControlPlane, 1, 0);
    sim.add_group(spec("master-b", Role::ControlPlane), 0, 2);
    let lame = sim.groups.get_mut("master-b").unwrap();
    (lame.launch_suspended, lame.instances[0].terminated_at) = (true, Some(Timestamp::UNIX_EPOCH));
    let options = RollOptions { selection: Selection { instance_groups: vec!["master-a".to_owned()], roles: vec![] }, ..cloudonly() };
    let state = roll(&mut sim, &options);
    assert!(
        matches!(&state.outcome, Outcome::Failed { reason } if reason.contains("\"master-b\" had 1 of 2") && reason.contains("before its first instance"))
    );
    assert_eq!(sim.terminate_calls, 0);
}

#[test]
fn a_broken_bastion_is_replaced_at_once() {
    let mut sim = group("bastion", Role::Bastion, 1, 0);
    sim.groups.get_mut("bastion").unwrap().instances[0].ready_at = Timestamp::MAX;
    assert_eq!(roll(&mut sim, &cloudonly()).outcome, done());
    assert_eq!(seconds(&sim), [0]);
}

/// A host that decides the result of each termination and keeps the cloud as it was.
struct Host {
    inventory: Inventory,
    state: RollState,
    now: Timestamp,
    control: Control,
}

impl Host {
    fn new(sim: &Simulation) -> Self {
        let inventory = classify(&sim.answer(), &sim.cluster).unwrap();
        let state = RollState::start(&inventory, no_waiting(), sim.now, None).unwrap();
        Self { inventory, state, now: sim.now, control: Control::default() }
    }

    fn ask(&mut self, results: &[CommandResult]) -> Decision {
        let decision = next(
            &self.state,
            &Observation { now: self.now, inventory: &self.inventory, kubernetes: Err("cloudonly"), results, control: &self.control },
        );
        self.state = decision.state.clone();
        if let Some(until) = &decision.wait {
            self.now = until.at;
        }
        decision
    }

    /// Runs to the end; terminations of instances that `fails` names fail.
    fn run(&mut self, fails: impl Fn(&str) -> Option<CommandError>) -> Vec<String> {
        let mut asked = Vec::new();
        let mut results = Vec::new();
        while self.state.outcome == Outcome::Running {
            results = self
                .ask(&results)
                .commands
                .into_iter()
                .map(|command| {
                    let Action::Terminate { instance } = &command.action else { panic!("{command:?}") };
                    asked.push(instance.clone());
                    let result = fails(instance).map_or(Ok(()), Err);
                    CommandResult { command, result }
                })
                .collect();
        }
        asked
    }
}

fn refused(id: &'static str) -> impl Fn(&str) -> Option<CommandError> {
    move |instance| {
        (instance == id).then(|| CommandError { kind: Refusal::Permanent, message: "OperationNotPermitted: protected".to_owned() })
    }
}

#[test]
fn a_control_plane_instance_that_cannot_be_terminated_stops_the_roll() {
    let mut host = Host::new(&standard(3, 3, 2, 1));
    assert_eq!(host.run(refused("master-1-0")), ["bastion-1-0", "master-1-0"]);
    let Outcome::Failed { reason } = &host.state.outcome else { panic!() };
    assert_eq!(
        reason,
        "control plane not replaced, stopping the rolling update: instance group \"master-1\": master-1-0 could not be terminated: \
         OperationNotPermitted: protected"
    );
}

#[test]
fn a_bastion_that_cannot_be_terminated_stops_the_roll_after_the_other_bastions() {
    let mut sim = standard(3, 3, 2, 1);
    sim.add_group(spec("bastion-2", Role::Bastion), 2, 0);
    let mut host = Host::new(&sim);
    assert_eq!(host.run(refused("bastion-1-0")), ["bastion-1-0", "bastion-2-0", "bastion-2-1"]);
    assert!(matches!(&host.state.outcome, Outcome::Failed { reason } if reason.starts_with("bastion not replaced")));
}

#[test]
fn a_node_that_cannot_be_terminated_stops_its_group_only() {
    let mut host = Host::new(&standard(3, 3, 0, 0));
    assert_eq!(host.run(refused("node-1-1")), ["node-1-0", "node-1-1", "node-2-0", "node-2-1", "node-2-2"]);
    assert!(matches!(&host.state.outcome, Outcome::Failed { reason } if reason.contains("node-1-1 could not be terminated")));
    assert!(matches!(host.state.groups[0].phase, GroupPhase::Failed { .. }));
    assert_eq!(host.state.groups[1].phase, GroupPhase::Done);
}

#[test]
fn a_warm_instance_that_cannot_be_terminated_stops_its_group_before_anything_else() {
    let mut sim = group("node-1", Role::Node, 3, 0);
    sim.add_beside("node-1", 1, true);
    let mut host = Host::new(&sim);
    assert_eq!(host.run(refused("node-1-wp-0")), ["node-1-wp-0"]);
    assert!(matches!(host.state.outcome, Outcome::Failed { .. }));
}

#[test]
fn failures_that_may_pass_are_tried_again_with_growing_pauses_until_the_timeout() {
    let mut host = Host::new(&group("node-1", Role::Node, 1, 0));
    let throttled = CommandError { kind: Refusal::Transient, message: "RequestLimitExceeded".to_owned() };
    let command = host.ask(&[]).commands.remove(0);
    let mut pauses = Vec::new();
    let then = loop {
        let before = host.now;
        let until = host.ask(&[CommandResult { command: command.clone(), result: Err(throttled.clone()) }]).wait.unwrap();
        if !matches!(until.reason, WaitReason::Retry { .. }) {
            break until.reason;
        }
        pauses.push(until.at.duration_since(before).as_secs());
        assert_eq!(host.ask(&[]).commands, std::slice::from_ref(&command));
    };
    assert!(matches!(then, WaitReason::News { .. }));
    assert_eq!(pauses[..6], [5, 10, 20, 40, 60, 60]);
    assert!((900..1000).contains(&pauses.iter().sum::<i64>()));
    assert_eq!(host.ask(&[]).commands, [], "what may have been carried out after all has shown by now");
    assert!(matches!(&host.state.outcome, Outcome::Failed { reason } if reason.contains("RequestLimitExceeded")));
}

#[test]
fn an_intent_without_a_result_is_carried_out_again_unless_the_instance_is_gone() {
    let sim = group("node-1", Role::Node, 1, 1);
    let mut host = Host::new(&sim);
    let command = host.ask(&[]).commands;
    assert_eq!(host.ask(&[]).commands, command, "killed before or after the call: the same call again");
    host.inventory.groups.get_mut("node-1").unwrap().need_update.clear();
    let decision = host.ask(&[]);
    assert_eq!(decision.commands, []);
    assert!(matches!(decision.wait.unwrap().reason, WaitReason::Interval { .. }));
}

#[test]
fn an_abort_waits_for_a_termination_to_show_whatever_is_answered_meanwhile() {
    let sim = group("node-1", Role::Node, 2, 0);
    let mut host = Host::new(&sim);
    let began = host.now;
    assert_eq!(host.ask(&[]).commands.len(), 1);
    // Killed before or after the call: the instance may be listed for a while though it is terminated.
    host.control.aborted = Some("ann".to_owned());
    let other = Command { group: "node-2".to_owned(), action: Action::ResumeRebalance { auto_scaling_group: "node-2".to_owned() } };
    let decision = host.ask(&[CommandResult { command: other, result: Ok(()) }]);
    assert_eq!(decision.commands, []);
    assert!(matches!(decision.wait.unwrap().reason, WaitReason::News { .. }));
    assert_eq!(host.now.duration_since(began), SignedDuration::from_secs(30));
    assert_eq!(host.ask(&[]).commands, []);
    assert!(matches!(host.state.outcome, Outcome::Aborted { .. }));
}

#[test]
fn an_abort_does_not_take_a_lost_answer_for_a_refusal() {
    let sim = group("node-1", Role::Node, 2, 0);
    let mut host = Host::new(&sim);
    let command = host.ask(&[]).commands.remove(0);
    let lost = CommandError { kind: Refusal::Transient, message: "the connection was reset".to_owned() };
    let again = host.ask(&[CommandResult { command, result: Err(lost) }]).wait.unwrap();
    // Aborted before the next attempt is due, while the cloud's list is that of before the call.
    host.now = again.at.saturating_sub(SignedDuration::from_secs(2)).unwrap();
    host.control.aborted = Some("ann".to_owned());
    let decision = host.ask(&[]);
    assert_eq!(decision.commands, []);
    assert!(matches!(decision.wait.unwrap().reason, WaitReason::News { .. }));
    host.inventory.groups.get_mut("node-1").unwrap().need_update.retain(|instance| instance.id != "node-1-0");
    host.ask(&[]);
    let summary = host.state.summary();
    assert!(matches!(host.state.outcome, Outcome::Aborted { .. }));
    assert_eq!(summary.finished, 1, "it is told of: {summary}");
}

#[test]
fn an_unconfirmed_intent_is_withdrawn_when_the_group_has_lost_another_instance_meanwhile() {
    let mut sim = group("master-1", Role::ControlPlane, 3, 0);
    sim.observe();
    let inventory = classify(&sim.answer(), &sim.cluster).unwrap();
    let state = RollState::start(&inventory, cloudonly(), sim.now, None).unwrap();
    let intent = next(
        &state,
        &Observation { now: sim.now, inventory: &inventory, kubernetes: Err("cloudonly"), results: &[], control: &Control::default() },
    );
    assert_eq!(intent.commands.len(), 1);

    // The process dies before the call; another member dies by itself.
    sim.groups.get_mut("master-1").unwrap().instances[2].terminated_at = Some(sim.now);
    let inventory = classify(&sim.observe(), &sim.cluster).unwrap();
    let decision = next(
        &intent.state,
        &Observation { now: sim.now, inventory: &inventory, kubernetes: Err("cloudonly"), results: &[], control: &Control::default() },
    );
    assert_eq!(decision.commands, []);
    assert!(matches!(decision.wait.unwrap().reason, WaitReason::InService { in_service: 2, target: 3, .. }));

    // The call went through after all, which shows only after an abort.
    let control = Control { aborted: Some("ann".to_owned()), ..Control::default() };
    let observation = Observation { now: sim.now, inventory: &inventory, kubernetes: Err("cloudonly"), results: &[], control: &control };
    let decision = next(&decision.state, &observation);
    assert!(matches!(decision.wait.unwrap().reason, WaitReason::News { .. }));
    sim.groups.get_mut("master-1").unwrap().instances[0].terminated_at = Some(sim.now);
    let inventory = classify(&sim.observe(), &sim.cluster).unwrap();
    let state = next(&decision.state, &Observation { inventory: &inventory, ..observation }).state;
    assert!(matches!(state.outcome, Outcome::Aborted { .. }));
    assert_eq!(state.summary().finished, 2, "it is told of, beside the one that died: {}", state.summary());
}

#[test]
fn vanished_instances_count_as_done_and_late_old_ones_are_reported() {
    let mut sim = group("node-1", Role::Node, 3, 0);
    let inventory = classify(&sim.answer(), &sim.cluster).unwrap();
    let mut state = RollState::start(&inventory, no_waiting(), sim.now, None).unwrap();
    let group = sim.groups.get_mut("node-1").unwrap();
    for instance in &mut group.instances {
        instance.terminated_at = Some(Timestamp::UNIX_EPOCH);
    }
    group.version = 1;
    sim.advance(SignedDuration::from_mins(5));
    sim.groups.get_mut("node-1").unwrap().version = 2;
    let inventory = classify(&sim.answer(), &sim.cluster).unwrap();
    state = next(
        &state,
        &Observation { now: sim.now, inventory: &inventory, kubernetes: Err("cloudonly"), results: &[], control: &Control::default() },
    )
    .state;
    let Outcome::Done { still_need_update } = &state.outcome else { panic!("{:?}", state.outcome) };
    assert_eq!(
        still_need_update.iter().map(|leftover| leftover.instance.as_str()).collect::<Vec<_>>(),
        ["node-1-new1", "node-1-new2", "node-1-new3"]
    );
    assert_eq!((sim.terminate_calls, state.summary().finished), (0, 3));
}

#[test]
fn a_group_missing_from_one_answer_says_nothing_about_its_instances() {
    let mut host = Host::new(&group("node-1", Role::Node, 2, 0));
    host.state.options.wait_for_replacement = true;
    let groups = std::mem::take(&mut host.inventory.groups);
    assert!(matches!(host.ask(&[]).wait.unwrap().reason, WaitReason::Missing { .. }));
    host.inventory.groups = groups;
    assert_eq!(
        host.ask(&[]).commands,
        [Command { group: "node-1".to_owned(), action: Action::Terminate { instance: "node-1-0".to_owned() } }]
    );
}

#[test]
fn checkpoints_of_another_schema_are_refused() {
    let host = Host::new(&standard(3, 3, 2, 1));
    let json = host.state.to_json().unwrap();
    assert_eq!(RollState::from_json(&json).unwrap(), host.state);
    let other = String::from_utf8(json).unwrap().replacen("\"version\":2", "\"version\":1", 1);
    assert_eq!(
        RollState::from_json(other.as_bytes()).unwrap_err().to_string(),
        "the checkpoint has schema version 1, this program reads 2; finish the roll with the version that started it"
    );
    assert!(RollState::from_json(b"{").is_err());
}
