//! What a rolling update would do, before it does anything.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::inventory::{CloudGroup, Inventory, Status};
use crate::spec::{Role, Selection, SelectionError};

/// The preview of a rolling update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// One row per selected group that exists in the cloud, by name.
    pub rows: Vec<PreviewRow>,
    /// Whether there is anything to roll: an instance needs an update, or force was asked for.
    pub required: bool,
    /// Auto Scaling groups of the cluster that belong to no instance group, and so are left alone.
    pub unmatched: Vec<String>,
    /// Whether a Kubernetes API is configured, so that the table has a column of nodes.
    pub nodes_known: bool,
}

/// One instance group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewRow {
    /// The instance group.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Whether any instance needs an update.
    pub needs_update: bool,
    /// How many instances need one.
    pub need_update: usize,
    /// How many do not.
    pub ready: usize,
    /// Minimum size.
    pub min: u32,
    /// Desired capacity.
    pub target: u32,
    /// Maximum size.
    pub max: u32,
    /// How many instances have joined as nodes, where a Kubernetes API is configured.
    pub nodes: Option<usize>,
    /// What a new instance would be launched from.
    pub configuration: Option<String>,
    /// The instances that would be replaced, in this order; with force, the ready ones too.
    pub replace: Vec<Replacement>,
}

/// An instance that would be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacement {
    /// The instance.
    pub id: String,
    /// Availability zone.
    pub zone: String,
    /// Why.
    pub status: Status,
    /// Whether it waits in the warm pool.
    pub warm: bool,
    /// What it was launched from.
    pub configuration: Option<String>,
}

/// Previews a rolling update of the selected groups.
pub fn preview(inventory: &Inventory, selection: &Selection, force: bool) -> Result<Preview, SelectionError> {
    let selected = selection.resolve(&inventory.cluster)?;
    let rows: Vec<_> = inventory
        .groups
        .iter()
        .filter(|(name, _)| selected.contains(*name))
        .map(|(name, group)| row(name, group, force, inventory.nodes_known))
        .collect();
    let required = force || rows.iter().any(|row| row.needs_update);
    Ok(Preview { rows, required, unmatched: inventory.unmatched.clone(), nodes_known: inventory.nodes_known })
}

fn row(name: &str, group: &CloudGroup, force: bool, nodes_known: bool) -> PreviewRow {
    let forced = if force { group.ready.as_slice() } else { &[] };
    let replace = group
        .need_update
        .iter()
        .chain(forced)
        .map(|instance| Replacement {
            id: instance.id.clone(),
            zone: instance.zone.clone(),
            status: instance.status,
            warm: instance.warm,
            configuration: instance.configuration.clone(),
        })
        .collect();
    PreviewRow {
        name: name.to_owned(),
        role: group.spec.role,
        needs_update: !group.need_update.is_empty(),
        need_update: group.need_update.len(),
        ready: group.ready.len(),
        min: group.min,
        target: group.target,
        max: group.max,
        nodes: nodes_known.then(|| group.instances().filter(|instance| instance.node.is_some()).count()),
        configuration: group.configuration.clone(),
        replace,
    }
}

impl Preview {
    /// What `kops rolling-update cluster` prints to its standard output without `--yes`
    /// (kOps 1.36 `cmd/kops/rolling-update_cluster.go`, `util/pkg/tables/format.go`).
    pub fn table(&self) -> String {
        let mut lines = vec![["NAME", "STATUS", "NEEDUPDATE", "READY", "MIN", "TARGET", "MAX"].map(str::to_owned).to_vec()];
        if self.nodes_known
            && let Some(header) = lines.first_mut()
        {
            header.push("NODES".to_owned());
        }
        for row in &self.rows {
            let mut line = vec![
                row.name.clone(),
                if row.needs_update { "NeedsUpdate" } else { "Ready" }.to_owned(),
                row.need_update.to_string(),
                row.ready.to_string(),
                row.min.to_string(),
                row.target.to_string(),
                row.max.to_string(),
            ];
            line.extend(row.nodes.map(|nodes| nodes.to_string()));
            lines.push(line);
        }
        let mut text = align(&lines);
        text.push_str(if self.required { "\nMust specify --yes to rolling-update.\n" } else { "\nNo rolling-update required.\n" });
        text
    }
}

/// Go's `text/tabwriter` with tabs of 8 and a padding of 1: every cell but the last of a line is filled up with tabs to
/// the next tab stop after the widest cell of its column.
fn align(lines: &[Vec<String>]) -> String {
    const TAB: usize = 8;
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |text: &str| text.chars().count();
    let stops: Vec<usize> = (0..columns)
        .map(|column| lines.iter().filter_map(|line| line.get(column)).map(|cell| width(cell) + 1).max().unwrap_or(0).next_multiple_of(TAB))
        .collect();
    let mut text = String::new();
    for line in lines {
        let last = line.len().saturating_sub(1);
        for (column, (cell, stop)) in line.iter().zip(&stops).enumerate() {
            let tabs = if column == last { 0 } else { (stop - width(cell)).div_ceil(TAB) };
            let _ = write!(text, "{cell}{}", "\t".repeat(tabs));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, need_update: usize, ready: usize, nodes: Option<usize>) -> PreviewRow {
        PreviewRow {
            name: name.to_owned(),
            role: Role::Node,
            needs_update: need_update > 0,
            need_update,
            ready,
            min: 1,
            target: 3,
            max: 10,
            nodes,
            configuration: None,
            replace: vec![],
        }
    }

    /// Golden text of kOps 1.36.2 with `--cloudonly` on an emulated cluster.
    #[test]
    fn table_is_what_kops_prints() {
        let preview = Preview {
            rows: vec![row("nodes-a", 3, 0, None), row("nodes-b-long-name", 0, 3, None)],
            required: true,
            unmatched: vec![],
            nodes_known: false,
        };
        assert_eq!(
            preview.table(),
            "NAME\t\t\tSTATUS\t\tNEEDUPDATE\tREADY\tMIN\tTARGET\tMAX\n\
             nodes-a\t\t\tNeedsUpdate\t3\t\t0\t1\t3\t10\n\
             nodes-b-long-name\tReady\t\t0\t\t3\t1\t3\t10\n\
             \nMust specify --yes to rolling-update.\n"
        );
    }

    #[test]
    fn nodes_are_shown_where_they_are_known() {
        let preview = Preview { rows: vec![row("a", 0, 3, Some(2))], required: false, unmatched: vec![], nodes_known: true };
        assert_eq!(
            preview.table(),
            "NAME\tSTATUS\tNEEDUPDATE\tREADY\tMIN\tTARGET\tMAX\tNODES\na\tReady\t0\t\t3\t1\t3\t10\t2\n\nNo rolling-update required.\n"
        );
        let nothing = Preview { rows: vec![], required: false, unmatched: vec![], nodes_known: false };
        assert_eq!(nothing.table(), "NAME\tSTATUS\tNEEDUPDATE\tREADY\tMIN\tTARGET\tMAX\n\nNo rolling-update required.\n");
    }
}
