//! Questions that do not keep Ctrl-C from working.

use anyhow::Context as _;
use tokio::sync::oneshot;

use crate::output;

/// Asks a question and returns the line that was typed. The thread that reads is left alone when nobody waits for it any
/// more; it ends with the process.
pub(crate) async fn ask(question: &str) -> anyhow::Result<String> {
    output::print(question);
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        let _ = sender.send(read.map(|bytes| (bytes, line)));
    });
    let (bytes, line) = receiver.await.context("nothing was read")?.context("cannot read from the terminal")?;
    anyhow::ensure!(bytes > 0, "standard input is closed: there is nobody to ask");
    Ok(line)
}
