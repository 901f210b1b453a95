//! The plan as data.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What `kops update cluster --yes` would do. Resources are in kOps' own order, by type and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Resources to create.
    pub create: Vec<Created>,
    /// Resources to modify.
    pub modify: Vec<Modified>,
    /// What is deleted only with `--prune`.
    pub prune: Vec<Deletion>,
    /// What is deleted.
    pub delete: Vec<Deletion>,
}

/// A resource to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// `Type/name`.
    pub id: String,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// A field and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// kOps' name for it.
    pub name: String,
    /// Its value; may have several lines.
    pub value: String,
}

/// A resource to modify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modified {
    /// `Type/name`.
    pub id: String,
    /// The fields that change.
    pub fields: Vec<ModifiedField>,
}

/// A field that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModifiedField {
    /// kOps' name for it.
    pub name: String,
    /// ` old -> new` on one line, or a diff with two lines of context.
    pub lines: Vec<String>,
    /// Whether the lines are a diff.
    pub diff: bool,
}

/// Something to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// kOps' type of it.
    pub task: String,
    /// Which.
    pub item: String,
}

impl Plan {
    /// Whether there is nothing to do at all.
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.modify.is_empty() && self.prune.is_empty() && self.delete.is_empty()
    }

    /// The instance groups (as kOps names their Auto Scaling groups) whose launch template changes, so that their instances
    /// will need an update.
    pub fn changed_groups(&self) -> BTreeSet<&str> {
        self.modify.iter().filter_map(|resource| resource.id.strip_prefix("LaunchTemplate/")).collect()
    }

    /// Why the plan may lose data or capacity; empty when nothing speaks for that.
    pub fn destructive(&self) -> Vec<String> {
        let deleted = self.delete.iter().map(|deletion| format!("deletes {} {}", deletion.task, deletion.item));
        let risky = ["EBSVolume/", "Subnet/", "VPC/", "Keypair/"];
        let replaced = self.modify.iter().filter(|resource| risky.iter().any(|kind| resource.id.starts_with(kind)));
        deleted.chain(replaced.map(|resource| format!("modifies {}", resource.id))).collect()
    }

    /// The text as kOps prints it (kOps 1.36 upup/pkg/fi/dryrun_target.go), with its last line.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text.push_str(if self.is_empty() { "No changes need to be applied\n" } else { "Must specify --yes to apply changes\n" });
        text
    }

    /// A text that is equal for equal changes, however kOps happened to order them.
    pub fn normal_form(&self) -> String {
        let mut plan = self.clone();
        for field in plan.create.iter_mut().flat_map(|resource| &mut resource.fields) {
            field.value = canonical_value(&field.value);
        }
        for field in plan.modify.iter_mut().flat_map(|resource| &mut resource.fields) {
            field.lines =
                if field.diff { canonical_diff(&field.lines) } else { field.lines.iter().map(|line| canonical_value(line)).collect() };
        }
        plan.create.sort_by(|a, b| a.id.cmp(&b.id));
        plan.modify.sort_by(|a, b| a.id.cmp(&b.id));
        for deletions in [&mut plan.prune, &mut plan.delete] {
            deletions.sort_by(|a, b| (&a.task, &a.item).cmp(&(&b.task, &b.item)));
        }
        plan.to_text()
    }

    fn write(&self, out: &mut String) {
        // Writing to a String cannot fail.
        if !self.create.is_empty() {
            out.push_str("Will create resources:\n");
            for resource in &self.create {
                let _ = writeln!(out, "  {}", resource.id);
                for field in &resource.fields {
                    let _ = writeln!(out, "  \t{:<20}\t{}", field.name, field.value);
                }
                out.push('\n');
            }
        }
        if !self.modify.is_empty() {
            out.push_str("Will modify resources:\n");
            for resource in &self.modify {
                let _ = writeln!(out, "  {}", resource.id);
                for field in &resource.fields {
                    if field.diff {
                        let _ = writeln!(out, "  \t{:<20}", field.name);
                        for line in &field.lines {
                            let _ = writeln!(out, "  \t{:<20}\t{line}", "");
                        }
                    } else {
                        let _ = writeln!(out, "  \t{:<20}\t{}", field.name, field.lines.join(""));
                    }
                }
                out.push('\n');
            }
        }
        for (title, deletions) in [
            ("Items will be deleted only when the --prune flag is specified:", &self.prune),
            ("Items will be deleted during update:", &self.delete),
        ] {
            if !deletions.is_empty() {
                let _ = writeln!(out, "{title}");
                for deletion in deletions {
                    let _ = writeln!(out, "  {:<20} {}", deletion.task, deletion.item);
                }
                out.push('\n');
            }
        }
    }
}

/// Entries of maps come in any order; their fragments sorted are the same for every order.
fn canonical_value(value: &str) -> String {
    let sides: Vec<String> = value
        .split(" -> ")
        .map(|side| {
            let (Some(open), Some(close)) = (side.find('{'), side.rfind('}')) else { return side.to_owned() };
            let (Some(before), Some(inside), Some(after)) = (side.get(..open), side.get(open + 1..close), side.get(close..)) else {
                return side.to_owned();
            };
            let mut entries: Vec<&str> = inside.split(", ").collect();
            entries.sort_unstable();
            format!("{before}{{{}{after}", entries.join(", "))
        })
        .collect();
    sides.join(" -> ")
}

/// Within a run of changed lines kOps prints `+` and `-` in either order.
fn canonical_diff(lines: &[String]) -> Vec<String> {
    let changed = |line: &String| line.starts_with(['+', '-']);
    let mut sorted = Vec::with_capacity(lines.len());
    for run in lines.chunk_by(|a, b| changed(a) && changed(b)) {
        let (removed, added): (Vec<_>, Vec<_>) = run.iter().cloned().partition(|line| line.starts_with('-'));
        sorted.extend(removed);
        sorted.extend(added);
    }
    sorted
}
