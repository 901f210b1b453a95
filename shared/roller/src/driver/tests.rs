use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use kopsline_cloud::{Deregistration, LoadBalancer, LoadBalancerClass};
use kopsline_rolling::sim::Simulation;
use kopsline_rolling::{Control, GroupSpec, Manager, PauseAfter, RawInventory, Role, RollEvent, RollingUpdate, What};

use super::*;

/// A simulated cloud whose clock is the driver's.
#[derive(Clone)]
struct World {
    sim: Arc<Mutex<Simulation>>,
    slept: Arc<Mutex<Vec<i64>>>,
}

impl World {
    /// Three old control planes and two old nodes.
    fn new() -> Self {
        let mut sim = Simulation::new("c.test", 1);
        for (name, role, old) in [("cp", Role::ControlPlane, 3), ("nodes", Role::Node, 2)] {
            let spec = GroupSpec {
                name: name.to_owned(),
                role,
                manager: Manager::CloudGroup,
                min_size: 1,
                rolling_update: RollingUpdate::default(),
            };
            sim.add_group(spec, old, 1);
        }
        Self { sim: Arc::new(Mutex::new(sim)), slept: Arc::default() }
    }

    fn terminated(&self) -> Vec<String> {
        self.sim.lock().unwrap().terminations.iter().map(|termination| termination.instance.clone()).collect()
    }

    fn cluster(&self) -> ClusterSpec {
        self.sim.lock().unwrap().cluster.clone()
    }

    fn advance(&self, seconds: u64) {
        self.sim.lock().unwrap().advance(SignedDuration::from_secs(i64::try_from(seconds).unwrap()));
    }
}

#[async_trait]
impl Cloud for World {
    async fn observe(&self, _: &str) -> Result<RawInventory, CloudError> {
        Ok(self.sim.lock().unwrap().observe())
    }

    async fn terminate(&self, instances: &[String]) -> Vec<(String, Result<(), CloudError>)> {
        let mut sim = self.sim.lock().unwrap();
        instances.iter().map(|id| (id.clone(), sim.terminate(id).map_err(|reason| unanswered(&reason)))).collect()
    }

    async fn suspend_rebalance(&self, _: &str) -> Result<(), CloudError> {
        Ok(())
    }

    async fn resume_rebalance(&self, _: &str) -> Result<(), CloudError> {
        Ok(())
    }

    async fn mark_detached(&self, _: &str, _: &str) -> Result<(), CloudError> {
        Ok(())
    }

    async fn detach(&self, _: &str, _: &str) -> Result<(), CloudError> {
        Ok(())
    }

    async fn deregister(&self, _: &str, _: &str) -> Result<Deregistration, CloudError> {
        Ok(Deregistration::Done)
    }

    async fn register(&self, _: &str, _: &str) -> Result<(), CloudError> {
        Ok(())
    }

    async fn load_balancers(&self, _: LoadBalancerClass, _: &str) -> Result<Vec<LoadBalancer>, CloudError> {
        Ok(Vec::new())
    }
}

/// What people say is set by the test; what they are told is kept.
#[derive(Default)]
struct People {
    says: Mutex<Control>,
    told: Mutex<Vec<RollEvent>>,
}

#[async_trait]
impl Desk for People {
    async fn control(&self, _: Timestamp) -> Result<Control, DeskError> {
        Ok(self.says.lock().unwrap().clone())
    }

    async fn tell(&self, events: &[RollEvent]) -> Result<(), DeskError> {
        self.told.lock().unwrap().extend_from_slice(events);
        Ok(())
    }
}

#[async_trait]
impl Clock for World {
    fn now(&self) -> Timestamp {
        self.sim.lock().unwrap().now
    }

    async fn sleep(&self, duration: SignedDuration) {
        self.slept.lock().unwrap().push(duration.as_secs());
        self.sim.lock().unwrap().advance(duration);
    }
}

fn unanswered(reason: &str) -> CloudError {
    CloudError::Unanswered { operation: "TerminateInstances", target: "i".to_owned(), attempts: 5, reason: reason.to_owned() }
}

/// What a store does at one of its writes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mishap {
    /// The process dies before the write.
    Lost,
    /// The write succeeds; its answer is lost, and the store's own retry meets it.
    AnswerLost,
    /// Someone else has written in the meantime.
    Overtaken,
}

#[derive(Default)]
struct Memory {
    content: Mutex<Option<(u32, RollState)>>,
    writes: Mutex<u32>,
    mishap: Option<(u32, Mishap)>,
}

impl Memory {
    fn with(number: u32, mishap: Mishap) -> Self {
        Self { mishap: Some((number, mishap)), ..Self::default() }
    }
}

