//! Running kops: alone with its environment, bounded in time and output.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kopsline_core::{Classify, FailureKind};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::binaries::Kops;
use crate::environment::Environment;

/// The most that kops may print on one channel. The dry run of a large cluster prints a few hundred kilobytes.
const MAX_OUTPUT: usize = 32 * 1024 * 1024;

/// How much of each channel a failure carries, from its end.
const TAIL: usize = 16 * 1024;

/// The longest piece that is given to the listener at once; a longer line comes in pieces.
const MAX_LINE: u64 = 64 * 1024;

/// How long a channel may stay open after kops has ended, by a child that inherited it.
const LINGER: Duration = Duration::from_secs(2);

/// How often a start is tried while the binary is "text file busy": another thread that is just starting a process of its
/// own may hold a freshly written file open for a moment.
const BUSY_ATTEMPTS: u32 = 20;

/// Where kops printed a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard output: what the command is about.
    Stdout,
    /// Standard error: kops' log.
    Stderr,
}

/// How long each command may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// `kops version` and `kops get` on local files.
    pub local: Duration,
    /// `kops replace`, which asks AWS for regions and zones.
    pub replace: Duration,
    /// `kops update cluster`, with or without `--yes`. kops gives up on a task after ten minutes without progress and
    /// says why (kOps 1.36 `upup/pkg/fi/executor.go`), which is worth waiting for; a function has fifteen.
    pub update: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { local: Duration::from_mins(1), replace: Duration::from_mins(3), update: Duration::from_mins(13) }
    }
}

/// What a command that succeeded printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// All of its standard output.
    pub stdout: String,
    /// The end of its standard error: kops' log.
    pub stderr: String,
    /// How long it ran.
    pub duration: Duration,
}

/// kops refused or failed. What it printed may hold secrets of the cluster: redact it before showing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KopsFailed {
    /// The command, such as `kops update cluster --name demo.k8s.local`.
    pub command: String,
    /// Its exit code; none if it was killed by a signal.
    pub code: Option<i32>,
    /// The end of its standard error.
    pub stderr: String,
    /// The end of its standard output.
    pub stdout: String,
}

impl fmt::Display for KopsFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "`{}` failed with exit code {code}", self.command)?,
            None => write!(f, "`{}` was killed by a signal", self.command)?,
        }
        let said = [&self.stderr, &self.stdout].into_iter().map(|text| text.trim()).find(|text| !text.is_empty());
        said.map_or(Ok(()), |said| write!(f, ":\n{said}"))
    }
}

impl std::error::Error for KopsFailed {}

/// A command that gave no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// kops refused or failed.
    #[error(transparent)]
    Failed(Box<KopsFailed>),
    /// It did not end in time and was killed, with all its children.
    #[error("`{command}` did not end within {} s and was killed; it last said:\n{stderr}", limit.as_secs())]
    TimedOut {
        /// The command.
        command: String,
        /// The time it had.
        limit: Duration,
        /// The end of its standard error.
        stderr: String,
    },
    /// It printed more than is kept and was killed.
    #[error("`{command}` printed more than {MAX_OUTPUT} bytes and was killed")]
    TooMuchOutput {
        /// The command.
        command: String,
    },
    /// It could not be started or read.
    #[error("`{command}` could not be run")]
    Io {
        /// The command.
        command: String,
        /// Why.
        source: io::Error,
    },
}

impl RunError {
    /// Whether running again may help: never known of kops, which repeats what is worth repeating itself.
    pub fn is_transient(&self) -> bool {
        false
    }
}

impl Classify for RunError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Failed(_) | Self::TimedOut { .. } | Self::TooMuchOutput { .. } => FailureKind::KopsFailed,
            Self::Io { .. } => FailureKind::Failed,
        }
    }
}

type Listener = dyn Fn(Channel, &str) + Send + Sync;

/// Runs one kops binary.
#[derive(Clone)]
pub struct Runner {
    kops: Kops,
    environment: Environment,
    folder: PathBuf,
    timeouts: Timeouts,
    listener: Arc<Listener>,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("kops", &self.kops).field("environment", &self.environment).finish_non_exhaustive()
    }
}

impl Runner {
    /// A runner of this binary. Every command gets a home of its own below `folder`, which must exist (`/tmp` on Lambda).
    pub fn new(kops: Kops, environment: Environment, folder: impl Into<PathBuf>) -> Self {
        let listener = |channel, line: &str| tracing::debug!(?channel, line, "kops");
        Self { kops, environment, folder: folder.into(), timeouts: Timeouts::default(), listener: Arc::new(listener) }
    }

