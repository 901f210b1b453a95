//! Questions that do not keep Ctrl-C from working.

use anyhow::Context as _;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use crate::output;

/// The lines that somebody types.
#[derive(Debug, Default)]
pub(crate) struct Terminal {
    lines: Mutex<Option<UnboundedReceiver<std::io::Result<String>>>>,
}

impl Terminal {
    /// Asks a question and returns the line that is typed then: what was typed before does not answer it. May be given up
    /// at any time, and asked again.
    pub(crate) async fn ask(&self, question: &str) -> anyhow::Result<String> {
        let mut lines = self.lines.lock().await;
        let lines = lines.get_or_insert_with(read);
        while lines.try_recv().is_ok() {}
        output::print(question);
        let line = lines.recv().await.context("standard input is closed: there is nobody to ask")?;
        line.context("cannot read from the terminal")
    }
}

/// Reads standard input in a thread that ends with the process: nothing can interrupt it.
fn read() -> UnboundedReceiver<std::io::Result<String>> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().try_for_each(|line| sender.send(line)));
    lines
}