#[async_trait]
impl Checkpoints for Memory {
    async fn load(&self) -> Result<Option<Saved>, CheckpointError> {
        Ok(self.content.lock().unwrap().clone().map(|(version, state)| Saved {
            state: RollState::from_json(&state.to_json().unwrap()).unwrap(),
            version: version.to_string(),
        }))
    }

    async fn save(&self, state: &RollState, expected: Option<&str>) -> Result<String, CheckpointError> {
        let mut content = self.content.lock().unwrap();
        let mut writes = self.writes.lock().unwrap();
        *writes += 1;
        let mishap = self.mishap.filter(|(number, _)| number == &*writes).map(|(_, mishap)| mishap);
        if mishap == Some(Mishap::Lost) {
            return Err(CheckpointError::Store { transient: true, source: "the process died".into() });
        }
        if mishap == Some(Mishap::Overtaken) {
            let (version, other) = content.clone().unwrap();
            *content = Some((version + 100, other));
        }
        let found = content.as_ref().map(|(version, _)| version.to_string());
        if found.as_deref() != expected {
            return Err(CheckpointError::Conflict);
        }
        *content = Some((*writes, state.clone()));
        if mishap == Some(Mishap::AnswerLost) {
            return Err(CheckpointError::Conflict);
        }
        Ok(writes.to_string())
    }
}

async fn step(world: &World, checkpoints: &Memory, budget: Budget) -> Result<StepOutcome, StepError> {
    step_with(world, checkpoints, &People::default(), RollOptions::default(), budget).await
}

async fn step_with(
    world: &World,
    checkpoints: &Memory,
    desk: &People,
    options: RollOptions,
    budget: Budget,
) -> Result<StepOutcome, StepError> {
    let (cluster, options) = (world.cluster(), RollOptions { cloudonly: true, ..options });
    let (cloud, clock) = (world, world);
    run_step(&Roll { cloud, kubernetes: None, checkpoints, desk, clock, cluster: &cluster, options: &options, approved: None, budget })
        .await
}

