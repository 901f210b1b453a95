//! What a terminal shows: aligned tables, durations for people, colour where it helps and is wanted.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};

use jiff::{SignedDuration, Timestamp};
use kopsline_core::{RunState, StageState};
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: one JSON document on standard output.
    Json,
}

/// What a text says by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paint {
    Plain,
    Bold,
    Dim,
    Good,
    Attention,
    Bad,
}

impl Paint {
    /// The colour of a run's state.
    pub(crate) fn of_run(state: RunState) -> Self {
        match state {
            RunState::Succeeded | RunState::NoChanges => Self::Good,
            RunState::Failed => Self::Bad,
            RunState::Rejected | RunState::Expired => Self::Attention,
            RunState::Superseded => Self::Dim,
            RunState::Queued | RunState::Running => Self::Plain,
        }
    }

    /// The colour of a stage's state.
    pub(crate) fn of_stage(state: StageState) -> Self {
        match state {
            StageState::Succeeded => Self::Good,
            StageState::Failed => Self::Bad,
            StageState::Waiting => Self::Attention,
            StageState::Skipped => Self::Dim,
            StageState::Running => Self::Plain,
        }
    }

    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Bold => Some("1"),
            Self::Dim => Some("2"),
            Self::Good => Some("32"),
            Self::Attention => Some("33"),
            Self::Bad => Some("31"),
        }
    }
}

/// Whether to colour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    /// Colour on a terminal whose user does not object (<https://no-color.org>).
    pub(crate) fn detect() -> Self {
        let objects = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colour: std::io::stdout().is_terminal() && !objects && !dumb }
    }

    /// Never any colour.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { colour: false }
    }

    /// A text in a colour.
    pub(crate) fn paint(self, paint: Paint, text: &str) -> String {
        match paint.code() {
            Some(code) if self.colour && !text.is_empty() => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }
}

/// A table whose columns are as wide as they must be; the last one is never filled up.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<(String, Paint)>>,
}

impl Table {
    /// A table with a header.
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|text| ((*text).to_owned(), Paint::Dim)).collect()] }
    }

    /// A table without one.
    pub(crate) fn headless() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = (String, Paint)>) {
        self.rows.push(cells.into_iter().map(|(text, paint)| (one_line(&text), paint)).collect());
    }

    /// The table as text, every line indented.
    pub(crate) fn render(&self, style: Style, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(|(text, _)| text.chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (index, ((cell, paint), width)) in row.iter().zip(&widths).enumerate() {
                if index > 0 {
                    line.push_str("  ");
                }
                line.push_str(&style.paint(*paint, cell));
                line.push_str(&" ".repeat(width.saturating_sub(cell.chars().count())));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Prints a JSON document.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?));
    Ok(())
}

/// Prints to standard output. A reader that has gone away (`| head`) is no error.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a line to standard output.
pub(crate) fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// Records carry texts of others (a commit's title, a comment, kops' words). Without this they could move the cursor or
/// recolour the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// The same on one line.
pub(crate) fn one_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}

/// A text of at most `most` characters, cut with an ellipsis.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(most.saturating_sub(1)).collect();
    short.truncate(short.trim_end().len());
    short.push('…');
    short
}

/// Every line of a text behind some spaces, its tabs expanded first: kops' tables are made for tab stops from the first
/// column on.
pub(crate) fn indented(text: &str, by: usize) -> String {
    let indent = " ".repeat(by);
    text.lines().fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "{}", format!("{indent}{}", without_tabs(line)).trim_end());
        out
    })
}

fn without_tabs(line: &str) -> String {
    const STOP: usize = 8;
    let mut column = 0;
    let mut expanded = String::with_capacity(line.len());
    for c in line.chars() {
        let width = if c == '\t' { STOP - column % STOP } else { 1 };
        column += width;
        if c == '\t' { expanded.push_str(&" ".repeat(width)) } else { expanded.push(c) }
    }
    expanded
}

/// A duration with as much precision as a person wants: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`.
pub(crate) fn duration(duration: SignedDuration) -> String {
    let milliseconds = duration.as_millis().max(0);
    let seconds = milliseconds / 1000;
    match seconds {
        0..10 => format!("{}.{} s", seconds, milliseconds % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// How long ago something was, in one unit: `12 s`, `5 min`, `2 h`, `3 d`.
pub(crate) fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A moment to the second, in UTC.
pub(crate) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The first digits of a digest.
pub(crate) fn short_digest(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// `1 object`, `2 objects`.
pub(crate) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_precision_that_matters() {
        for (milliseconds, expected) in [
            (-5, "0.0 s"),
            (0, "0.0 s"),
            (449, "0.4 s"),
            (9_990, "9.9 s"),
            (10_000, "10 s"),
            (59_999, "59 s"),
            (185_000, "3 min 05 s"),
            (7_800_000, "2 h 10 min"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(duration(SignedDuration::from_millis(milliseconds)), expected);
        }
    }

    #[test]
    fn ages_have_one_unit() {
        for (second, expected) in [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_599, "59 min"), (7_200, "2 h"), (259_199, "2 d")] {
            assert_eq!(age(Timestamp::UNIX_EPOCH, Timestamp::from_second(second).unwrap()), expected);
        }
        assert_eq!(age(Timestamp::from_second(5).unwrap(), Timestamp::UNIX_EPOCH), "0 s", "a clock that is ahead");
    }

    #[test]
    fn tables_are_aligned_whatever_the_colour() {
        let mut table = Table::new(&["RUN", "STATE", "NOTE"]);
        table.row([("a".into(), Paint::Plain), ("succeeded".into(), Paint::Good), ("x\ny".into(), Paint::Plain)]);
        table.row([("longer".into(), Paint::Plain), ("failed".into(), Paint::Bad), (String::new(), Paint::Plain)]);
        assert_eq!(table.render(Style::plain(), 2), "  RUN     STATE      NOTE\n  a       succeeded  x y\n  longer  failed\n");
        let coloured = table.render(Style { colour: true }, 2);
        assert!(coloured.contains("\u{1b}[32msucceeded\u{1b}[0m  x y"), "{coloured:?}");
    }

    #[test]
    fn other_peoples_texts_cannot_drive_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\u{7}\nc"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\nc");
        assert_eq!(one_line("a\nb"), "a b");
    }

    #[test]
    fn tables_of_tabs_stay_aligned() {
        assert_eq!(indented("NAME\tMIN\nnodes-long\t1\n\n", 3), "   NAME    MIN\n   nodes-long      1\n\n");
    }

    #[test]
    fn texts_are_shortened_at_characters() {
        assert_eq!(shorten("Größe", 5), "Größe");
        assert_eq!(shorten("Größen", 5), "Größ…");
        assert_eq!(short_digest("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_digest("xyz"), "xyz");
    }
}
