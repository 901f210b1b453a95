//! What is going on, while it goes on: a line that lives on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::follow::GUTTER;
use crate::output;

/// A wait longer than this is explained where nothing moves by itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// Lines, and below them on a terminal what is waited for.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    kind: Kind,
    wait: Mutex<Wait>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A terminal: what is waited for moves.
    Lively,
    /// Lines alone.
    Plain,
    /// Lines alone, beside a result that has standard output for itself.
    Aside,
    /// Nothing at all.
    Silent,
}

/// What is waited for, since when, and whether that was said.
#[derive(Debug)]
struct Wait {
    what: String,
    since: Instant,
    said: bool,
}

impl Progress {
    /// Progress for people.
    pub(crate) fn new() -> Self {
        let lively = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Self::of(if lively { Kind::Lively } else { Kind::Plain })
    }

    /// Progress beside a result, which alone goes to standard output.
    pub(crate) fn aside() -> Self {
        let lively = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        Self::of(if lively { Kind::Lively } else { Kind::Aside })
    }

    /// None at all, for programs that read the result.
    pub(crate) fn silent() -> Self {
        Self::of(Kind::Silent)
    }

    fn of(kind: Kind) -> Self {
        let target = if kind == Kind::Lively { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        Self { bar, kind, wait: Mutex::new(Wait { what: String::new(), since: Instant::now(), said: false }) }
    }

    /// Prints a line that stays.
    pub(crate) fn say(&self, line: &str) {
        self.text(&format!("{line}\n"));
    }

    /// Prints a text of lines that stays.
    pub(crate) fn text(&self, text: &str) {
        match self.kind {
            Kind::Lively | Kind::Plain => self.bar.suspend(|| output::print(text)),
            Kind::Aside => eprint!("{text}"),
            Kind::Silent => {}
        }
    }

    /// Says what is waited for now: at once on a terminal, with the time it takes; elsewhere in a line, when it takes
    /// longer than a few seconds. To be called again and again while waiting.
    pub(crate) fn waiting_for(&self, what: &str) {
        self.spin(what);
        let mut wait = self.wait();
        if matches!(self.kind, Kind::Plain | Kind::Aside) && !wait.said && !what.is_empty() && wait.since.elapsed() >= PATIENCE {
            wait.said = true;
            self.say(&format!("{:>GUTTER$}  … {}", "", output::one_line(what)));
        }
    }

    /// The same on a terminal alone, for what lines say already.
    pub(crate) fn spin(&self, what: &str) {
        let mut wait = self.wait();
        if wait.what != what {
            *wait = Wait { what: what.to_owned(), since: Instant::now(), said: false };
            self.bar.reset_elapsed();
            self.bar.set_message(output::one_line(what));
            self.bar.enable_steady_tick(Duration::from_millis(120));
        }
    }

    fn wait(&self) -> MutexGuard<'_, Wait> {
        self.wait.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something, saying so.
    pub(crate) async fn during<T>(&self, what: &str, wanted: impl Future<Output = T>) -> T {
        tokio::pin!(wanted);
        loop {
            self.waiting_for(what);
            tokio::select! {
                result = &mut wanted => {
                    self.clear();
                    return result;
                }
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    /// Nothing is waited for any more.
    pub(crate) fn clear(&self) {
        self.wait().what.clear();
        self.bar.disable_steady_tick();
        self.bar.set_message("");
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
