//! The properties bite: planners and hosts that break a promise are caught within a few seeds.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kopsline_rolling::{
    Action, ClusterFacts, Command, CommandResult, Control, Decision, InstancePhase, Observation, Outcome, RollState, Until, WaitReason,
    next,
};
use kopsline_simulator::{Case, Faults, Flaw, Mix, Planner, Rule};

/// How many seeds a mutant may live through.
const SEEDS: u64 = 400;

/// Runs a mutant until one of the rules is broken, and names it (`cargo test -- --nocapture` shows it).
fn is_caught(name: &str, mix: Mix, rules: &[Rule], mut mutant: impl FnMut() -> Box<dyn Planner>, change: impl Fn(&mut Case)) {
    let mut others: BTreeMap<Rule, usize> = BTreeMap::new();
    let caught = (0..SEEDS).find_map(|seed| {
        let mut case = Case::of(seed, mix);
        change(&mut case);
        let violations = case.roll_with(&mut *mutant()).violations;
        for violation in &violations {
            *others.entry(violation.rule).or_default() += 1;
        }
        violations.into_iter().find(|violation| rules.contains(&violation.rule)).map(|violation| (seed, violation))
    });
    if let Some((seed, violation)) = &caught {
        println!("{name}: seed {seed} is caught by {violation}");
    }
    assert!(caught.is_some(), "{name} lives: none of {rules:?} was broken in {SEEDS} rolls, but {others:?}");
}

const QUIET: Mix = Mix { kubernetes: Some(true), faults: false };
const WILD: Mix = Mix { kubernetes: Some(true), faults: true };

/// Changes what the real planner is asked.
type Ask = fn(&mut RollState, &mut Option<ClusterFacts>, &mut Control);
/// Changes what it answers; takes the state before and may pretend that commands were executed.
type Reply = fn(&RollState, &mut Decision, &mut Vec<CommandResult>);

/// A planner that is broken around the real one.
struct Mutant {
    ask: Ask,
    reply: Reply,
    pretended: Vec<CommandResult>,
}

impl Planner for Mutant {
    fn next(&mut self, state: &RollState, observation: &Observation<'_>) -> Decision {
        let (mut facts, mut control, mut changed) = (observation.kubernetes.ok().cloned(), observation.control.clone(), state.clone());
        (self.ask)(&mut changed, &mut facts, &mut control);
        let mut results = observation.results.to_vec();
        results.append(&mut self.pretended);
        let kubernetes = facts.as_ref().ok_or("there is none");
        let mut decision = next(&changed, &Observation { kubernetes, results: &results, control: &control, ..*observation });
        decision.state.options = state.options.clone();
        (self.reply)(state, &mut decision, &mut self.pretended);
        decision
    }
}

fn asks(ask: Ask) -> impl FnMut() -> Box<dyn Planner> {
    move || Box::new(Mutant { ask, reply: |_, _, _| {}, pretended: vec![] })
}

fn replies(reply: Reply) -> impl FnMut() -> Box<dyn Planner> {
    move || Box::new(Mutant { ask: |_, _, _| {}, reply, pretended: vec![] })
}

/// Leaves commands out, and pretends that they were executed.
fn leave_out(decision: &mut Decision, pretended: &mut Vec<CommandResult>, what: fn(&Action) -> bool) {
    let (left_out, kept) = std::mem::take(&mut decision.commands).into_iter().partition::<Vec<_>, _>(|command| what(&command.action));
    decision.commands = kept;
    let nothing_left = decision.commands.is_empty() && decision.wait.is_none() && !decision.state.outcome.is_final();
    if nothing_left && !left_out.is_empty() {
        // The host has to come back for the pretended results.
        let at = decision.events.iter().map(|event| event.at).max().unwrap_or_default().saturating_add(SignedDuration::from_secs(1));
        decision.wait = Some(Until { at: at.unwrap_or(Timestamp::MAX), reason: WaitReason::News { group: String::new() } });
    }
    pretended.extend(left_out.into_iter().map(|command| CommandResult { command, result: Ok(()) }));
}

fn nothing(_: &mut Case) {}

#[test]
fn one_that_sees_no_ailment() {
    let ask: Ask = |_, facts, _| {
        let Some(facts) = facts else { return };
        facts.nodes.iter_mut().for_each(|node| node.ready = true);
        facts.pods.iter_mut().for_each(|pod| pod.priority_class.clear());
    };
    is_caught("blind to ailments", QUIET, &[Rule::Health], asks(ask), nothing);
}

