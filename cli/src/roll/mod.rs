//! `kopsline roll`: a rolling update from a shell, by the same engine and with the same checkpoint as the pipeline's.

mod checkpoints;
mod desk;
mod hold;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use aws_config::Region;
use jiff::{SignedDuration, Timestamp};
use kopsline_cloud::AwsCloud;
use kopsline_core::{ClusterConfig, ClusterName, keys};
use kopsline_kube::AccessOptions;
use kopsline_roller::{Budget, Checkpoints as _, Saved, StepOutcome, SystemClock, Target, run_step};
use kopsline_rolling::{
    Forecast, History, Outcome, Preview, Role, RollEvent, RollOptions, Selection, StuckDrain, Summary, forecast, preview,
};
use kopsline_simulator::{Chance, rehearse};
use kopsline_state::{ClusterState, S3Stores, backoff, s3};
use serde::Serialize;

use self::checkpoints::FileCheckpoints;
use self::desk::TerminalDesk;
use self::hold::Hold;
use crate::context::Context;
use crate::output::{self, Format, Paint, Style};
use crate::progress::Progress;
use crate::{Ended, NOT_AS_WISHED, clusters};

/// A shell waits for the roll itself, so a step ends only with the roll, a question or an order.
const STEP: SignedDuration = SignedDuration::from_mins(10);
/// How often in a row a step may fail by what may pass, each time after the clients' own attempts, and the pauses between.
const MOST_FAILURES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// What a round of observing, deciding and acting takes at most where AWS is well.
const ROUND: SignedDuration = SignedDuration::from_secs(20);

/// Options of `kopsline roll`. Those that `kops rolling-update cluster` has are named and default as there; what
/// `kopsline.yaml` says of the cluster comes before the defaults, and what is said here before both.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "they are the flags of a command")]
pub(crate) struct Args {
    /// The cluster, as `kopsline.yaml` lists it
    cluster: ClusterName,
    /// The working tree of the clusters' repository
    #[arg(long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Roll; without it only the preview and the forecast are shown
    #[arg(long)]
    yes: bool,
    /// Give back what an unfinished roll did not replace, and forget it
    #[arg(long, conflicts_with = "yes")]
    abort: bool,
    /// Rehearse the roll of the cluster as it is now, in simulated time; nothing real is touched
    #[arg(long, conflicts_with_all = ["yes", "abort"])]
    simulate: bool,
    /// By what chance a rehearsal goes: the same seed gives the same one
    #[arg(long, requires = "simulate", default_value_t = 1)]
    seed: u64,
    /// Let things go wrong in a rehearsal: lost answers, throttling, instances that vanish or never join, an API that is down
    #[arg(long, requires = "simulate")]
    faults: bool,
    /// Replace up-to-date instances too
    #[arg(long)]
    force: bool,
    /// Work with EC2 and Auto Scaling alone: nothing is drained or validated
    #[arg(long)]
    cloudonly: bool,
    /// Ask after each instance
    #[arg(long, short)]
    interactive: bool,
    /// Only these instance groups
    #[arg(long, value_delimiter = ',', value_name = "NAME", visible_alias = "ig")]
    instance_group: Vec<String>,
    /// Only these roles: control-plane, apiserver, node, bastion
    #[arg(long, value_delimiter = ',', value_name = "ROLE", visible_alias = "role", value_parser = role)]
    instance_group_roles: Vec<Role>,
    /// What to do about a drain that does not end
    #[arg(long, value_enum, value_name = "CHOICE")]
    on_stuck_drain: Option<OnStuckDrain>,
    /// Speak to the Kubernetes API at this address
    #[arg(long, value_name = "URL")]
    api_server: Option<String>,
    /// Where unfinished rolls are remembered
    #[arg(long, value_name = "DIR", env = "KOPSLINE_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnStuckDrain {
    /// Stop the instance group
    Fail,
    /// Delete what is left on the node and terminate it
    Force,
    /// Leave the node as it was
    Skip,
    /// Ask
    Ask,
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| format!("unknown role {text:?}; use {}", Role::NAMES))
}

/// What would be done, as `--output json` shows it.
#[derive(Debug, Serialize)]
struct Shown {
    preview: Preview,
    forecast: Forecast,
}

/// A rehearsal, as `--output json` shows it. Simulated time begins with 1970.
#[derive(Debug, Serialize)]
struct Rehearsal<'a> {
    seed: u64,
    faults: bool,
    outcome: Option<&'a Outcome>,
    summary: Summary,
    took: SignedDuration,
    events: Vec<&'a RollEvent>,
}

/// A cluster, how to roll it, and what earlier rolls by the pipeline took.
struct Plan {
    target: Target,
    options: RollOptions,
    history: History,
}

