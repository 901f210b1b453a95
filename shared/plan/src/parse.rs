//! Reading kOps' text.

use crate::model::{Created, Deletion, Field, Modified, ModifiedField, Plan};

const CREATE: &str = "Will create resources:";
const MODIFY: &str = "Will modify resources:";
const PRUNE: &str = "Items will be deleted only when the --prune flag is specified:";
const DELETE: &str = "Items will be deleted during update:";
const CHANGES: &str = "Must specify --yes to apply changes";
const NO_CHANGES: &str = "No changes need to be applied";

/// A text that is no dry run of kOps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The last line is missing, so the rest may be, too.
    #[error("kops' dry run ends without its last line ({CHANGES:?} or {NO_CHANGES:?}): its output was cut off or its format changed")]
    Truncated,
    /// A line that belongs nowhere.
    #[error("line {line} of kops' dry run is not understood; its format changed with this version of kops")]
    Line {
        /// The line, from 1.
        line: usize,
    },
    /// The last line contradicts the rest.
    #[error("kops' dry run says that there are {0} changes, and lists otherwise")]
    Contradiction(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Banner,
    Create,
    Modify,
    Prune,
    Delete,
    End,
}

/// Reads the standard output of `kops update cluster` without `--yes`. No line is dropped but kOps' banners before the first section
/// (new versions, deprecations) and what follows the last line.
pub fn parse(stdout: &str) -> Result<Plan, ParseError> {
    let mut plan = Plan::default();
    let (mut section, mut no_changes) = (Section::Banner, false);
    for (line, text) in (1..).zip(stdout.lines()) {
        section = match text {
            _ if section == Section::End => Section::End,
            CREATE => Section::Create,
            MODIFY => Section::Modify,
            PRUNE => Section::Prune,
            DELETE => Section::Delete,
            CHANGES | NO_CHANGES => {
                no_changes = text == NO_CHANGES;
                Section::End
            }
            _ => {
                let understood = match section {
                    Section::Banner | Section::End => true,
                    Section::Create => created(&mut plan.create, text),
                    Section::Modify => modified(&mut plan.modify, text),
                    Section::Prune => deletion(&mut plan.prune, text),
                    Section::Delete => deletion(&mut plan.delete, text),
                };
                if !understood {
                    return Err(ParseError::Line { line });
                }
                section
            }
        };
    }
    match (section, no_changes, plan.is_empty()) {
        (Section::End, false, true) => Err(ParseError::Contradiction("some")),
        (Section::End, true, false) => Err(ParseError::Contradiction("no")),
        (Section::End, ..) => Ok(plan),
        _ => Err(ParseError::Truncated),
    }
}

/// `  \tName                \tvalue`, split; kOps pads names to 20 characters.
fn field(line: &str) -> Option<(&str, Option<&str>)> {
    let rest = line.strip_prefix("  \t")?;
    Some(match rest.split_once('\t') {
        Some((name, value)) => (name.trim_end(), Some(value)),
        None => (rest.trim_end(), None),
    })
}

fn id(line: &str) -> Option<&str> {
    line.strip_prefix("  ").filter(|id| !id.starts_with(['\t', ' ']) && id.contains('/'))
}

fn created(resources: &mut Vec<Created>, line: &str) -> bool {
    if let Some(id) = id(line) {
        resources.push(Created { id: id.to_owned(), fields: Vec::new() });
        return true;
    }
    let Some(resource) = resources.last_mut() else { return line.is_empty() };
    if let Some((name, value)) = field(line) {
        resource.fields.push(Field { name: name.to_owned(), value: value.unwrap_or_default().to_owned() });
        return true;
    }
    if line.is_empty() {
        return true;
    }
    // The further lines of a value stand as they are.
    let Some(field) = resource.fields.last_mut() else { return false };
    field.value.push('\n');
    field.value.push_str(line);
    true
}

