//! kOps' dry-run text read into a [`Plan`].
//!
//! The text is written by kOps 1.36 `upup/pkg/fi/dryrun_target.go` (`PrintReport`), its diffs by `pkg/diff`, its
//! values by `util/pkg/reflectutils` (`ValueAsString`), its last line by `cmd/kops/update_cluster.go`. A line that does
//! not fit is an error: a plan that leaves something out must not be approved.

use crate::model::{Created, Deletion, Field, Modified, ModifiedField, Plan};

const CREATE: &str = "Will create resources:";
const MODIFY: &str = "Will modify resources:";
const PRUNE: &str = "Items will be deleted only when the --prune flag is specified:";
const DELETE: &str = "Items will be deleted during update:";
const MUST_APPLY: &str = "Must specify --yes to apply changes";
const NO_CHANGES: &str = "No changes need to be applied";

/// Width to which kOps pads field names and the kinds of deleted items.
const COLUMN: usize = 20;

/// Why a text is not a whole dry run of a kOps that this crate knows.
///
/// The messages quote no line of the text: it may hold secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text does not end as a dry run ends; it was probably cut off.
    #[error(
        "the dry run's output does not end with \"{MUST_APPLY}\" or \"{NO_CHANGES}\": it was cut off, or this version of \
         kops ends it in another way; run the plan again and check kops' own messages"
    )]
    NoVerdict,
    /// The last line and the rest contradict each other.
    #[error(
        "the dry run's output contradicts itself: its last line is \"{verdict}\" but it lists {}",
        if *.listed { "changes" } else { "none" }
    )]
    Contradiction {
        /// The last line.
        verdict: &'static str,
        /// Whether changes are listed.
        listed: bool,
    },
    /// A section comes twice or out of order.
    #[error("line {line} of the dry run's output repeats a section or is out of order")]
    Order {
        /// Line number, from 1.
        line: usize,
    },
    /// A line that this crate does not know.
    #[error(
        "line {line} of the dry run's output has a form that Kopsline does not know; this version of kops may print \
         plans differently: pin one of the supported versions"
    )]
    UnknownLine {
        /// Line number, from 1.
        line: usize,
    },
}

/// Reads the standard output of `kops update cluster` without `--yes`.
///
/// The star banners that kOps prints before the plan are left out.
///
/// # Errors
/// A text that was cut off, that contradicts itself or that holds a line of unknown form is refused, so "no changes" is
/// only ever kOps' own word.
pub fn parse(stdout: &str) -> Result<Plan, ParseError> {
    let mut lines: Vec<&str> = stdout.split('\n').collect();
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    let verdict = match lines.pop().map(str::trim_end) {
        Some(NO_CHANGES) => NO_CHANGES,
        Some(MUST_APPLY) => MUST_APPLY,
        _ => return Err(ParseError::NoVerdict),
    };
    let mut reader = Reader { lines: &lines, next: 0 };
    reader.skip_notices()?;
    let mut plan = Plan::default();
    let mut last = None;
    while let Some(text) = reader.peek() {
        if text.is_empty() {
            reader.next += 1;
            continue;
        }
        let section = Section::of(text).ok_or(reader.unknown())?;
        if last.is_some_and(|last| last >= section) {
            return Err(ParseError::Order { line: reader.next + 1 });
        }
        last = Some(section);
        reader.next += 1;
        match section {
            Section::Create => plan.create = reader.created()?,
            Section::Modify => plan.modify = reader.modified()?,
            Section::Prune => plan.prune = reader.deletions()?,
            Section::Delete => plan.delete = reader.deletions()?,
        }
    }
    let listed = !plan.is_empty();
    if listed != (verdict == MUST_APPLY) {
        return Err(ParseError::Contradiction { verdict, listed });
    }
    Ok(plan)
}

/// The sections in the order in which kOps prints them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Create,
    Modify,
    Prune,
    Delete,
}

impl Section {
    fn of(line: &str) -> Option<Self> {
        match line {
            CREATE => Some(Self::Create),
            MODIFY => Some(Self::Modify),
            PRUNE => Some(Self::Prune),
            DELETE => Some(Self::Delete),
            _ => None,
        }
    }
}