#[test]
fn one_that_does_not_validate() {
    let ask: Ask = |state, _, _| (state.options.validate_count, state.options.fail_on_validate_error) = (0, false);
    is_caught("without validation", QUIET, &[Rule::Health], asks(ask), nothing);
    let ask: Ask = |state, _, _| state.options.validate_count = state.options.validate_count.min(1);
    is_caught("that validates once", QUIET, &[Rule::Validated], asks(ask), nothing);
}

#[test]
fn one_that_takes_too_many() {
    let ask: Ask = |state, _, _| {
        for group in &mut state.groups {
            (group.concurrency, group.first_alone) = (group.instances.len().max(1), false);
        }
    };
    is_caught("that takes all", QUIET, &[Rule::Availability], asks(ask), nothing);
    is_caught("that takes all", QUIET, &[Rule::Interval], asks(ask), nothing);
    let ask: Ask = |state, _, _| state.groups.iter_mut().for_each(|group| group.first_alone = false);
    is_caught("that does not begin with one", QUIET, &[Rule::FirstAlone], asks(ask), nothing);
}

#[test]
fn one_that_terminates_two_of_the_control_plane() {
    let reply: Reply = |before, decision, _| {
        let Some(command) = decision.commands.iter().find(|command| matches!(command.action, Action::Terminate { .. })).cloned() else {
            return;
        };
        let Some(group) = decision.state.groups.iter_mut().find(|group| group.name == command.group) else { return };
        let waiting = group.instances.iter_mut().find(|instance| instance.phase == InstancePhase::Waiting);
        if let Some(other) = waiting {
            other.phase = InstancePhase::Terminating { attempts: 1, not_before: before.started };
            decision.commands.push(Command { action: Action::Terminate { instance: other.id.clone() }, ..command });
        }
    };
    is_caught("that terminates two", QUIET, &[Rule::ControlPlane], replies(reply), nothing);
    is_caught("that terminates two", QUIET, &[Rule::Quorum], replies(reply), nothing);
    is_caught("that terminates two without drain", QUIET, &[Rule::Drained], replies(reply), nothing);
    let cloud_alone = Mix { kubernetes: Some(false), faults: false };
    is_caught("that terminates two under cloudonly", cloud_alone, &[Rule::ControlPlane], replies(reply), nothing);
}

#[test]
fn one_that_drains_badly() {
    let no_cordon: Reply = |_, decision, pretended| leave_out(decision, pretended, |action| matches!(action, Action::Cordon { .. }));
    is_caught("without cordon", QUIET, &[Rule::Drained], replies(no_cordon), nothing);
    let no_deregistration: Reply =
        |_, decision, pretended| leave_out(decision, pretended, |action| matches!(action, Action::Deregister { .. }));
    is_caught("without deregistration", QUIET, &[Rule::Drained], replies(no_deregistration), nothing);
    let no_pods: Ask = |_, facts, _| facts.iter_mut().for_each(|facts| facts.pods.retain(|pod| pod.namespace == "kube-system"));
    is_caught("blind to pods", QUIET, &[Rule::Drained], asks(no_pods), nothing);
    let by_force: Reply = |_, decision, _| {
        for command in &mut decision.commands {
            if let Action::Evict { pod } = &command.action {
                command.action = Action::DeletePod { pod: pod.clone() };
            }
        }
    };
    is_caught("that deletes pods", QUIET, &[Rule::Budget], replies(by_force), nothing);
}

#[test]
fn one_that_leaves_something_behind() {
    for (name, what) in [
        ("that forgets to resume", (|action| matches!(action, Action::ResumeRebalance { .. })) as fn(&Action) -> bool),
        ("that forgets to uncordon", |action| matches!(action, Action::Uncordon { .. })),
        ("that forgets to untaint", |action| matches!(action, Action::Untaint { .. })),
        ("that forgets to include", |action| matches!(action, Action::IncludeInLoadBalancers { .. })),
        ("that forgets to register", |action| matches!(action, Action::Register { .. })),
    ] {
        let mutant = move || -> Box<dyn Planner> { Box::new(Forgetful { what, pretended: vec![] }) };
        is_caught(name, WILD, &[Rule::LeftBehind], mutant, nothing);
    }
}

/// Leaves some commands out.
struct Forgetful {
    what: fn(&Action) -> bool,
    pretended: Vec<CommandResult>,
}

impl Planner for Forgetful {
    fn next(&mut self, state: &RollState, observation: &Observation<'_>) -> Decision {
        let mut results = observation.results.to_vec();
        results.append(&mut self.pretended);
        let mut decision = next(state, &Observation { results: &results, ..*observation });
        leave_out(&mut decision, &mut self.pretended, self.what);
        decision
    }
}