/// Runs the command.
pub(crate) async fn run(context: &Context, format: Format, args: &Args) -> anyhow::Result<Ended> {
    let file = clusters::read(&args.directory)?;
    let config = file.clusters.iter().find(|cluster| cluster.name == args.cluster);
    let config = config.ok_or_else(|| clusters::no_such(&file))?;
    let progress = if format == Format::Json { Progress::silent() } else { Progress::aside() };
    let checkpoints = FileCheckpoints::new(args.state_dir.as_deref(), config)?;
    let begun = if args.yes || args.abort { checkpoints.load().await? } else { None };
    if args.abort && begun.is_none() {
        output::line("There is no unfinished roll of this cluster.");
        return Ok(Ended::Well);
    }
    let options = match begun {
        Some(Saved { state, .. }) => {
            progress
                .say(&format!("goes on with the roll that began {}, with the settings of then", state.started.strftime("%F %H:%M:%SZ")));
            state.options
        }
        None => options(config, args)?,
    };
    let plan = Plan::find(context, config, args, options, &progress).await?;

    if args.simulate {
        return plan.rehearse(format, Chance { seed: args.seed, faults: args.faults }, &progress).await;
    }
    if !args.yes && !args.abort {
        let shown = plan.show(&progress).await?;
        match format {
            Format::Json => output::json(&shown)?,
            Format::Text => {
                output::print(&output::printable(&format!("{}\n{}", shown.preview.table(), shown.forecast)));
                if checkpoints.exists() {
                    output::line("An unfinished roll is remembered: --yes goes on with it, --abort gives back what it did not replace.");
                }
            }
        }
        return Ok(Ended::Well);
    }
    let hold = Hold::take(context, config).await?;
    // Between any two commands, while it waits and while it asks; the checkpoint says where to go on.
    let outcome = tokio::select! {
        outcome = plan.roll(&checkpoints, args, &progress) => outcome,
        Err(lost) = hold.keep() => Err(lost),
        _ = tokio::signal::ctrl_c() => Err(anyhow!(
            "interrupted; what was begun may still be going on. The same command goes on with it, --abort gives back what was not replaced"
        )),
    };
    let released = hold.release().await;
    let ended = tell(&outcome?, format, &checkpoints)?;
    released.map(|()| ended)
}

impl Plan {
    async fn find(
        context: &Context,
        config: &ClusterConfig,
        args: &Args,
        options: RollOptions,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let stores = S3Stores::new(s3::client(&context.sdk));
        let reading = ClusterState::read(&stores, &config.state_store, &config.name);
        let live = progress.during(&format!("the state store of {}", config.name), reading).await?;
        let cloud = AwsCloud::new(&context.sdk.to_builder().region(Region::new(config.region.clone())).build());
        let settings = &config.rolling_update;
        let api_server = args.api_server.clone().or_else(|| settings.api_server.clone());
        let access = AccessOptions { api_server, internal: settings.internal, admin: true };
        let target = Target::find(&live, &stores, Arc::new(cloud), Some(&access).filter(|_| !options.cloudonly)).await?;
        let history = match context.runs() {
            Ok(runs) => runs.documents().read(&keys::roll_history(&config.state_store, &config.name)).await?.map(|found| found.value),
            Err(_) => None,
        };
        Ok(Self { target, options, history: history.unwrap_or_default() })
    }

    async fn show(&self, progress: &Progress) -> anyhow::Result<Shown> {
        let (inventory, facts) = progress.during("EC2, Auto Scaling and the Kubernetes API", self.target.look()).await?;
        Ok(Shown {
            preview: preview(&inventory, &self.options.selection, self.options.force)?,
            forecast: forecast(&inventory, facts.as_ref(), &self.options, None, &self.history)?,
        })
    }

    /// Rolls what is there now in simulated time.
    async fn rehearse(&self, format: Format, chance: Chance, progress: &Progress) -> anyhow::Result<Ended> {
        let (inventory, facts) = progress.during("EC2, Auto Scaling and the Kubernetes API", self.target.look()).await?;
        let rehearsed = rehearse(&inventory, facts.as_ref(), &self.options, &self.history, chance);
        match format {
            Format::Json => output::json(&Rehearsal {
                seed: chance.seed,
                faults: chance.faults,
                outcome: rehearsed.outcome.as_ref(),
                summary: rehearsed.summary,
                took: rehearsed.took,
                events: rehearsed.events().collect(),
            })?,
            Format::Text => output::print(&output::printable(&rehearsed.to_string())),
        }
        let well = matches!(rehearsed.outcome, Some(Outcome::Done { .. })) && rehearsed.violations.is_empty();
        Ok(if well { Ended::Well } else { Ended::With(NOT_AS_WISHED) })
    }

