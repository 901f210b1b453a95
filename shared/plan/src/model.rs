//! The plan as data.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::normal::change;

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

impl ModifiedField {
    /// Whether it lowers the size that Auto Scaling enforces at once.
    fn shrinks(&self) -> bool {
        let size = |text: &str| text.parse::<u64>().ok();
        let sides = self.lines.first().and_then(|line| change(line)).map(|sides| (size(&sides.old), size(&sides.new)));
        self.name == "MaxSize" && matches!(sides, Some((Some(old), Some(new))) if new < old)
    }
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
        let replaced = self.modify.iter().filter_map(move |resource| {
            if risky.iter().any(|kind| resource.id.starts_with(kind)) {
                Some(format!("modifies {}", resource.id))
            } else if resource.id.starts_with("ManagedFile/etcd-cluster-spec-") {
                Some(format!("changes the members of etcd: {}", resource.id))
            } else if resource.id.starts_with("AutoscalingGroup/") && resource.fields.iter().any(ModifiedField::shrinks) {
                Some(format!("lowers MaxSize of {}: instances beyond it are terminated without being drained", resource.id))
            } else {
                None
            }
        });
        deleted.chain(replaced).collect()
    }

    /// The text as kOps prints it (kOps 1.36 `upup/pkg/fi/dryrun_target.go`), with its last line.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text.push_str(if self.is_empty() { "No changes need to be applied\n" } else { "Must specify --yes to apply changes\n" });
        text
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

#[cfg(test)]
mod tests {
    use crate::parse;

    #[test]
    fn what_may_lose_something_is_said() {
        let modify = |body: &str| {
            let text = format!("Will modify resources:\n{body}\nMust specify --yes to apply changes\n");
            parse(&text).unwrap().destructive()
        };
        assert!(modify("  AutoscalingGroup/nodes\n  \tMaxSize             \t 4 -> 2\n")[0].starts_with("lowers MaxSize"));
        assert!(modify("  AutoscalingGroup/nodes\n  \tMaxSize             \t 2 -> 10\n").is_empty());
        assert!(modify("  AutoscalingGroup/nodes\n  \tMinSize             \t 4 -> 2\n").is_empty());
        assert_eq!(modify("  Subnet/a\n  \tCIDR                \t x -> y\n"), ["modifies Subnet/a"]);
        assert!(modify("  ManagedFile/etcd-cluster-spec-main\n  \tContents            \t a -> b\n")[0].contains("etcd"));
        assert_eq!(
            parse(include_str!("../tests/fixtures/delete.txt")).unwrap().destructive(),
            ["deletes VPCCIDRBlock vpc-117abd2db8770d397: cidr=10.99.0.0/16"]
        );
    }

    #[test]
    fn changed_launch_templates_are_named() {
        let plan = parse(include_str!("../tests/fixtures/upgrade.txt")).unwrap();
        assert_eq!(plan.changed_groups().len(), 5);
    }
}