fn modified(resources: &mut Vec<Modified>, line: &str) -> bool {
    if let Some(id) = id(line) {
        resources.push(Modified { id: id.to_owned(), fields: Vec::new() });
        return true;
    }
    let Some(resource) = resources.last_mut() else { return line.is_empty() };
    match field(line) {
        Some((name, Some(value))) if !name.is_empty() => {
            resource.fields.push(ModifiedField { name: name.to_owned(), lines: vec![value.to_owned()], diff: false });
            true
        }
        Some((name, None)) if !name.is_empty() => {
            resource.fields.push(ModifiedField { name: name.to_owned(), lines: Vec::new(), diff: true });
            true
        }
        Some((_, value)) => match resource.fields.last_mut() {
            Some(field) if field.diff => {
                field.lines.push(value.unwrap_or_default().to_owned());
                true
            }
            _ => false,
        },
        None => line.is_empty(),
    }
}

fn deletion(deletions: &mut Vec<Deletion>, line: &str) -> bool {
    if line.is_empty() {
        return true;
    }
    let Some((task, item)) = line.strip_prefix("  ").and_then(|rest| rest.split_once(' ')) else { return false };
    deletions.push(Deletion { task: task.to_owned(), item: item.trim_start().to_owned() });
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fixture(name: &str) -> String {
        std::fs::read_to_string(format!("{}/tests/fixtures/{name}.txt", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn reads_what_kops_prints_without_losing_a_line() {
        for name in ["create", "change", "none", "prune", "pruneonly", "ud", "addcidr"] {
            let text = fixture(name);
            let plan = parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            let lines = |text: &str| text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(lines(&plan.to_text()), lines(&text), "{name}");
            assert_eq!(parse(&plan.to_text()).unwrap(), plan, "{name}");
        }
    }

    #[test]
    fn says_what_changes() {
        let plan = parse(&fixture("change")).unwrap();
        assert_eq!(plan.changed_groups().into_iter().collect::<Vec<_>>(), ["nodes-general.main.example.com"]);
        let template = plan.modify.iter().find(|resource| resource.id.starts_with("LaunchTemplate/")).unwrap();
        assert_eq!(template.fields[0].lines, [" t3.medium -> t3.large"]);
        assert!(template.fields.iter().any(|field| field.diff && field.name == "UserData"));
        assert!(parse(&fixture("none")).unwrap().is_empty());
        let prune = parse(&fixture("pruneonly")).unwrap();
        assert!(!prune.is_empty() && prune.create.is_empty() && !prune.prune.is_empty());
    }

    #[test]
    fn two_runs_of_one_change_are_equal_and_another_change_is_not() {
        let once = parse(&fixture("change")).unwrap();
        assert_eq!(once.normal_form(), parse(&fixture("change-again")).unwrap().normal_form());
        let other = fixture("change").replace("t3.large", "t3.xlarge");
        assert_ne!(once.normal_form(), parse(&other).unwrap().normal_form());
    }

    #[test]
    fn a_text_that_was_cut_off_is_never_no_changes() {
        let text = fixture("change");
        for (end, _) in text.char_indices().filter(|(end, _)| *end < text.trim_end().len()) {
            assert!(parse(&text[..end]).is_err(), "cut at {end}");
        }
        assert!(matches!(parse("Will create resources:\n  A/b\n\nNo changes need to be applied\n"), Err(ParseError::Contradiction(_))));
        assert_eq!(parse("Will modify resources:\n  A/b\nwhat is this\n"), Err(ParseError::Line { line: 3 }));
    }

    proptest! {
        #[test]
        fn never_panics(text in "(Will create resources:\n|Will modify resources:\n|  A/b\n|  \tX\t1\n|\n|[ -~\t]{0,20}\n){0,12}") {
            let _ = parse(&text);
        }

        #[test]
        fn the_order_of_maps_does_not_matter(mut entries in proptest::collection::vec("[a-z]{1,5}: [a-z0-9]{0,5}", 1..6), by in 0usize..6) {
            let text = |entries: &[String]| format!("Will modify resources:\n  T/x\n  \tTags                \t {{{}}} -> {{}}\n\nMust specify --yes to apply changes\n", entries.join(", "));
            let before = parse(&text(&entries)).unwrap().normal_form();
            let by = by % entries.len();
            entries.rotate_left(by);
            prop_assert_eq!(before, parse(&text(&entries)).unwrap().normal_form());
        }
    }
}