    /// With other limits of time.
    #[must_use]
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Every line that kops prints is given to `listener` as it comes. It may hold secrets of the cluster.
    #[must_use]
    pub fn with_listener(self, listener: impl Fn(Channel, &str) + Send + Sync + 'static) -> Self {
        Self { listener: Arc::new(listener), ..self }
    }

    /// The binary.
    pub fn kops(&self) -> &Kops {
        &self.kops
    }

    /// The limits of time.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// The folder for what lives only as long as a command.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a command to its end. `files` are put into its working folder first, by name.
    pub(crate) async fn run(&self, args: &[&str], files: &[(&str, &str)], limit: Duration) -> Result<Output, RunError> {
        let command = || format!("kops {}", args.join(" "));
        let failed = |source| RunError::Io { command: command(), source };
        let home = tempfile::Builder::new().prefix("kops-").tempdir_in(&self.folder).map_err(failed)?;
        for (name, text) in files {
            std::fs::write(home.path().join(name), text).map_err(failed)?;
        }
        let started = Instant::now();
        let mut child = self.spawn(args, home.path()).await.map_err(failed)?;
        // Armed until everything has ended: a caller that gives up must not leave kops changing the cloud behind its back.
        let mut group = Group::of(&child);
        let (mut stdout, mut stderr) = (Captured::all(), Captured::tail());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let status = {
            let reading =
                async { tokio::try_join!(self.read(Channel::Stdout, out, &mut stdout), self.read(Channel::Stderr, err, &mut stderr)) };
            tokio::pin!(reading);
            let ending = async {
                tokio::select! {
                    // Reading ends first only when kops closed its channels early or flooded them.
                    read = &mut reading => { read?; Ok((child.wait().await?, true)) }
                    status = child.wait() => {
                        let status = status?;
                        let read = tokio::time::timeout(LINGER, &mut reading).await;
                        Ok::<_, io::Error>((status, read.ok().transpose()?.is_some()))
                    }
                }
            };
            tokio::time::timeout(limit, ending).await
        };
        let status = match status {
            Err(_) => {
                group.kill();
                let _ = child.wait().await;
                return Err(RunError::TimedOut { command: command(), limit, stderr: stderr.text(TAIL) });
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
                group.kill();
                let _ = child.wait().await;
                return Err(RunError::TooMuchOutput { command: command() });
            }
            Ok(ended) => {
                let (status, all_read) = ended.map_err(failed)?;
                if all_read {
                    group.disarm();
                }
                status
            }
        };
        if status.success() {
            return Ok(Output { stdout: stdout.text(usize::MAX), stderr: stderr.text(usize::MAX), duration: started.elapsed() });
        }
        Err(RunError::Failed(Box::new(KopsFailed {
            command: command(),
            code: status.code(),
            stderr: stderr.text(TAIL),
            stdout: stdout.text(TAIL),
        })))
    }

    async fn spawn(&self, args: &[&str], home: &Path) -> io::Result<Child> {
        let mut attempt = 0;
        loop {
            let mut command = Command::new(&self.kops.path);
            command.args(args).env_clear().envs(self.environment.variables());
            // No kubeconfig: else kops would ask whatever cluster the current context names.
            command.env("PATH", "/usr/bin:/bin").env("HOME", home).env("TMPDIR", home).env("KUBECONFIG", home.join("kubeconfig"));
            command.current_dir(home).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.process_group(0).kill_on_drop(true);
            match command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && attempt < BUSY_ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(25)).await;
                }
                result => return result,
            }
        }
    }

    async fn read(&self, channel: Channel, from: Option<impl AsyncRead + Unpin>, into: &mut Captured) -> io::Result<()> {
        let Some(from) = from else { return Ok(()) };
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            into.push(&line)?;
            (self.listener)(channel, String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        }
    }
}

/// What was read of a channel.
struct Captured {
    bytes: Vec<u8>,
    only_tail: bool,
}

impl Captured {
    /// Everything, up to the limit: a plan that was cut off would look like a smaller change.
    fn all() -> Self {
        Self { bytes: Vec::new(), only_tail: false }
    }

    /// The end, up to the limit: a log may be cut.
    fn tail() -> Self {
        Self { bytes: Vec::new(), only_tail: true }
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            if !self.only_tail {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            self.bytes.drain(..self.bytes.len().min(MAX_OUTPUT / 2));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// The last `limit` bytes as text, from the beginning of a line where the text is cut.
    fn text(&self, limit: usize) -> String {
        let cut = self.bytes.len().saturating_sub(limit);
        let tail = self.bytes.get(cut..).unwrap_or_default();
        let tail = if cut == 0 { tail } else { tail.splitn(2, |byte| *byte == b'\n').last().unwrap_or_default() };
        String::from_utf8_lossy(tail).into_owned()
    }
}

/// kops' process group, killed when dropped armed.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    fn disarm(&mut self) {
        self.0 = None;
    }