struct Reader<'a> {
    lines: &'a [&'a str],
    /// Index of the line to read next.
    next: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.lines.get(self.next).copied()
    }

    fn unknown(&self) -> ParseError {
        ParseError::UnknownLine { line: self.next + 1 }
    }

    /// Passes what stands before the first section.
    ///
    /// kOps frames its banners with lines of stars (1.36 `upup/pkg/fi/cloudup/apply_cluster.go`). A stray line at the
    /// margin is passed too; one that looks like part of a plan is an error.
    fn skip_notices(&mut self) -> Result<(), ParseError> {
        let mut opened = None;
        while let Some(line) = self.peek() {
            if is_stars(line) {
                opened = if opened.is_some() { None } else { Some(self.next + 1) };
            } else if opened.is_none() {
                if Section::of(line).is_some() {
                    break;
                }
                if line.starts_with(char::is_whitespace) || line.trim_end().ends_with(':') {
                    return Err(self.unknown());
                }
            }
            self.next += 1;
        }
        opened.map_or(Ok(()), |line| Err(ParseError::UnknownLine { line }))
    }

    fn created(&mut self) -> Result<Vec<Created>, ParseError> {
        let mut resources = Vec::new();
        while let Some(id) = self.peek().and_then(header) {
            self.next += 1;
            let mut fields: Vec<Field> = Vec::new();
            while let Some(line) = self.peek() {
                if self.ends_entry() {
                    break;
                }
                match (field(line), fields.last_mut()) {
                    (Some((name, value)), _) => {
                        fields.push(Field { name: name.to_owned(), value: value.to_owned() });
                    }
                    // A value with line breaks is printed as it is.
                    (None, Some(field)) => {
                        field.value.push('\n');
                        field.value.push_str(line);
                    }
                    (None, None) => return Err(self.unknown()),
                }
                self.next += 1;
            }
            self.skip_blank();
            resources.push(Created { id: id.to_owned(), fields });
        }
        Ok(resources)
    }

    /// Whether the entry that is being read ends here: at a blank line with another entry, a section or nothing after
    /// it. A blank line inside a value has something else after it.
    fn ends_entry(&self) -> bool {
        if self.peek().is_some_and(|line| !line.is_empty()) {
            return false;
        }
        let after = self.lines.get(self.next + 1..).and_then(|rest| rest.iter().find(|line| !line.is_empty()));
        after.is_none_or(|line| header(line).is_some() || Section::of(line).is_some())
    }

    fn skip_blank(&mut self) {
        while self.peek() == Some("") {
            self.next += 1;
        }
    }

    fn modified(&mut self) -> Result<Vec<Modified>, ParseError> {
        let mut resources = Vec::new();
        while let Some(id) = self.peek().and_then(header) {
            self.next += 1;
            let mut fields = Vec::new();
            while let Some(line) = self.peek().filter(|line| !line.is_empty()) {
                let (name, description) = field_or_heading(line).ok_or(self.unknown())?;
                self.next += 1;
                let (lines, diff) = match description {
                    Some(text) => (vec![text.to_owned()], false),
                    None => (self.block()?, true),
                };
                fields.push(ModifiedField { name: name.to_owned(), lines, diff });
            }
            self.skip_blank();
            resources.push(Modified { id: id.to_owned(), fields });
        }
        Ok(resources)
    }

    /// The lines of a description of several lines. A diff ends with an empty one.
    fn block(&mut self) -> Result<Vec<String>, ParseError> {
        let mut text = Vec::new();
        while let Some(line) = self.peek().and_then(block_line) {
            text.push(line.to_owned());
            self.next += 1;
        }
        // kOps prints a description in this form only when it has a line break.
        if text.len() < 2 { Err(self.unknown()) } else { Ok(text) }
    }

    fn deletions(&mut self) -> Result<Vec<Deletion>, ParseError> {
        let mut deletions = Vec::new();
        while let Some(line) = self.peek() {
            if line.is_empty() {
                break;
            }
            deletions.push(deletion(line).ok_or(self.unknown())?);
            self.next += 1;
        }
        Ok(deletions)
    }
}

fn is_stars(line: &str) -> bool {
    let line = line.trim_end();
    line.len() >= 10 && line.bytes().all(|byte| byte == b'*')
}

/// A resource's first line, `  kind/name`.
fn header(line: &str) -> Option<&str> {
    let id = line.strip_prefix("  ")?;
    let (kind, name) = id.split_once('/')?;
    let known = kind.starts_with(|c: char| c.is_ascii_alphabetic()) && kind.chars().all(|c| c.is_ascii_alphanumeric());
    (known && !name.is_empty()).then_some(id)
}

/// A field's line, `  <tab>name padded<tab>value`.
fn field(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix("  \t")?.split_once('\t')?;
    Some((padded_name(name)?, value))
}

