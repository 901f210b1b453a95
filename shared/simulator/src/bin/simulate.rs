//! Rolls by the thousand, on all cores, until a property breaks; or one big roll, to see what planning costs.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use kopsline_rolling::{
    Decision, GroupSpec, IntOrString, Manager, Observation, Outcome, Role, RollOptions, RollState, RollingUpdate, next,
};
use kopsline_simulator::{Case, Drive, GroupPlan, Kind, Mix, Planner, Rolled, Rule, WorkloadPlan, World, roll, transcript};

/// Rolls simulated clusters with the planner and checks the promises.
#[derive(Debug, Parser)]
#[command(args_override_self = true)]
struct Arguments {
    /// How many rolls.
    #[arg(long, default_value_t = 10_000)]
    rolls: u64,
    /// The first seed; each roll takes the next one.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which clusters have a Kubernetes API.
    #[arg(long, value_enum, default_value_t = Which::Some)]
    kubernetes: Which,
    /// In which rolls things may go wrong.
    #[arg(long, value_enum, default_value_t = Faults::On)]
    faults: Faults,
    /// How many threads; all cores, if unset.
    #[arg(long)]
    threads: Option<usize>,
    /// How many broken rolls to name before giving up.
    #[arg(long, default_value_t = 10)]
    stop_after: usize,
    /// Tell of one roll alone, the one of `--seed`.
    #[arg(long)]
    replay: bool,
    /// Measure what planning costs for clusters of so many nodes; smaller ones first, since memory is that of the process.
    #[arg(long, num_args = 0.., value_delimiter = ',', default_missing_values = ["1000", "3000", "10000"])]
    nodes: Option<Vec<u32>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    All,
    Some,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Faults {
    On,
    Off,
}

impl Arguments {
    fn mix(&self) -> Mix {
        let kubernetes = match self.kubernetes {
            Which::All => Some(true),
            Which::Some => None,
            Which::None => Some(false),
        };
        Mix { kubernetes, faults: self.faults == Faults::On }
    }