    fn kill(&mut self) {
        if let Some(group) = self.0.take() {
            // The group may be gone already, which is just as well.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use semver::Version;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;
    use tempfile::TempDir;

    const LIMIT: Duration = Duration::from_secs(30);

    /// A runner of a shell script in place of kops, in a folder of its own.
    fn fake(script: &str) -> (TempDir, Runner) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kops");
        fs::write(&path, format!("#!/bin/sh\n{}\n", script.replace("$FOLDER", folder.path().to_str().unwrap()))).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let kops = Kops { path, version: Version::new(1, 36, 2), sha256: String::new() };
        let environment = Environment::from_variables([("AWS_REGION".to_owned(), "eu-central-1".to_owned())]);
        let runner = Runner::new(kops, environment, folder.path());
        (folder, runner)
    }

    /// Whether the process that wrote its id to a file still runs; a dead one that nobody waited for does not.
    fn runs(folder: &TempDir, file: &str) -> bool {
        let id = fs::read_to_string(folder.path().join(file)).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/stat", id.trim()));
        status.is_ok_and(|status| !status.contains(") Z "))
    }

    async fn until(condition: impl Fn() -> bool) -> bool {
        for _ in 0..200 {
            if condition() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        false
    }

    #[tokio::test]
    async fn kops_sees_its_own_environment_and_nothing_else() {
        let (folder, runner) = fake("env; test -e \"$KUBECONFIG\" && echo a kubeconfig; pwd");
        let output = runner.run(&["x"], &[], LIMIT).await.unwrap();
        let names: Vec<_> = output.stdout.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
        // The last four are the shell's own.
        let expected = [
            "AWS_EC2_METADATA_DISABLED",
            "AWS_REGION",
            "GOGC",
            "GOMEMLIMIT",
            "HOME",
            "KUBECONFIG",
            "PATH",
            "TMPDIR",
            "OLDPWD",
            "PWD",
            "SHLVL",
            "_",
        ];
        for name in &names {
            assert!(expected.contains(name), "{name} got in");
        }
        for name in &expected[..8] {
            assert!(names.contains(name), "{name} is missing");
        }
        assert!(!output.stdout.contains("a kubeconfig"));
        let home = output.stdout.lines().last().unwrap();
        assert!(output.stdout.contains(&format!("HOME={home}\n")));
        assert!(Path::new(home).starts_with(folder.path()) && !Path::new(home).exists(), "the home is gone afterwards");
    }

    #[tokio::test]
    async fn files_are_given_and_lines_come_as_they_are_printed() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let (_folder, runner) = fake("cat in.yaml; echo log >&2");
        let runner = runner.with_listener(move |channel, line| seen.lock().unwrap().push((channel, line.to_owned())));
        let output = runner.run(&["x"], &[("in.yaml", "one\ntwo")], LIMIT).await.unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("one\ntwo", "log\n"));
        let mut lines = lines.lock().unwrap().clone();
        lines.sort_by_key(|(channel, _)| *channel == Channel::Stderr);
        assert_eq!(lines, [(Channel::Stdout, "one".into()), (Channel::Stdout, "two".into()), (Channel::Stderr, "log".into())]);
    }