/// Calls steps as a state machine does; retries failures that may pass.
async fn run(world: &World, checkpoints: &Memory, budget: Budget) -> (StepOutcome, usize) {
    for steps in 1..1000 {
        match step(world, checkpoints, budget).await {
            Ok(StepOutcome::Progress { wait_seconds, .. }) => world.advance(wait_seconds),
            Ok(end) => return (end, steps),
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
    panic!("the roll does not end");
}

const EVERYTHING: [&str; 5] = ["cp-0", "cp-1", "cp-2", "nodes-0", "nodes-1"];

fn done() -> StepOutcome {
    StepOutcome::Done { still_need_update: vec![], summary: Summary { total: 5, finished: 5, ..Summary::default() } }
}

#[tokio::test]
async fn long_waits_go_back_to_the_caller() {
    let world = World::new();
    let checkpoints = Memory::default();
    let first = step(&world, &checkpoints, Budget::default()).await.unwrap();
    assert_eq!(
        first,
        StepOutcome::Progress {
            wait_seconds: 15,
            waits_for: "the interval after terminating cp-0 of cp".to_owned(),
            summary: Summary { total: 5, in_flight: 1, waiting: 4, ..Summary::default() },
        }
    );
    assert_eq!(world.terminated(), ["cp-0"]);
    assert_eq!(step(&world, &checkpoints, Budget::default()).await.unwrap(), first, "called too early, it does nothing");
    step(&world, &checkpoints, Budget::default()).await.unwrap();
    assert_eq!(*checkpoints.writes.lock().unwrap(), 3, "the intent, the result, the sight that it is gone; nothing for nothing");

    let (end, _) = run(&world, &checkpoints, Budget::default()).await;
    assert_eq!((end, world.terminated()), (done(), EVERYTHING.map(str::to_owned).to_vec()));
    assert!(world.slept.lock().unwrap().iter().all(|seconds| *seconds <= 3), "only short waits are slept through");
    assert_eq!(step(&world, &checkpoints, Budget::default()).await.unwrap(), done(), "an ended roll stays as it is");
}

#[tokio::test]
async fn short_waits_are_slept_through_while_there_is_time() {
    let world = World::new();
    let patient =
        Budget { total: SignedDuration::from_hours(10), round: SignedDuration::from_secs(60), longest_sleep: SignedDuration::from_mins(1) };
    assert_eq!(run(&world, &Memory::default(), patient).await, (done(), 1));
    assert!(world.slept.lock().unwrap().len() >= 5);

    let world = World::new();
    let hurried = Budget { total: SignedDuration::from_secs(70), ..patient };
    assert!(matches!(step(&world, &Memory::default(), hurried).await.unwrap(), StepOutcome::Progress { wait_seconds: 15, .. }));
    assert_eq!(*world.slept.lock().unwrap(), [0; 0], "15 s and another round would be too much");
}

#[tokio::test]
async fn a_kill_or_a_lost_answer_at_any_write_gives_the_same_end() {
    let undisturbed = Memory::default();
    run(&World::new(), &undisturbed, Budget::default()).await;
    let writes = *undisturbed.writes.lock().unwrap();
    for write in 1..=writes {
        for mishap in [Mishap::Lost, Mishap::AnswerLost] {
            let world = World::new();
            let (end, _) = run(&world, &Memory::with(write, mishap), Budget::default()).await;
            assert_eq!((end, world.terminated()), (done(), EVERYTHING.map(str::to_owned).to_vec()), "{mishap:?} at write {write}");
        }
    }
}

#[tokio::test]
async fn a_stale_checkpoint_write_is_refused_and_its_command_not_executed() {
    let world = World::new();
    let checkpoints = Memory::with(3, Mishap::Overtaken);
    let mut outcomes = Vec::new();
    for _ in 0..100 {
        match step(&world, &checkpoints, Budget::default()).await {
            Ok(StepOutcome::Progress { wait_seconds, .. }) => world.advance(wait_seconds),
            other => {
                outcomes.push(other);
                break;
            }
        }
    }
    assert!(matches!(&outcomes[..], [Err(error)] if error.is_conflict() && !error.is_transient()), "{outcomes:?}");
    assert_eq!(world.terminated(), ["cp-0"]);
}

#[tokio::test]
async fn of_two_first_steps_one_begins_the_roll() {
    let world = World::new();
    let checkpoints = Memory::default();
    step(&world, &checkpoints, Budget::default()).await.unwrap();
    let late = RollState::clone(&checkpoints.content.lock().unwrap().as_ref().unwrap().1);
    let error = save(&checkpoints, &RollState { started: Timestamp::MAX, ..late }, None).await.unwrap_err();
    assert!(matches!(error, CheckpointError::Conflict));
}

#[tokio::test]
async fn a_checkpoint_of_another_cluster_is_refused() {
    let world = World::new();
    let checkpoints = Memory::default();
    step(&world, &checkpoints, Budget::default()).await.unwrap();
    world.sim.lock().unwrap().cluster.name = "other".to_owned();
    let error = step(&world, &checkpoints, Budget::default()).await.unwrap_err();
    assert_eq!(error.to_string(), r#"the checkpoint is of cluster "c.test", not of "other""#);
}

#[tokio::test]
async fn a_question_is_put_at_once_however_long_a_step_may_sleep() {
    let (world, checkpoints, people) = (World::new(), Memory::default(), People::default());
    let hour = SignedDuration::from_hours(1);
    let budget = Budget { total: hour, round: SignedDuration::from_secs(20), longest_sleep: hour };
    let options = RollOptions { pause_after: Some(PauseAfter::FirstOfEachGroup), ..RollOptions::default() };
    for _ in 0..2 {
        let outcome = step_with(&world, &checkpoints, &people, options.clone(), budget).await.unwrap();
        let StepOutcome::Asks { question, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(question.asked, world.now(), "nothing is slept through that waits for an answer");
    }
    assert_eq!(world.terminated(), ["cp-0"]);
}

#[tokio::test]
async fn people_are_told_and_heard() {
    let (world, checkpoints, people) = (World::new(), Memory::default(), People::default());
    let options = RollOptions { pause_after: Some(PauseAfter::FirstOfEachGroup), ..RollOptions::default() };
    let step = async || step_with(&world, &checkpoints, &people, options.clone(), Budget::default()).await.unwrap();
    let question = loop {
        match step().await {
            StepOutcome::Progress { wait_seconds, .. } => world.advance(wait_seconds),
            StepOutcome::Asks { question, .. } => break question,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(world.terminated(), ["cp-0"]);
    people.says.lock().unwrap().paused = true;
    assert!(matches!(step().await, StepOutcome::Asks { .. } | StepOutcome::Paused { .. }));
    people.says.lock().unwrap().aborted = Some("by ann".to_owned());
    let outcome = loop {
        match step().await {
            StepOutcome::Progress { wait_seconds, .. } => world.advance(wait_seconds),
            other => break other,
        }
    };
    assert!(matches!(&outcome, StepOutcome::Aborted { reason, .. } if reason == "by ann"), "{outcome:?}");
    assert_eq!(world.terminated(), ["cp-0"], "nothing further is touched");
    let told = people.told.lock().unwrap();
    assert!(told.iter().any(|event| matches!(&event.what, What::Asked { question: id, .. } if *id == question.id)));
    assert!(matches!(told.last().map(|event| &event.what), Some(What::Ended { .. })), "{told:?}");
}

#[test]
fn outcomes_are_flat_json() {
    let json =
        serde_json::to_value(StepOutcome::Progress { wait_seconds: 15, waits_for: "x".to_owned(), summary: Summary::default() }).unwrap();
    assert_eq!((json["outcome"].as_str(), json["wait_seconds"].as_u64()), (Some("progress"), Some(15)));
}