    /// The command that tells of one roll alone.
    fn replays(&self, seed: u64) -> String {
        let kubernetes = match self.kubernetes {
            Which::All => " --kubernetes all",
            Which::Some => "",
            Which::None => " --kubernetes none",
        };
        let faults = if self.faults == Faults::On { "" } else { " --faults off" };
        format!("cargo run --release -p kopsline-simulator --bin simulate -- --replay --seed {seed}{kubernetes}{faults}")
    }
}

#[derive(Debug, Default)]
struct Totals {
    outcomes: BTreeMap<&'static str, u64>,
    faults: u64,
    decisions: u64,
    effects: u64,
    processes: u64,
    broken: BTreeMap<Rule, (u64, u64)>,
    named: usize,
}

impl Totals {
    fn add(&mut self, seed: u64, arguments: &Arguments, rolled: &Rolled) {
        let outcome = match rolled.state.as_ref().map(|state| &state.outcome) {
            Some(Outcome::Done { .. }) => "done",
            Some(Outcome::Failed { .. }) => "failed",
            Some(Outcome::Aborted { .. }) => "aborted",
            Some(Outcome::Running | Outcome::Unwinding { .. }) | None => "not ended",
        };
        *self.outcomes.entry(outcome).or_default() += 1;
        self.faults += rolled.world.struck;
        self.decisions += rolled.decisions;
        self.effects += rolled.effects;
        self.processes += rolled.processes;
        if let Some(first) = rolled.violations.first() {
            let (count, example) = self.broken.entry(first.rule).or_default();
            *count += 1;
            if *count == 1 {
                *example = seed;
            }
            self.named += 1;
            println!("seed {seed}: {first}\n  {}", arguments.replays(seed));
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(nodes) = &arguments.nodes {
        return measure(nodes);
    }
    if arguments.replay {
        return replay(&arguments);
    }
    let threads = arguments.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |threads| threads.max(1));
    let started = Instant::now();
    let (number, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&arguments, &number, &over, &totals));
        }
        scope.spawn(|| tell(&arguments, &number, &over, started));
    });
    let totals = totals.into_inner().unwrap_or_default();
    let rolls: u64 = totals.outcomes.values().sum();
    println!("{rolls} rolls on {threads} threads in {:.0} s, {} a second", started.elapsed().as_secs_f64(), rate(rolls, started));
    let outcomes: Vec<_> = totals.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    println!("{}", outcomes.join(", "));
    let Totals { faults, decisions, effects, processes, .. } = totals;
    println!("{faults} faults injected, {effects} effects, {decisions} decisions, {processes} processes");
    for (rule, (count, seed)) in &totals.broken {
        println!("BROKEN {rule:?}: {count} rolls; one of them: {}", arguments.replays(*seed));
    }
    if totals.broken.is_empty() {
        println!("no property is broken");
    }
    if totals.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(arguments: &Arguments, next: &AtomicU64, over: &AtomicBool, totals: &Mutex<Totals>) {
    while !over.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= arguments.rolls {
            over.store(true, Ordering::Relaxed);
            return;
        }
        let seed = arguments.seed.wrapping_add(number);
        let rolled = Case::of(seed, arguments.mix()).roll();
        if let Ok(mut totals) = totals.lock() {
            totals.add(seed, arguments, &rolled);
            if totals.named >= arguments.stop_after {
                over.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn tell(arguments: &Arguments, next: &AtomicU64, over: &AtomicBool, started: Instant) {
    let mut told = Instant::now();
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        if told.elapsed() >= Duration::from_secs(10) {
            told = Instant::now();
            let done = next.load(Ordering::Relaxed).min(arguments.rolls);
            eprintln!("{done} of {} rolls, {} a second", arguments.rolls, rate(done, started));
        }
    }
}

fn rate(rolls: u64, started: Instant) -> u64 {
    let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
    rolls.saturating_mul(1000) / millis
}

fn replay(arguments: &Arguments) -> ExitCode {
    let case = Case::of(arguments.seed, arguments.mix());
    print!("{case}");
    let rolled = case.told();
    print!("{}", transcript(rolled.world.happenings.as_deref().unwrap_or_default()));
    if let Some(state) = &rolled.state {
        println!("{:?}: {}", state.outcome, state.summary());
    }
    for violation in &rolled.violations {
        println!("{violation}");
    }
    if rolled.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How many decisions of a big roll are measured.
const MEASURED: u64 = 200;
/// Pods of a node, beside those of its `DaemonSet`.
const PODS: u32 = 9;

/// The planner with a stop watch.
#[derive(Default)]
struct Timed {
    spent: Duration,
    longest: Duration,
    decisions: u32,
}

impl Planner for Timed {
    fn next(&mut self, state: &RollState, observation: &Observation<'_>) -> Decision {
        let started = Instant::now();
        let decision = next(state, observation);
        let took = started.elapsed();
        (self.spent, self.longest, self.decisions) = (self.spent + took, self.longest.max(took), self.decisions + 1);
        decision
    }
}

fn measure(sizes: &[u32]) -> ExitCode {
    println!(
        "{:>7} {:>8} {:>10} {:>14} {:>16} {:>14} {:>12} {:>12}",
        "nodes", "pods", "decisions", "a decision", "per 1,000 nodes", "the longest", "state", "memory"
    );
    for &nodes in sizes {
        let world = big_world(nodes);
        let pods = world.live_pods().count();
        let drive = Drive { options: RollOptions::default(), measures: Some(MEASURED), ..Drive::default() };
        let mut planner = Timed::default();
        let rolled = roll(world, &drive, &mut planner);
        let state = rolled.state.as_ref().and_then(|state| state.to_json().ok()).map_or(0, |json| json.len());
        let decision = planner.spent.as_secs_f64() * 1000.0 / f64::from(planner.decisions.max(1));
        println!(
            "{nodes:>7} {pods:>8} {:>10} {decision:>11.2} ms {:>13.2} ms {:>11.2} ms {:>9} kB {:>12}",
            planner.decisions,
            decision * 1000.0 / f64::from(nodes.max(1)),
            planner.longest.as_secs_f64() * 1000.0,
            state / 1000,
            peak_memory()
        );
    }
    ExitCode::SUCCESS
}

/// A control plane of three and ten groups, of which a tenth may be down at a time.
fn big_world(nodes: u32) -> World {
    let mut world = World::new("big.test", 1);
    world.kubernetes = true;
    let mut add = |name: String, role: Role, size: u32| {
        let rolling_update = RollingUpdate { max_unavailable: Some(IntOrString::Text("10%".to_owned())), ..RollingUpdate::default() };
        let spec = GroupSpec { name, role, manager: Manager::CloudGroup, min_size: size, rolling_update };
        world.add_group(GroupPlan::new(spec, size, 0));
    };
    add("control-plane".to_owned(), Role::ControlPlane, 3);
    for number in 0..10 {
        add(format!("nodes-{number}"), Role::Node, nodes / 10);
    }
    for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        world.add_workload(WorkloadPlan::critical(Kind::Static, name, 0));
    }
    world.add_workload(WorkloadPlan::critical(Kind::DaemonSet, "cilium", 0));
    for number in 0..nodes / 10 {
        world.add_workload(WorkloadPlan::new(Kind::Deployment, &format!("app-{number}"), PODS * 10));
    }
    world.begin();
    world
}

/// The most memory this process has had, as the system tells it.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map_or_else(|| "unknown".to_owned(), |peak| peak.trim().to_owned())
}