    #[tokio::test]
    async fn a_failure_carries_what_kops_said() {
        let (_folder, runner) = fake("echo half a plan; echo 'Error: spec.a: Invalid value' >&2; exit 3");
        let Err(RunError::Failed(failed)) = runner.run(&["update", "cluster"], &[], LIMIT).await else { panic!("it did not fail") };
        assert_eq!((failed.code, failed.stdout.as_str()), (Some(3), "half a plan\n"));
        assert_eq!(failed.to_string(), "`kops update cluster` failed with exit code 3:\nError: spec.a: Invalid value");
        let (_folder, runner) = fake("kill -9 $$");
        let error = runner.run(&["x"], &[], LIMIT).await.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), ("`kops x` was killed by a signal", FailureKind::KopsFailed));
    }

    #[tokio::test]
    async fn a_binary_that_cannot_start_says_so() {
        let (folder, runner) = fake("true");
        fs::remove_file(folder.path().join("kops")).unwrap();
        let error = runner.run(&["x"], &[], LIMIT).await.unwrap_err();
        assert_eq!((error.to_string().as_str(), error.kind()), ("`kops x` could not be run", FailureKind::Failed));
    }

    #[tokio::test]
    async fn time_out_kills_it_with_its_children() {
        let (folder, runner) = fake("sleep 600 & echo $! > $FOLDER/child; echo working >&2; echo $$ > $FOLDER/own; wait");
        let error = runner.run(&["x"], &[], Duration::from_secs(2)).await.unwrap_err();
        assert!(matches!(&error, RunError::TimedOut { stderr, .. } if stderr == "working\n"), "{error}");
        assert!(until(|| !runs(&folder, "child") && !runs(&folder, "own")).await);
    }

    #[tokio::test]
    async fn a_child_left_behind_holds_nothing_up_and_is_killed() {
        let (folder, runner) = fake("sleep 600 & echo $! > $FOLDER/child; echo done");
        let output = runner.run(&["x"], &[], LIMIT).await.unwrap();
        assert_eq!(output.stdout, "done\n");
        assert!(until(|| !runs(&folder, "child")).await);
    }

    #[tokio::test]
    async fn a_caller_that_gives_up_leaves_nothing_running() {
        let (folder, runner) = fake("sleep 600 & echo $! > $FOLDER/child; echo $$ > $FOLDER/own; wait");
        let own = folder.path().join("own");
        tokio::select! {
            _ = runner.run(&["x"], &[], LIMIT) => panic!("it ended"),
            started = until(|| fs::read_to_string(&own).is_ok_and(|id| id.ends_with('\n'))) => assert!(started),
        }
        assert!(until(|| !runs(&folder, "child") && !runs(&folder, "own")).await);
    }

    #[tokio::test]
    async fn a_flood_is_bounded() {
        let (_folder, runner) = fake("head -c 40000000 /dev/zero; sleep 600");
        let error = runner.run(&["x"], &[], LIMIT).await.unwrap_err();
        assert!(matches!(error, RunError::TooMuchOutput { .. }), "{error}");
        let (_folder, runner) = fake("head -c 40000000 /dev/zero >&2; echo the end >&2; echo fine");
        let output = runner.run(&["x"], &[], LIMIT).await.unwrap();
        assert!(output.stdout == "fine\n" && output.stderr.len() <= MAX_OUTPUT && output.stderr.ends_with("the end\n"));
    }

    #[tokio::test]
    async fn the_version_is_what_the_binary_says() {
        for good in ["Client version: 1.36.2", "Client version: 1.36.2 (git-v1.36.2)", "Client version: v1.36.2"] {
            fake(&format!("echo '{good}'")).1.check_version().await.unwrap();
        }
        for bad in ["Client version: 1.36.1", "1.36.2", "", "Client version: 1.36.2-beta.1"] {
            let error = fake(&format!("echo '{bad}'")).1.check_version().await.unwrap_err();
            assert!(error.to_string().contains("kops 1.36.2 was wanted"), "{error}");
        }
    }

    #[tokio::test]
    async fn commands_name_their_cluster_and_store() {
        use crate::operations::UpdateScope;
        use crate::scratch::Scratch;
        use kopsline_core::ClusterName;
        let (folder, runner) = fake("echo \"$@\"; test -e manifests.yaml && cat manifests.yaml");
        let cluster = ClusterName::new("demo.k8s.local").unwrap();
        let dry = runner.update_dry_run("s3://state", &cluster).await;
        // The script's last test fails where there are no manifests, which shows what was asked.
        let Err(RunError::Failed(dry)) = dry else { panic!("{dry:?}") };
        assert_eq!(dry.stdout, "update cluster --name demo.k8s.local --state s3://state\n");
        for (scope, flag) in [
            (UpdateScope::Everything, ""),
            (UpdateScope::ControlPlane, " --instance-group-roles=control-plane,apiserver"),
            (UpdateScope::Prune, " --prune"),
        ] {
            let Err(RunError::Failed(apply)) = runner.update_apply("s3://state", &cluster, scope).await else { panic!("it did not fail") };
            let expected = format!("update cluster --name demo.k8s.local --state s3://state --yes --create-kube-config=false{flag}\n");
            assert_eq!(apply.stdout, expected);
        }
        let scratch = Scratch::from_registry(folder.path(), &cluster, &kopsline_manifests::Registry::new()).unwrap();
        let output = runner.replace(&scratch, "kind: Cluster\n").await.unwrap();
        let expected =
            format!("replace --force --filename manifests.yaml --name demo.k8s.local --state {}\nkind: Cluster\n", scratch.state());
        assert_eq!(output.stdout, expected);
    }
}