/// A changed field: its name, and its description when that is on the same line.
fn field_or_heading(line: &str) -> Option<(&str, Option<&str>)> {
    match field(line) {
        Some((name, value)) => Some((name, Some(value))),
        None => Some((padded_name(line.strip_prefix("  \t")?)?, None)),
    }
}

/// A Go identifier, padded with spaces.
fn padded_name(text: &str) -> Option<&str> {
    let name = text.trim_end_matches(' ');
    let first = name.chars().next()?;
    let known = first.is_ascii_uppercase() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    (known && text.len() == name.len().max(COLUMN)).then_some(name)
}

fn block_line(line: &str) -> Option<&str> {
    let (padding, text) = line.strip_prefix("  \t")?.split_once('\t')?;
    (padding.len() == COLUMN && padding.bytes().all(|byte| byte == b' ')).then_some(text)
}

/// `  kind padded item`.
fn deletion(line: &str) -> Option<Deletion> {
    let rest = line.strip_prefix("  ")?;
    let kind = rest.split(' ').next().filter(|kind| !kind.is_empty() && !kind.contains('\t'))?;
    let (padding, item) = rest.get(kind.len()..)?.split_at_checked(COLUMN.saturating_sub(kind.len()) + 1)?;
    padding.bytes().all(|byte| byte == b' ').then(|| Deletion { task: kind.to_owned(), item: item.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::normalise;

    const STARS: &str = "*********************************************************************************";

    const REAL: &[&str] = &[
        include_str!("../tests/fixtures/addcidr.txt"),
        include_str!("../tests/fixtures/change.txt"),
        include_str!("../tests/fixtures/create.txt"),
        include_str!("../tests/fixtures/delete.txt"),
        include_str!("../tests/fixtures/none.txt"),
        include_str!("../tests/fixtures/prune.txt"),
        include_str!("../tests/fixtures/pruneonly.txt"),
        include_str!("../tests/fixtures/ud.txt"),
        include_str!("../tests/fixtures/upgrade.txt"),
    ];

    #[test]
    fn real_dry_runs_come_back_byte_for_byte() {
        for text in REAL {
            assert_eq!(parse(text).unwrap().to_text(), *text);
        }
    }

    #[test]
    fn no_changes_is_a_plan_of_its_own() {
        assert!(parse("No changes need to be applied\n").unwrap().is_empty());
    }

    #[test]
    fn banners_are_passed() {
        let text = format!(
            "\n{STARS}\n\nA new kops version is available: 1.37.0\nMore information:\n  https://example.com\n\n{STARS}\n\n{}",
            REAL[3]
        );
        assert_eq!(parse(&text).unwrap(), parse(REAL[3]).unwrap());
    }

    #[test]
    fn a_cut_off_text_is_never_a_plan() {
        for text in REAL {
            for (end, _) in text.trim_end().match_indices('\n') {
                assert!(parse(&text[..end]).is_err(), "{}", &text[..end]);
            }
        }
        assert_eq!(parse(""), Err(ParseError::NoVerdict));
    }

    #[test]
    fn odd_forms_of_kops_are_read() {
        let modify = |body: &str| format!("Will modify resources:\n  Task/x\n{body}\nMust specify --yes to apply changes\n");
        let create = |body: &str| format!("Will create resources:\n  Task/x\n{body}\nMust specify --yes to apply changes\n");
        for text in [
            // No field to tell of.
            create(""),
            // A value of several lines, printed as it is, with an empty line in it.
            create("  \tPolicy              \t{\n\n  \"a\": 1\n}\n"),
            // A name longer than the column.
            create("  \tAssignIPv6AddressOnCreation\tfalse\n"),
            modify("  \tAssignIPv6AddressOnCreation\t false -> true\n"),
            // An arrow in a value.
            modify("  \tPattern             \t {a -> b} -> {c -> d}\n"),
            // A scalar with a line break.
            modify("  \tPolicy              \n  \t                    \t <nil> -> a\n  \t                    \tb\n"),
            // A diff with an empty line and a carriage return.
            modify(
                "  \tUserData            \n  \t                    \t...\n  \t                    \t+ a\r\n  \t                    \t- \n  \t                    \t\n",
            ),
            // Items with a task name longer than the column.
            "Items will be deleted during update:\n  autoscaling-elb-attachment group:arn\n\nMust specify --yes to apply changes\n".into(),
        ] {
            let plan = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert_eq!(plan.to_text(), text);
        }
    }

    #[test]
    fn what_is_unknown_is_an_error_with_its_line() {
        let end = "Must specify --yes to apply changes\n";
        for (text, error) in [
            (format!("Will destroy resources:\n  Task/x\n\n{end}"), ParseError::UnknownLine { line: 1 }),
            (format!("  Task/x\n\n{end}"), ParseError::UnknownLine { line: 1 }),
            (format!("Will create resources:\n  Task/x\nrubbish\n\n{end}"), ParseError::UnknownLine { line: 3 }),
            (format!("Will modify resources:\n  Task/x\n   internal consistency error!\n{end}"), ParseError::UnknownLine { line: 3 }),
            (format!("Will modify resources:\n  Task/x\n  \tField               \n\n{end}"), ParseError::UnknownLine { line: 4 }),
            (format!("Items will be deleted during update:\nx\n\n{end}"), ParseError::UnknownLine { line: 2 }),
            (format!("\n{STARS}\n\nno end\n{end}"), ParseError::UnknownLine { line: 2 }),
            (format!("Will modify resources:\n  Task/x\n\nWill create resources:\n  Task/y\n\n{end}"), ParseError::Order { line: 4 }),
            (format!("Will create resources:\n  Task/x\n\nWill create resources:\n  Task/y\n\n{end}"), ParseError::Order { line: 4 }),
            (end.to_owned(), ParseError::Contradiction { verdict: MUST_APPLY, listed: false }),
            (
                "Will create resources:\n  Task/x\n\nNo changes need to be applied\n".to_owned(),
                ParseError::Contradiction { verdict: NO_CHANGES, listed: true },
            ),
        ] {
            assert_eq!(parse(&text), Err(error), "{text}");
        }
    }

    /// Texts in kOps' form, with the pieces that make trouble.
    fn dry_run() -> impl Strategy<Value = String> {
        let id = "[A-Z][A-Za-z]{0,9}/[a-z0-9./: -]{0,9}[a-z0-9]";
        let field = "[A-Z][A-Za-z]{0,24}";
        let value = r"([a-z0-9 :,{}\[\]]|-> ){0,12}";
        let created = (id, proptest::collection::vec((field, value), 0..4));
        let line = r"(\.\.\.|[-+ ] [a-z {}:-]{0,8})";
        let change = prop_oneof![
            value.prop_map(|text| vec![format!(" {text} -> {text}x")]),
            proptest::collection::vec(line, 1..6).prop_map(|mut lines| {
                lines.push(String::new());
                lines
            }),
        ];
        let modified = (id, proptest::collection::vec((field, change), 0..4));
        let item = ("[A-Za-z-]{1,24}", "[a-z0-9:= /]{0,9}[a-z0-9]");
        let items = || proptest::collection::vec(item, 0..3);
        (proptest::collection::vec(created, 0..3), proptest::collection::vec(modified, 0..3), items(), items()).prop_map(
            |(create, modify, prune, delete)| {
                let field = |(name, value)| Field { name, value };
                let created = |(id, fields): (String, Vec<_>)| Created { id, fields: fields.into_iter().map(field).collect() };
                let changed = |(name, lines): (String, Vec<String>)| ModifiedField { diff: lines.len() > 1, name, lines };
                let modified = |(id, fields): (String, Vec<_>)| Modified { id, fields: fields.into_iter().map(changed).collect() };
                let items = |items: Vec<_>| items.into_iter().map(|(task, item)| Deletion { task, item }).collect();
                Plan {
                    create: create.into_iter().map(created).collect(),
                    modify: modify.into_iter().map(modified).collect(),
                    prune: items(prune),
                    delete: items(delete),
                }
                .to_text()
            },
        )
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,300}") {
            let _ = parse(&text);
        }

        #[test]
        fn any_lines_of_kops_are_read_or_refused(
            lines in proptest::collection::vec(prop::sample::select(vec![
                CREATE, MODIFY, PRUNE, DELETE, MUST_APPLY, NO_CHANGES, STARS, "", "  Task/x", "  \tField               \tv",
                "  \tField               ", "  \t                    \t+ a", "  \t                    \t", "  task item", "rubbish",
            ]), 0..12)
        ) {
            let text = lines.join("\n");
            if let Ok(plan) = parse(&text) {
                prop_assert_eq!(normalise(&plan.to_text()), normalise(&text));
            }
        }

        #[test]
        fn nothing_gets_lost(text in dry_run()) {
            let plan = parse(&text).unwrap();
            prop_assert_eq!(plan.to_text(), text);
        }

        #[test]
        fn a_normal_form_is_a_plan_too(text in dry_run()) {
            let once = normalise(&text);
            prop_assert!(parse(&once).is_ok());
            prop_assert_eq!(normalise(&once), once);
        }
    }
}