    /// Rolls until the end.
    async fn roll(&self, checkpoints: &FileCheckpoints, args: &Args, progress: &Progress) -> anyhow::Result<StepOutcome> {
        let desk = TerminalDesk::new(progress, args.abort);
        let roll = kopsline_roller::Roll {
            cloud: &*self.target.cloud,
            kubernetes: self.target.kubernetes(),
            checkpoints,
            desk: &desk,
            clock: &SystemClock,
            cluster: &self.target.cluster,
            options: &self.options,
            approved: None,
            budget: Budget { total: STEP, round: ROUND, longest_sleep: STEP },
        };
        let mut failures = 0;
        loop {
            let outcome = match run_step(&roll).await {
                Err(error) if error.is_transient() && failures < MOST_FAILURES => {
                    let pause = backoff::delay(failures, FIRST_PAUSE, LONGEST_PAUSE);
                    failures += 1;
                    let error = anyhow::Error::from(error);
                    progress.say(&output::printable(&format!("{error:#}; tries again in {} s", pause.as_millis().div_ceil(1000))));
                    tokio::time::sleep(pause).await;
                    continue;
                }
                result => result.context("the roll stands still; the same command goes on with it")?,
            };
            failures = 0;
            match outcome {
                StepOutcome::Progress { wait_seconds, waits_for, summary } => {
                    progress.waiting_for(&format!("{summary}; waits for {waits_for}"));
                    tokio::time::sleep(Duration::from_secs(wait_seconds)).await;
                }
                StepOutcome::Asks { question, .. } => tokio::select! {
                    answered = desk.ask(&question) => answered?,
                    () = sleep_until(question.deadline) => progress.say("nobody has answered in time"),
                },
                outcome => return Ok(outcome),
            }
        }
    }
}

/// Sleeps until a time, or for ever.
async fn sleep_until(time: Option<Timestamp>) {
    match time {
        Some(time) => tokio::time::sleep(time.duration_since(Timestamp::now()).try_into().unwrap_or_default()).await,
        None => std::future::pending().await,
    }
}

fn tell(outcome: &StepOutcome, format: Format, checkpoints: &FileCheckpoints) -> anyhow::Result<Ended> {
    let style = Style::detect();
    let (text, ended) = match outcome {
        StepOutcome::Done { still_need_update, summary } => {
            checkpoints.forget()?;
            let left = still_need_update.len();
            let rest = if left == 0 { String::new() } else { format!("; {} still need an update", output::count(left, "instance")) };
            (format!("{}: {summary}{rest}", style.paint(Paint::Good, "rolled")), Ended::Well)
        }
        StepOutcome::Failed { reason, summary } => {
            checkpoints.forget()?;
            (format!("{}: {reason}; {summary}", style.paint(Paint::Bad, "failed")), Ended::With(1))
        }
        StepOutcome::Aborted { reason, summary } => {
            checkpoints.forget()?;
            (format!("{}: {reason}; {summary}", style.paint(Paint::Bad, "aborted")), Ended::With(NOT_AS_WISHED))
        }
        StepOutcome::Progress { .. } | StepOutcome::Asks { .. } | StepOutcome::Paused { .. } => {
            ("the roll is not through".to_owned(), Ended::With(NOT_AS_WISHED))
        }
    };
    match format {
        Format::Json => output::json(outcome)?,
        Format::Text => output::line(&output::printable(&text)),
    }
    Ok(ended)
}

/// `kopsline.yaml`'s settings, and over them what the command line says.
fn options(config: &ClusterConfig, args: &Args) -> anyhow::Result<RollOptions> {
    let settings = kopsline_roller::options(config)?;
    let selection = Selection {
        instance_groups: if args.instance_group.is_empty() { settings.selection.instance_groups } else { args.instance_group.clone() },
        roles: if args.instance_group_roles.is_empty() { settings.selection.roles } else { args.instance_group_roles.clone() },
    };
    let on_stuck_drain = args.on_stuck_drain.map(|choice| match choice {
        OnStuckDrain::Fail => StuckDrain::Fail,
        OnStuckDrain::Force => StuckDrain::Force,
        OnStuckDrain::Skip => StuckDrain::Skip,
        OnStuckDrain::Ask => StuckDrain::Ask,
    });
    Ok(RollOptions {
        selection,
        force: settings.force || args.force,
        cloudonly: settings.cloudonly || args.cloudonly,
        interactive: args.interactive,
        on_stuck_drain: on_stuck_drain.or(settings.on_stuck_drain).or_else(|| std::io::stdin().is_terminal().then_some(StuckDrain::Ask)),
        ..settings
    })
}
