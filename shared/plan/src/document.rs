//! The plan as it is kept and shown.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::DigestInputs;
use crate::model::Plan;

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
    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest, markdown, parse};

    fn document(text: &str) -> PlanDocument {
        let plan = parse(text).unwrap();
        let inputs = DigestInputs {
            cluster: "main.example.com".into(),
            commit: "1".repeat(40),
            kops_version: "1.36.2".into(),
            kops_sha256: String::new(),
            registry: std::collections::BTreeMap::new(),
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
        assert!(text.len() < 60_000);
        assert!(text.contains("more lines are in the run's record"));
    }

    #[test]
    fn a_document_reads_back() {
        let document = document(include_str!("../tests/fixtures/prune.txt"));
        let json = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<PlanDocument>(&json).unwrap(), document);
    }
}
