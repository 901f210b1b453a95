//! The person at the terminal: is told what happens, and is asked.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};

use anyhow::bail;
use async_trait::async_trait;
use jiff::Timestamp;
use kopsline_roller::{Desk, DeskError};
use kopsline_rolling::{Answer, Choice, Control, Question, RollEvent};

use crate::output;
use crate::progress::Progress;
use crate::terminal::Terminal;

/// Tells events as lines, and keeps the answers.
pub(crate) struct TerminalDesk<'a> {
    progress: &'a Progress,
    aborted: bool,
    terminal: Terminal,
    answers: Mutex<Vec<Answer>>,
}

impl<'a> TerminalDesk<'a> {
    pub(crate) fn new(progress: &'a Progress, aborted: bool) -> Self {
        Self { progress, aborted, terminal: Terminal::default(), answers: Mutex::default() }
    }

    /// Puts a question until the answer is one of its choices.
    pub(crate) async fn ask(&self, question: &Question) -> anyhow::Result<()> {
        let choices: Vec<String> = question.choices().iter().map(ToString::to_string).collect();
        if !std::io::stdin().is_terminal() {
            bail!(
                "the roll asks, and there is no terminal to answer on: {question} ({}); say --on-stuck-drain, or roll in a terminal",
                choices.join(", ")
            );
        }
        self.progress.clear();
        loop {
            let line = self.terminal.ask(&output::printable(&format!("{question} [{}] ", choices.join("/")))).await?;
            let said = line.trim().to_lowercase();
            let choice: Option<Choice> = question.choices().iter().copied().find(|choice| choice.to_string() == said);
            if let Some(choice) = choice {
                let answer = Answer { question: question.id.clone(), choice, by: std::env::var("USER").unwrap_or_default() };
                self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl Desk for TerminalDesk<'_> {
    async fn control(&self, _: Timestamp) -> Result<Control, DeskError> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Control { aborted: self.aborted.then(|| "from the command line".to_owned()), answers, ..Control::default() })
    }

    async fn tell(&self, events: &[RollEvent]) -> Result<(), DeskError> {
        for event in events {
            self.progress.say(&output::printable(&format!("{}  {event}", event.at.strftime("%H:%M:%S"))));
        }
        Ok(())
    }
}
