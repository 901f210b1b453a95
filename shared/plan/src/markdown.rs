//! The plan as Markdown, for a note in GitLab or a terminal.

use std::fmt::Write as _;

use crate::document::PlanDocument;
use crate::model::{Created, Deletion, Modified};
use crate::normal::{Sides, change};

/// What a GitLab note holds comfortably, in bytes; its own limit is a million characters, but a reader's is lower.
const LIMIT: usize = 60_000;
/// Longest line that is shown; kOps prints whole maps on one.
const LINE: usize = 2_000;

/// The plan as Markdown of less than 60 kB. What does not fit is counted, and the note says where it is.
pub fn markdown(document: &PlanDocument) -> String {
    let inputs = &document.inputs;
    let short = |text: &str| text.get(..12).unwrap_or(text).to_owned();
    let mut text = format!("### Plan for {}: {}\n", plain(&inputs.cluster), document.summary);
    if !document.summary.is_empty() {
        let counts = document.summary;
        let _ = write!(
            text,
            "\n| create | modify | delete | delete with `--prune` only |\n|---:|---:|---:|---:|\n| {} | {} | {} | {} |\n",
            counts.create, counts.modify, counts.delete, counts.prune
        );
    }
    let _ =
        write!(text, "\nCommit `{}`, kops {}, digest `{}`.\n", short(&inputs.commit), plain(&inputs.kops_version), short(&document.digest));
    for (title, lines) in [
        ("Careful: this may lose data or capacity", &document.destructive),
        ("Instances will need a rolling update", &document.changed_groups),
        ("Notices", &document.notices),
    ] {
        if !lines.is_empty() {
            let _ = write!(text, "\n**{title}**\n\n");
            for line in lines.iter().take(50) {
                let _ = writeln!(text, "- {}", plain(line));
            }
            if let Some(more @ 1..) = lines.len().checked_sub(50) {
                let _ = writeln!(text, "- and {more} more");
            }
        }
    }
    let plan = &document.plan;
    let mut left_out = 0;
    // What deletes comes first: it must not be what is left out.
    for (title, count, body) in [
        ("Delete", plan.delete.len(), plan.delete.iter().map(|item| deletion("-", item)).collect::<Vec<_>>()),
        ("Modify", plan.modify.len(), plan.modify.iter().map(modified).collect()),
        ("Create", plan.create.len(), plan.create.iter().map(created).collect()),
        ("Delete with --prune only", plan.prune.len(), plan.prune.iter().map(|item| deletion(" ", item)).collect()),
    ] {
        if count > 0 {
            left_out += section(&mut text, title, count, &body.concat());
        }
    }
    if left_out > 0 {
        let _ = write!(text, "\n{left_out} more lines are in the run's record, `plan.txt` and `plan.html`.\n");
    }
    text
}

/// Writes a section and returns how many of its lines had no room.
fn section(text: &mut String, title: &str, count: usize, body: &str) -> usize {
    // A fence longer than any in the text keeps it in.
    let fence = "`".repeat(body.split(|c| c != '`').map(str::len).max().unwrap_or(0).max(2) + 1);
    let room = LIMIT.saturating_sub(text.len() + 400);
    let mut shown = String::new();
    let mut left_out = 0;
    for line in body.lines() {
        let cut = line.char_indices().nth(LINE).and_then(|(at, _)| line.get(..at));
        let (line, mark) = cut.map_or((line, ""), |line| (line, "…"));
        if left_out == 0 && shown.len() + line.len() + mark.len() < room {
            let _ = writeln!(shown, "{line}{mark}");
        } else {
            left_out += 1;
        }
    }
    if shown.is_empty() {
        return left_out;
    }
    let _ = write!(text, "\n<details><summary>{title} ({count})</summary>\n\n{fence}diff\n{shown}{fence}\n\n</details>\n");
    left_out
}

fn created(resource: &Created) -> String {
    let mut out = format!("+ {}\n", resource.id);
    for field in &resource.fields {
        for (at, line) in field.value.lines().enumerate() {
            let name = if at == 0 { field.name.as_str() } else { "" };
            let _ = writeln!(out, "+   {name:<20} {line}");
        }
    }
    out
}

fn modified(resource: &Modified) -> String {
    let mut out = format!("@@ {} @@\n", resource.id);
    for field in &resource.fields {
        let text = field.lines.first().map_or("", String::as_str);
        let name = &field.name;
        match (field.diff, change(text)) {
            (false, Some(Sides { old, new, same })) => {
                for (marker, side) in [('-', old), ('+', new)] {
                    if !side.is_empty() {
                        let _ = writeln!(out, "{marker} {name:<20} {side}");
                    }
                }
                if same > 0 {
                    let _ = writeln!(out, "  {name:<20} ({same} unchanged)");
                }
            }
            (false, None) => {
                let _ = writeln!(out, "  {name:<20}{text}");
            }
            (true, ..) => {
                let _ = writeln!(out, "  {name}");
                for line in field.lines.strip_suffix(&[String::new()]).unwrap_or(&field.lines) {
                    let _ = writeln!(out, "{}", line.trim_end_matches('\r'));
                }
            }
        }
    }
    out
}

fn deletion(marker: &str, item: &Deletion) -> String {
    format!("{marker} {} {}\n", item.task, item.item)
}

/// Text from outside, in a line of Markdown: nothing in it may become markup, a link or a mention.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '!' | '#' | '@' | '~' | '|' | '$' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_no_markup() {
        assert_eq!(plain("a\n# [x](y) <b> @all `c`"), "a \\# \\[x\\](y) &lt;b> \\@all \\`c\\`");
    }

    #[test]
    fn a_fence_cannot_be_left() {
        let mut text = String::new();
        assert_eq!(section(&mut text, "Create", 1, "+ a\n```\n````\n"), 0);
        assert!(text.contains("\n`````diff\n+ a\n"), "{text}");
    }
}
