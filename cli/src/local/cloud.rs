//! What the cloud has, asked of EC2 and Auto Scaling themselves: no record of Kopsline's is taken for it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use aws_sdk_autoscaling::types::AutoScalingGroup;
use aws_sdk_ec2::types::Reservation;

use crate::context::Context;
use crate::executions::aws_error;
use crate::output::{self, Paint, Table};

/// `DescribeInstances` takes this many ids at most.
const IDS_AT_ONCE: usize = 200;

/// An Auto Scaling group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    name: String,
    min: i32,
    desired: i32,
    max: i32,
    /// Its instances.
    pub(crate) instances: Vec<Instance>,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    id: String,
    zone: String,
    machine_type: String,
}

/// All Auto Scaling groups and their instances, by name.
pub(crate) async fn groups(context: &Context) -> anyhow::Result<Vec<Group>> {
    let scaling = aws_sdk_autoscaling::Client::new(&context.sdk);
    let mut pages = scaling.describe_auto_scaling_groups().into_paginator().items().send();
    let mut found = Vec::new();
    while let Some(group) = pages.next().await {
        found.push(group.map_err(|error| aws_error(&error)).context("DescribeAutoScalingGroups failed")?);
    }
    let ids: Vec<String> =
        found.iter().flat_map(AutoScalingGroup::instances).filter_map(|instance| instance.instance_id().map(str::to_owned)).collect();
    let types = machine_types(context, &ids).await?;
    let mut groups: Vec<Group> = found.iter().map(|group| group_of(group, &types)).collect();
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(groups)
}

fn group_of(group: &AutoScalingGroup, types: &BTreeMap<String, String>) -> Group {
    let instances = group.instances().iter().map(|instance| {
        let id = instance.instance_id().unwrap_or_default().to_owned();
        Instance {
            machine_type: types.get(&id).cloned().unwrap_or_else(|| "not in EC2".to_owned()),
            zone: instance.availability_zone().unwrap_or_default().to_owned(),
            id,
        }
    });
    Group {
        name: group.auto_scaling_group_name().unwrap_or_default().to_owned(),
        min: group.min_size().unwrap_or_default(),
        desired: group.desired_capacity().unwrap_or_default(),
        max: group.max_size().unwrap_or_default(),
        instances: instances.collect(),
    }
}

/// The machine types of the instances that EC2 knows and that are not gone.
async fn machine_types(context: &Context, ids: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let ec2 = aws_sdk_ec2::Client::new(&context.sdk);
    let mut types = BTreeMap::new();
    for ids in ids.chunks(IDS_AT_ONCE) {
        let answer = ec2.describe_instances().set_instance_ids(Some(ids.to_vec())).send().await;
        let answer = answer.map_err(|error| aws_error(&error)).context("DescribeInstances failed")?;
        for instance in answer.reservations().iter().flat_map(Reservation::instances) {
            let running =
                instance.state().and_then(|state| state.name()).is_some_and(|name| matches!(name.as_str(), "running" | "pending"));
            if let (Some(id), Some(machine_type), true) = (instance.instance_id(), instance.instance_type(), running) {
                types.insert(id.to_owned(), machine_type.as_str().to_owned());
            }
        }
    }
    Ok(types)
}

/// How many instances are there now that were not before.
pub(crate) fn new_instances(before: &[Group], now: &[Group]) -> usize {
    let old = ids(before);
    ids(now).into_iter().filter(|id| !old.contains(id)).count()
}

fn ids(groups: &[Group]) -> BTreeSet<&str> {
    groups.iter().flat_map(|group| &group.instances).map(|instance| instance.id.as_str()).collect()
}

/// The groups as a table; with what was there before, how many of their instances are new.
pub(crate) fn table(before: &[Group], now: &[Group]) -> Table {
    let mut header = vec!["AUTO SCALING GROUP", "MIN", "DESIRED", "MAX", "MACHINE TYPE", "INSTANCES"];
    if !before.is_empty() {
        header.insert(5, "NEW");
    }
    let mut table = Table::new(&header);
    for group in now {
        let types: BTreeSet<&str> = group.instances.iter().map(|instance| instance.machine_type.as_str()).collect();
        let instances: Vec<String> = group.instances.iter().map(|instance| format!("{} ({})", instance.id, instance.zone)).collect();
        let mut row = vec![
            (group.name.clone(), Paint::Plain),
            (group.min.to_string(), Paint::Plain),
            (group.desired.to_string(), Paint::Plain),
            (group.max.to_string(), Paint::Plain),
            (types.into_iter().collect::<Vec<_>>().join(", "), Paint::Plain),
        ];
        if !before.is_empty() {
            let new = new_instances(before, std::slice::from_ref(group));
            row.push((format!("{new} of {}", group.instances.len()), if new > 0 { Paint::Good } else { Paint::Plain }));
        }
        row.push((output::shorten(&instances.join(", "), 110), Paint::Dim));
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Style;

    #[test]
    fn groups_are_shown_with_their_machine_types() {
        let instance =
            |id: &str, machine_type: &str| Instance { id: id.into(), zone: "us-east-1a".into(), machine_type: machine_type.into() };
        let group = |instances| Group { name: "nodes.demo".into(), min: 1, desired: 2, max: 3, instances };
        let before = [group(vec![instance("i-1", "m6i.large")])];
        let now = [group(vec![instance("i-1", "m6i.large"), instance("i-2", "m6i.xlarge")])];
        insta::assert_snapshot!(format!(
            "{}\n{}",
            table(&[], &now).render(Style::plain(), 0),
            table(&before, &now).render(Style::plain(), 0)
        ));
    }
}
