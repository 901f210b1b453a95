//! A host that drives the planner as the step of a Lambda function does: load, observe, decide, store, act, wait.
//!
//! Every one of these is a step of its own, so that a process may be killed between any two, and two processes may be in
//! each other's way anywhere.

use std::collections::VecDeque;
use std::sync::Arc;

use jiff::SignedDuration;
use kopsline_rolling::{
    Command, CommandResult, Control, Decision, Inventory, Observation, Preview, RawInventory, RollOptions, RollState, StartError, classify,
    next, preview,
};

use crate::faults::Faults;
use crate::happening::What;
use crate::monitor::{Monitor, Rule, Said, View, Violation};
use crate::person::{Person, Wishes};
use crate::random::Random;
use crate::world::{Moment, World};

/// The longest wait that a process sleeps through; it ends with a longer one.
const LONGEST_SLEEP: SignedDuration = SignedDuration::from_secs(5);
/// How old a process may become.
const LONGEST_STEP: SignedDuration = SignedDuration::from_mins(1);
/// When a process that failed is begun again, at first; the state machine doubles it up to a minute.
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(5);
const LAST_RETRY: SignedDuration = SignedDuration::from_mins(1);
/// When a process that was killed is begun again.
const REVIVAL: SignedDuration = SignedDuration::from_secs(7);
/// More decisions an instance than any sane roll needs.
const MOST_DECISIONS: u64 = 5_000;
/// A roll that has broken so many rules is not worth following any further.
const ENOUGH: usize = 30;

/// What decides. Tests put broken ones in the place of the real one.
pub trait Planner {
    /// Decides what to do next.
    fn next(&mut self, state: &RollState, observation: &Observation<'_>) -> Decision;
}

/// The planner of this workspace.
#[derive(Debug, Clone, Copy, Default)]
pub struct Real;

impl Planner for Real {
    fn next(&mut self, state: &RollState, observation: &Observation<'_>) -> Decision {
        next(state, observation)
    }
}

/// When a process dies, counted in effects: checkpoints stored and commands executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kill {
    /// Never, but for what the world's faults do.
    #[default]
    Never,
    /// Before this effect.
    Before(u64),
    /// After this effect, its result unread.
    After(u64),
}

/// How a host may be broken, for tests that the properties notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flaw {
    /// It is not.
    #[default]
    None,
    /// It executes commands before it stores the state that says so.
    ActsFirst,
    /// It overwrites what another process has stored.
    Overwrites,
}

/// What became of a roll.
#[derive(Debug)]
pub struct Rolled {
    /// The world as it is now.
    pub world: World,
    /// The last state; none if the roll never began.
    pub state: Option<RollState>,
    /// What was broken.
    pub violations: Vec<Violation>,
    /// Instances that the roll terminated.
    pub removed: Vec<String>,
    /// How many effects there were.
    pub effects: u64,
    /// How many decisions were taken.
    pub decisions: u64,
    /// How many processes there were.
    pub processes: u64,
}

/// How a roll is driven.
#[derive(Debug, Clone, Default)]
pub struct Drive {
    /// How to roll.
    pub options: RollOptions,
    /// What people want.
    pub wishes: Wishes,
    /// When the host dies.
    pub kill: Kill,
    /// How the host is broken.
    pub flaw: Flaw,
    /// A process reads the state it goes on from back from its JSON once in so many times; never for 0.
    pub reads_back: u32,
    /// Nothing is watched, and the roll is left after so many decisions: to measure what planning costs.
    pub measures: Option<u64>,
}

/// Drives a roll to its end.
pub fn roll(world: World, drive: &Drive, planner: &mut dyn Planner) -> Rolled {
    let mut host = Host::new(world, drive, planner);
    host.run();
    host.finish()
}

/// A stored state and its version.
#[derive(Debug, Clone)]
struct Saved {
    state: Arc<RollState>,
    version: u64,
}

enum Stage {
    Load,
    Observe,
    Decide,
    Store(Box<Decision>),
    Execute(VecDeque<Command>),
    Asleep(Moment),
}

struct Process {
    stage: Stage,
    born: Moment,
    saved: Option<Saved>,
    seen: Option<(View, Arc<Inventory>)>,
    /// What was seen is new, and nothing was stored since.
    looks: bool,
    control: Control,
    results: Vec<CommandResult>,
}

/// How a process goes on after one of its steps.
enum Next {
    On(Stage),
    /// It ends; another one is to begin then.
    Again(Moment),
    /// It fails in a way that may pass.
    Failed,
    Killed,
    /// The roll is over.
    Over,
}

struct Host<'a> {
    world: World,
    monitor: Monitor,
    planner: &'a mut dyn Planner,
    drive: &'a Drive,
    person: Person,
    approved: Option<Preview>,
    random: Random,
    stored: Option<Saved>,
    classified: Option<(Arc<RawInventory>, Arc<Inventory>)>,
    effects: u64,
    decisions: u64,
    processes: u64,
    failures: u32,
    stuck: bool,
}

