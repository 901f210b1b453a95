//! Rolls by the thousand, on all cores, until a property breaks.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use kopsline_rolling::Outcome;
use kopsline_simulator::{Case, Mix, Rolled, Rule, transcript};

/// Rolls simulated clusters with the planner and checks the promises.
#[derive(Debug, Parser)]
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
    /// Whether anything goes wrong.
    #[arg(long, value_enum, default_value_t = Which::All)]
    faults: Which,
    /// How many threads; all cores, if unset.
    #[arg(long)]
    threads: Option<usize>,
    /// How many broken rolls to name before giving up.
    #[arg(long, default_value_t = 10)]
    stop_after: usize,
    /// Tell of one roll alone, the one of `--seed`.
    #[arg(long)]
    replay: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    All,
    Some,
    None,
}

impl Arguments {
    fn mix(&self) -> Mix {
        let kubernetes = match self.kubernetes {
            Which::All => Some(true),
            Which::Some => None,
            Which::None => Some(false),
        };
        Mix { kubernetes, faults: self.faults != Which::None }
    }
}

#[derive(Debug, Default)]
struct Totals {
    outcomes: BTreeMap<&'static str, u64>,
    decisions: u64,
    effects: u64,
    processes: u64,
    broken: BTreeMap<Rule, (u64, u64)>,
    named: usize,
}

impl Totals {
    fn add(&mut self, seed: u64, rolled: &Rolled) {
        let outcome = match rolled.state.as_ref().map(|state| &state.outcome) {
            Some(Outcome::Done { .. }) => "done",
            Some(Outcome::Failed { .. }) => "failed",
            Some(Outcome::Aborted { .. }) => "aborted",
            Some(Outcome::Running | Outcome::Unwinding { .. }) | None => "not ended",
        };
        *self.outcomes.entry(outcome).or_default() += 1;
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
            println!("seed {seed}: {first}");
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.replay {
        return Ok(replay(&arguments));
    }
    let threads = arguments.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), |threads| threads.max(1));
    let started = Instant::now();
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(&arguments, &next, &over, &totals));
        }
        scope.spawn(|| tell(&arguments, &next, &over, started));
    });
    let totals = totals.into_inner().unwrap_or_default();
    let rolls: u64 = totals.outcomes.values().sum();
    println!("{rolls} rolls on {threads} threads in {:.0} s ({} a second)", started.elapsed().as_secs_f64(), rate(rolls, started));
    let outcomes: Vec<_> = totals.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    println!("{}; {} decisions, {} effects, {} processes", outcomes.join(", "), totals.decisions, totals.effects, totals.processes);
    for (rule, (count, seed)) in &totals.broken {
        println!("BROKEN {rule:?}: {count} rolls; tell of one with --replay --seed {seed}");
    }
    Ok(if totals.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
            totals.add(seed, &rolled);
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