#[test]
fn one_that_detaches_without_a_tag() {
    let mutant =
        || -> Box<dyn Planner> { Box::new(Forgetful { what: |action| matches!(action, Action::MarkDetached { .. }), pretended: vec![] }) };
    is_caught("without a tag", QUIET, &[Rule::Tagged], mutant, nothing);
}

#[test]
fn one_that_touches_what_is_up_to_date() {
    let reply: Reply = |_, decision, _| {
        let bystander = |name: &str| decision.state.groups.iter().find(|group| group.name == name)?.bystanders.first().cloned();
        let changed: Vec<_> = decision
            .commands
            .iter()
            .cloned()
            .map(|mut command| {
                if let (Action::Terminate { instance }, Some(other)) = (&mut command.action, bystander(&command.group)) {
                    *instance = other;
                }
                command
            })
            .collect();
        decision.commands = changed;
    };
    is_caught("that terminates new instances", QUIET, &[Rule::Selected], replies(reply), nothing);
}

#[test]
fn one_that_does_not_ask_people() {
    let ask: Ask = |_, _, control| *control = Control::default();
    is_caught("that does not listen", WILD, &[Rule::Paused], asks(ask), nothing);
    let ask: Ask = |state, _, _| state.groups.iter_mut().for_each(|group| group.settings.drain_and_terminate = true);
    is_caught("that takes disabled groups", QUIET, &[Rule::Disabled], asks(ask), nothing);
}

#[test]
fn one_that_keeps_no_order_or_interval() {
    let ask: Ask = |state, _, _| {
        if state.groups.iter().all(|group| group.started.is_none()) {
            state.groups.reverse();
        }
    };
    is_caught("that begins with the nodes", QUIET, &[Rule::Order], asks(ask), nothing);
    let ask: Ask = |state, _, _| {
        let options = &mut state.options;
        (options.node_interval, options.bastion_interval, options.control_plane_interval) = Default::default();
    };
    let cloud_alone = Mix { kubernetes: Some(false), faults: false };
    is_caught("without intervals", cloud_alone, &[Rule::Interval], asks(ask), |case| case.drive.options.wait_for_replacement = false);
}

#[test]
fn one_that_does_not_write_down() {
    let reply: Reply = |before, decision, _| {
        if !decision.commands.is_empty() {
            decision.state = before.clone();
        }
    };
    is_caught("without intents", QUIET, &[Rule::Intent], replies(reply), nothing);
    let reply: Reply = |_, decision, _| decision.events.clear();
    is_caught("without history", QUIET, &[Rule::Intent], replies(reply), nothing);
    let reply: Reply = |_, decision, _| {
        if let Outcome::Done { still_need_update } = &mut decision.state.outcome {
            still_need_update.clear();
        }
    };
    is_caught("that reports nothing", QUIET, &[Rule::Complete], replies(reply), nothing);
}

/// Sleeps for ever.
struct Sleepy;

impl Planner for Sleepy {
    fn next(&mut self, state: &RollState, observation: &Observation<'_>) -> Decision {
        let at = observation.now.saturating_add(SignedDuration::from_mins(1)).unwrap_or(Timestamp::MAX);
        let wait = Some(Until { at, reason: WaitReason::Paused });
        Decision { state: state.clone(), commands: vec![], wait, events: vec![] }
    }
}

/// Neither does anything nor waits.
struct Idle;

impl Planner for Idle {
    fn next(&mut self, state: &RollState, _: &Observation<'_>) -> Decision {
        Decision { state: state.clone(), commands: vec![], wait: None, events: vec![] }
    }
}

#[test]
fn one_that_never_ends() {
    is_caught("that sleeps", QUIET, &[Rule::Progress], || Box::new(Sleepy), nothing);
    is_caught("that stands still", QUIET, &[Rule::Progress], || Box::new(Idle), nothing);
}

#[test]
fn a_host_that_acts_before_it_stores() {
    let real = || -> Box<dyn Planner> { Box::new(kopsline_simulator::Real) };
    is_caught("a hasty host", QUIET, &[Rule::Intent], real, |case| {
        case.drive.flaw = Flaw::ActsFirst;
    });
}

#[test]
fn a_host_that_overwrites() {
    let real = || -> Box<dyn Planner> { Box::new(kopsline_simulator::Real) };
    is_caught("a host that overwrites", QUIET, &[Rule::Intent, Rule::LeftBehind, Rule::Availability, Rule::Contract], real, |case| {
        case.drive.flaw = Flaw::Overwrites;
        case.faults = Faults { duplicate: 2, kill: 5, ..Faults::default() };
    });
}
