//! The plan as it is kept and shown.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::DigestInputs;
use crate::model::Plan;

/// What a GitLab note holds comfortably, in bytes.
const MARKDOWN_LIMIT: usize = 60_000;

/// How many of each there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Resources to create.
    pub create: usize,
    /// Resources to modify.
    pub modify: usize,
    /// Items to delete.
    pub delete: usize,
    /// Items that only `--prune` deletes.
    pub prune: usize,
}

impl Summary {
    /// The counts of a plan.
    pub fn of(plan: &Plan) -> Self {
        Self { create: plan.create.len(), modify: plan.modify.len(), delete: plan.delete.len(), prune: plan.prune.len() }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [(self.create, "to create"), (self.modify, "to modify"), (self.delete, "to delete"), (self.prune, "only with --prune")];
        let parts: Vec<_> = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        f.write_str(&if parts.is_empty() { "no changes".to_owned() } else { parts.join(", ") })
    }
}

/// `plan.json`: the redacted plan and what it follows from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanDocument {
    /// The run.
    pub run: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// What an approval is for.
    pub digest: String,
    /// What the digest is made of.
    pub inputs: DigestInputs,
    /// How many of each there are.
    pub summary: Summary,
    /// Why it may lose data or capacity; empty when nothing speaks for that.
    pub destructive: Vec<String>,
    /// The Auto Scaling groups whose launch template changes.
    pub changed_groups: Vec<String>,
    /// What a person should know besides.
    pub notices: Vec<String>,
    /// The plan, redacted.
    pub plan: Plan,
}

/// The plan as Markdown, for a note in GitLab or a terminal; shortened honestly when it is long.
pub fn markdown(document: &PlanDocument) -> String {
    let inputs = &document.inputs;
    let mut text = format!(
        "### Plan for {}: {}\n\nCommit `{}`, kops {}, digest `{}`.\n",
        inputs.cluster,
        document.summary,
        inputs.commit.get(..12).unwrap_or(&inputs.commit),
        inputs.kops_version,
        document.digest.get(..12).unwrap_or(&document.digest),
    );
    for (title, lines) in
        [("Careful", &document.destructive), ("Will need a rolling update", &document.changed_groups), ("Notices", &document.notices)]
    {
        if !lines.is_empty() {
            let _ = write!(text, "\n**{title}**\n\n");
            for line in lines {
                let _ = writeln!(text, "- {line}");
            }
        }
    }
    if document.plan.is_empty() {
        return text;
    }
    // A fence longer than any in the text keeps it in.
    let full = document.plan.to_text();
    let fence = "`".repeat(full.split(|c| c != '`').map(str::len).max().unwrap_or(0).max(2) + 1);
    let room = MARKDOWN_LIMIT.saturating_sub(text.len() + 400);
    let mut shown = String::new();
    let mut left_out = 0;
    for line in full.lines() {
        if left_out == 0 && shown.len() + line.len() < room {
            shown.push_str(line);
            shown.push('\n');
        } else {
            left_out += 1;
        }
    }
    let _ = write!(text, "\n<details><summary>What kops would do</summary>\n\n{fence}diff\n{shown}{fence}\n\n</details>\n");
    if left_out > 0 {
        let _ = write!(text, "\n{left_out} more lines are in the run's record, `plan.txt`.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest, parse};

    fn document(text: &str) -> PlanDocument {
        let plan = parse(text).unwrap();
        let inputs = DigestInputs {
            cluster: "main.example.com".into(),
            commit: "1".repeat(40),
            kops_version: "1.36.2".into(),
            kops_sha256: String::new(),
            registry: Default::default(),
            dry_run: DigestInputs::hash(plan.normal_form()),
        };
        PlanDocument {
            run: "run".into(),
            made_at: Timestamp::UNIX_EPOCH,
            digest: digest(&inputs),
            inputs,
            summary: Summary::of(&plan),
            destructive: plan.destructive(),
            changed_groups: plan.changed_groups().into_iter().map(str::to_owned).collect(),
            notices: Vec::new(),
            plan,
        }
    }

    #[test]
    fn markdown_says_the_essentials_first() {
        let text = markdown(&document(include_str!("../tests/fixtures/change.txt")));
        assert!(text.starts_with("### Plan for main.example.com: 4 to modify"), "{text}");
        assert!(text.contains("- nodes-general.main.example.com") && text.contains("+     workload: api"));
        assert!(markdown(&document(include_str!("../tests/fixtures/none.txt"))).contains("no changes"));
    }

    #[test]
    fn long_plans_are_cut_and_say_so() {
        let text = markdown(&document(include_str!("../tests/fixtures/create.txt")));
        assert!(text.len() <= MARKDOWN_LIMIT);
        assert!(text.contains("more lines are in the run's record"));
    }

    #[test]
    fn a_document_reads_back() {
        let document = document(include_str!("../tests/fixtures/prune.txt"));
        let json = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<PlanDocument>(&json).unwrap(), document);
    }
}