impl<'a> Host<'a> {
    fn new(mut world: World, drive: &'a Drive, planner: &'a mut dyn Planner) -> Self {
        world.begin();
        let approved = drive.wishes.approves.then(|| {
            let inventory = classify(&world.answer(), &world.spec).ok()?;
            preview(&inventory, &drive.options.selection, drive.options.force).ok()
        });
        world.advance(drive.wishes.approval_takes);
        let quiet = world.faults == Faults::default() && drive.kill == Kill::Never && drive.flaw == Flaw::None;
        let monitor = Monitor::new(&world, &drive.options, quiet);
        let person = Person::new(&world, &drive.wishes);
        let random = Random::of(world.seed(), u64::MAX);
        Self {
            world,
            monitor,
            planner,
            drive,
            person,
            approved: approved.flatten(),
            random,
            stored: None,
            classified: None,
            effects: 0,
            decisions: 0,
            processes: 0,
            failures: 0,
            stuck: false,
        }
    }

    fn run(&mut self) {
        let bound = self.world.now().after(self.longest());
        let measures = self.drive.measures.is_some();
        let most_decisions = MOST_DECISIONS * (self.world.instances.len() as u64 + 4);
        let mut processes = vec![self.process()];
        let mut again: Option<Moment> = None;
        loop {
            let measured = self.drive.measures.is_some_and(|most| self.decisions >= most);
            if measured || self.monitor.violations.len() >= ENOUGH {
                return;
            }
            if self.stuck || (!measures && (self.decisions > most_decisions || self.world.now() > bound)) {
                if !self.stuck {
                    let message = format!("after {} decisions the roll has not ended", self.decisions);
                    self.monitor.broken(Rule::Progress, self.world.now(), message);
                }
                return;
            }
            let awake: Vec<usize> =
                processes.iter().enumerate().filter(|(_, one)| !one.sleeps(self.world.now())).map(|(place, _)| place).collect();
            let Some(&place) = self.random.pick(&awake) else {
                let wakes = processes.iter().filter_map(Process::wakes);
                // A second process carries on; the one that ended begins again when none is left.
                match wakes.min().or_else(|| again.take()) {
                    Some(moment) => self.world.advance_to(moment),
                    None => return,
                }
                if processes.is_empty() {
                    processes.push(self.process());
                }
                continue;
            };
            if processes.len() == 1 && self.world.faulty() && self.random.once_in(self.world.faults.duplicate) {
                self.world.struck += 1;
                processes.push(self.process());
            }
            let Some(process) = processes.get_mut(place) else { return };
            let stage = std::mem::replace(&mut process.stage, Stage::Load);
            match self.step(process, stage) {
                Next::On(stage) => process.stage = stage,
                Next::Over => {
                    processes.remove(place);
                    again = None;
                }
                Next::Again(moment) => {
                    processes.remove(place);
                    self.failures = 0;
                    again = Some(moment);
                }
                Next::Failed => {
                    processes.remove(place);
                    let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(4)).min(LAST_RETRY);
                    self.failures += 1;
                    again = Some(self.world.now().after(pause));
                }
                Next::Killed => {
                    processes.remove(place);
                    self.world.note(What::Killed);
                    again = Some(self.world.now().after(REVIVAL));
                }
            }
        }
    }

    fn watches(&self) -> bool {
        self.drive.measures.is_none()
    }

    fn process(&mut self) -> Process {
        self.processes += 1;
        self.world.renew_certificate();
        Process {
            stage: Stage::Load,
            born: self.world.now(),
            saved: None,
            seen: None,
            looks: false,
            control: Control::default(),
            results: Vec::new(),
        }
    }

    /// How long a roll may take, with everything that may go wrong.
    fn longest(&self) -> SignedDuration {
        let instances = i32::try_from(self.world.instances.len()).unwrap_or(i32::MAX);
        let intervals =
            self.drive.options.node_interval.max(self.drive.options.control_plane_interval).max(self.drive.options.bastion_interval);
        let each = self.drive.options.validation_timeout.saturating_add(intervals).saturating_add(SignedDuration::from_mins(20));
        let each = each.saturating_add(self.drive.options.drain_timeout).saturating_add(self.drive.options.drain_decision_timeout);
        each.saturating_mul(instances.saturating_add(4)).saturating_add(SignedDuration::from_hours(4))
    }

    fn step(&mut self, process: &mut Process, stage: Stage) -> Next {
        match stage {
            Stage::Load => self.load(process),
            Stage::Observe => self.observe(process),
            Stage::Decide => self.decide(process),
            Stage::Store(decision) => self.store(process, *decision),
            Stage::Execute(commands) => self.execute(process, commands),
            Stage::Asleep(_) => Next::On(Stage::Observe),
        }
    }

    fn load(&mut self, process: &mut Process) -> Next {
        process.saved.clone_from(&self.stored);
        if let Some(saved) = &mut process.saved
            && self.random.once_in(self.drive.reads_back)
        {
            match saved.state.to_json().and_then(|json| RollState::from_json(&json)) {
                Ok(state) if state == *saved.state => saved.state = Arc::new(state),
                other => {
                    let message = format!("the state cannot be read back: {:?}", other.err());
                    self.monitor.broken(Rule::Contract, self.world.now(), message);
                    self.stuck = true;
                    return Next::Over;
                }
            }
        }
        match &process.saved {
            Some(saved) if saved.state.outcome.is_final() => Next::Over,
            _ => Next::On(Stage::Observe),
        }
    }

    fn observe(&mut self, process: &mut Process) -> Next {
        let observed = match self.world.observe() {
            Ok(observed) => observed,
            Err(error) => {
                self.world.note(What::Unobserved(error.to_string()));
                return Next::Failed;
            }
        };
        let view = View { at: self.world.now(), raw: observed.raw, silent: observed.silent };
        let known = self.classified.as_ref().filter(|(raw, _)| Arc::ptr_eq(raw, &view.raw)).map(|(_, inventory)| Arc::clone(inventory));
        let inventory = match known {
            Some(inventory) => inventory,
            None => match classify(&view.raw, &self.world.spec) {
                Ok(inventory) => Arc::new(inventory),
                Err(error) => {
                    self.monitor.broken(Rule::Contract, self.world.now(), error.to_string());
                    return Next::Failed;
                }
            },
        };
        self.classified = Some((Arc::clone(&view.raw), Arc::clone(&inventory)));
        (process.seen, process.looks) = (Some((view, inventory)), true);
        process.results.clear();
        Next::On(Stage::Decide)
    }

    fn decide(&mut self, process: &mut Process) -> Next {
        self.decisions += 1;
        let now = self.world.now();
        let Some((view, inventory)) = &process.seen else { return Next::On(Stage::Observe) };
        process.control = self.person.control(now, process.saved.as_ref().map(|saved| &*saved.state), &mut self.monitor);
        let started;
        let state = match &process.saved {
            Some(saved) => &saved.state,
            None => match RollState::start(inventory, self.drive.options.clone(), now.timestamp(), self.approved.as_ref()) {
                Ok(state) => {
                    started = state;
                    &started
                }
                Err(StartError::NoKubernetes) => return Next::Failed,
                Err(error) => {
                    self.monitor.broken(Rule::Contract, now, error.to_string());
                    self.stuck = true;
                    return Next::Over;
                }
            },
        };
        let kubernetes = match (&view.raw.kubernetes, view.silent) {
            (Some(facts), None) => Ok(facts),
            (_, silent) => Err(silent.unwrap_or("there is none")),
        };
        let observation = Observation { now: now.timestamp(), inventory, kubernetes, results: &process.results, control: &process.control };
        let decision = self.planner.next(state, &observation);
        process.results.clear();
        Next::On(Stage::Store(Box::new(decision)))
    }

    /// Counts an effect; says whether the process dies before or after it.
    fn effect(&mut self) -> (bool, bool) {
        self.effects += 1;
        let struck = self.world.faulty() && self.random.once_in(self.world.faults.kill);
        self.world.struck += u64::from(struck);
        let first = struck && self.random.once_in(2);
        (self.drive.kill == Kill::Before(self.effects) || first, self.drive.kill == Kill::After(self.effects) || (struck && !first))
    }

    fn store(&mut self, process: &mut Process, decision: Decision) -> Next {
        let before = process.saved.as_ref().map(|saved| Arc::clone(&saved.state));
        let Decision { state, commands, wait, events } = decision;
        let unchanged = process.saved.as_ref().is_some_and(|saved| *saved.state == state);
        let mut die_after = false;
        if !unchanged && self.drive.flaw == Flaw::ActsFirst && !commands.is_empty() {
            let version = process.saved.as_ref().map_or(0, |saved| saved.version);
            process.saved = Some(Saved { state: Arc::new(state), version });
        } else if !unchanged {
            let (before, after) = self.effect();
            if before {
                return Next::Killed;
            }
            if !self.save(process, Arc::new(state)) {
                return Next::Failed;
            }
            die_after = after;
        }
        if self.world.happenings.is_some() {
            for event in &events {
                self.world.note(What::Told(event.clone()));
            }
        }
        if self.watches()
            && let Some(saved) = &process.saved
        {
            if let Some((view, _)) = process.seen.as_ref().filter(|_| process.looks) {
                self.monitor.observed(view);
                process.looks = false;
            }
            if let Some((view, _)) = &process.seen {
                let is_stored = self.stored.as_ref().is_some_and(|stored| stored.version == saved.version);
                let said = Said { events: &events, control: &process.control, is_stored };
                self.monitor.decided(&self.world, view, before.as_deref(), &saved.state, said);
            }
        }
        if die_after {
            return Next::Killed;
        }
        self.follow(process, commands, wait.map(|until| (Moment::at(until.at), until.reason.to_string())))
    }

    /// Stores a state unless another process has stored one since.
    fn save(&mut self, process: &mut Process, state: Arc<RollState>) -> bool {
        let expected = process.saved.as_ref().map(|saved| saved.version).filter(|version| *version > 0);
        let found = self.stored.as_ref().map(|saved| saved.version);
        if expected != found && self.drive.flaw != Flaw::Overwrites {
            self.world.note(What::Conflict);
            return false;
        }
        if found.is_none()
            && self.watches()
            && let Some((view, _)) = &process.seen
        {
            self.monitor.began(view, self.approved.as_ref());
        }
        let saved = Saved { state, version: found.unwrap_or(0) + 1 };
        if saved.state.outcome.is_final() {
            if self.watches() {
                self.monitor.ended(&self.world, &saved.state);
            }
            self.world.note(What::Ended(format!("{:?}", saved.state.outcome)));
        }
        self.stored = Some(saved.clone());
        process.saved = Some(saved);
        self.world.note(What::Stored);
        true
    }

    fn follow(&mut self, process: &mut Process, commands: Vec<Command>, wait: Option<(Moment, String)>) -> Next {
        let now = self.world.now();
        let over = process.saved.as_ref().is_some_and(|saved| saved.state.outcome.is_final());
        if over {
            if !commands.is_empty() || wait.is_some() {
                self.monitor.broken(Rule::Contract, now, "there is something to do after the end".to_owned());
            }
            return Next::Over;
        }
        let Some((until, reason)) = wait else {
            if commands.is_empty() {
                self.monitor.broken(Rule::Progress, now, "neither a command nor a wait: the roll stands still".to_owned());
                self.stuck = true;
                return Next::Over;
            }
            return Next::On(Stage::Execute(commands.into()));
        };
        if !commands.is_empty() {
            self.monitor.broken(Rule::Contract, now, "commands and a wait at once".to_owned());
        }
        if until <= now {
            self.monitor.broken(Rule::Progress, now, format!("a wait that does not lead forward: {reason}"));
            self.stuck = true;
            return Next::Over;
        }
        self.world.note(What::Waits(reason));
        let wait = until.since(now);
        if wait <= LONGEST_SLEEP && now.since(process.born) < LONGEST_STEP {
            return Next::On(Stage::Asleep(until));
        }
        // The caller waits whole seconds.
        let seconds = wait.as_secs() + i64::from(wait.subsec_nanos() > 0);
        Next::Again(now.after(SignedDuration::from_secs(seconds)))
    }

    fn execute(&mut self, process: &mut Process, mut commands: VecDeque<Command>) -> Next {
        let Some(command) = commands.pop_front() else {
            if self.drive.flaw == Flaw::ActsFirst
                && let Some(saved) = process.saved.clone()
                && !self.save(process, saved.state)
            {
                return Next::Failed;
            }
            return Next::On(Stage::Decide);
        };
        let (before, after) = self.effect();
        if before {
            return Next::Killed;
        }
        let (Some((view, _)), Some(saved)) = (&process.seen, &process.saved) else { return Next::On(Stage::Observe) };
        // What is stored, or what this process had stored before another one went on.
        let durable = match &self.stored {
            Some(stored) if stored.version == saved.version => Some(&*stored.state),
            Some(_) => Some(&*saved.state),
            None => None,
        };
        if self.drive.measures.is_none() {
            self.monitor.command(&self.world, &command, view, durable);
        }
        let executed = self.world.execute(&command);
        if self.drive.measures.is_none() {
            self.monitor.executed(&self.world, &command, &executed, view);
        }
        if after {
            return Next::Killed;
        }
        process.results.push(CommandResult { command, result: executed.result });
        Next::On(Stage::Execute(commands))
    }

    fn finish(self) -> Rolled {
        let removed = self.monitor.removed(&self.world).into_iter().map(str::to_owned).collect();
        Rolled {
            world: self.world,
            state: self.stored.map(|saved| RollState::clone(&saved.state)),
            violations: self.monitor.violations,
            removed,
            effects: self.effects,
            decisions: self.decisions,
            processes: self.processes,
        }
    }
}

impl Process {
    fn wakes(&self) -> Option<Moment> {
        match self.stage {
            Stage::Asleep(until) => Some(until),
            _ => None,
        }
    }

    fn sleeps(&self, now: Moment) -> bool {
        self.wakes().is_some_and(|until| until > now)
    }
}
