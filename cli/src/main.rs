//! The command line of Kopsline.
//!
//! Exit codes: 0 when all went well, 1 when the command failed, 2 when it was used wrongly, 3 when it worked but the
//! answer is not the wished-for one: `status --wait` of a run that ended otherwise, `doctor` with a failed check,
//! `plan --detailed-exitcode` with changes.

mod approve;
mod clusters;
mod context;
mod doctor;
mod executions;
mod follow;
mod kops;
mod local;
mod output;
mod plan;
mod progress;
mod retry;
mod roll;
mod status;
mod terminal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kopsline_core::{Decision, Order};
use tracing_subscriber::EnvFilter;

use crate::context::{Context, PlaceArgs};
use crate::output::{Format, Paint, Style};

/// The exit code of a command that worked, with another answer than the wished-for one.
const NOT_AS_WISHED: u8 = 3;

/// Clusters of kOps changed by merges: what runs, what waits for whom, and what a change would do
#[derive(Debug, Parser)]
#[command(
    name = "kopsline",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done with another answer than the wished-for one."
)]
struct Cli {
    #[command(flatten)]
    place: PlaceArgs,
    /// How to print results
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the newest runs, or one run in full
    Status(status::Args),
    /// Say yes to what a run asks
    Approve(approve::Args),
    /// Say no to what a run asks
    Reject(approve::Args),
    /// Answer a question in the middle of a rolling update
    Answer(approve::AnswerArgs),
    /// Pause a rolling update: what was begun is finished, nothing new is begun
    Pause(approve::OrderArgs),
    /// Let a paused rolling update go on
    Resume(approve::OrderArgs),
    /// End a rolling update and give back what it did not replace
    Abort(approve::OrderArgs),
    /// Run a finished run's commit once more
    Retry(retry::Args),
    /// Replace the instances of a cluster that need an update, from this shell
    Roll(roll::Args),
    /// Show what a working tree would change, without writing anything
    Plan(plan::Args),
    /// Check that everything Kopsline needs is there
    Doctor(doctor::Args),
    /// Run all of Kopsline on this machine, with emulated AWS
    Local(local::Args),
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// All is well.
    Well,
    /// With an exit code of its own.
    With(u8),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("KOPSLINE_LOG").unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(&cli).await {
        Ok(Ended::Well) => ExitCode::SUCCESS,
        Ok(Ended::With(code)) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{} {}", Style::detect().paint(Paint::Bad, "error:"), output::printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> anyhow::Result<Ended> {
    let context = async || Context::new(&cli.place).await;
    match &cli.command {
        Command::Status(args) => status::run(&context().await?, cli.output, args).await,
        Command::Approve(args) => approve::run(&context().await?, cli.output, Decision::Approve, args).await,
        Command::Reject(args) => approve::run(&context().await?, cli.output, Decision::Reject, args).await,
        Command::Answer(args) => approve::run_answer(&context().await?, cli.output, args).await,
        Command::Pause(args) => approve::run_order(&context().await?, cli.output, Order::Pause, args).await,
        Command::Resume(args) => approve::run_order(&context().await?, cli.output, Order::Resume, args).await,
        Command::Abort(args) => approve::run_order(&context().await?, cli.output, Order::Abort, args).await,
        Command::Retry(args) => retry::run(&context().await?, cli.output, args).await,
        Command::Roll(args) => Box::pin(roll::run(&context().await?, cli.output, args)).await,
        Command::Plan(args) => plan::run(&context().await?, cli.output, args).await,
        Command::Doctor(args) => doctor::run(&context().await?, cli.output, args).await,
        Command::Local(args) => Box::pin(local::run(cli.output, args)).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_ids_are_refused_with_a_remedy() {
        let error = Cli::try_parse_from(["kopsline", "approve", "demo"]).unwrap_err().to_string();
        assert!(error.contains("<run>.update.1"), "{error}");
        let error = Cli::try_parse_from(["kopsline", "status", "../x"]).unwrap_err().to_string();
        assert!(error.contains("run id"), "{error}");
    }

    #[test]
    fn options_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from(["kopsline", "status", "--output", "json", "--local", "--run-bucket", "b"]).unwrap();
        assert_eq!((cli.output, cli.place.local, cli.place.run_bucket.as_deref()), (Format::Json, true, Some("b")));
        assert!(Cli::try_parse_from(["kopsline", "status", "--wait"]).is_err(), "waiting needs a run");
        assert!(Cli::try_parse_from(["kopsline", "status", "a", "--wait", "--watch"]).is_err());
    }
}
