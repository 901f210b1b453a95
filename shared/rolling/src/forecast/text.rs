//! A forecast as a table for people.

use std::fmt::{self, Write as _};

use super::{Forecast, GroupForecast, InstanceForecast, Names, Why};

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.groups.is_empty() {
            return writeln!(f, "Nothing to roll in {}.", self.cluster);
        }
        let header = ["GROUP", "ROLE", "INSTANCES", "AT ONCE", "SURGE", "BATCHES", "ABOUT"].map(str::to_owned);
        let rows: Vec<[String; 7]> = std::iter::once(header).chain(self.groups.iter().map(row)).collect();
        for row in &rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
                let _ = write!(line, "{cell:width$}  ");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        for group in &self.groups {
            writeln!(f, "\n{}{}", group.name, if group.disabled { " (disabled)" } else { "" })?;
            for instance in &group.instances {
                write_instance(f, group, instance, self.pods_known)?;
            }
        }
        if !self.warnings.is_empty() {
            writeln!(f)?;
        }
        for warning in &self.warnings {
            writeln!(f, "! {warning}")?;
        }
        write!(f, "\nIn all: {}", count(self.instances, "instance"))?;
        if self.surge > 0 {
            write!(f, ", {} more at the most", self.surge)?;
        }
        write!(f, ", about {:#}", rounded(self.likely))?;
        match self.longest {
            Some(longest) => writeln!(f, ", {:#} at the most", rounded(longest)),
            None => writeln!(f, ", drains without a limit"),
        }
    }
}

fn row(group: &GroupForecast) -> [String; 7] {
    let at_once = if group.first_alone { format!("1, then {}", group.at_once) } else { group.at_once.to_string() };
    [
        group.name.clone(),
        group.role.to_string(),
        group.instances.len().to_string(),
        if group.at_once == 1 { "1".to_owned() } else { at_once },
        group.surge.to_string(),
        group.batches.to_string(),
        format!("{:#}", rounded(group.likely)),
    ]
}

fn write_instance(f: &mut fmt::Formatter<'_>, group: &GroupForecast, instance: &InstanceForecast, pods_known: bool) -> fmt::Result {
    let batch = match instance.batch {
        0 => "warm pool".to_owned(),
        _ if group.disabled => "stays".to_owned(),
        batch => format!("batch {batch}"),
    };
    write!(f, "  {batch:9}  {}", instance.id)?;
    match &instance.node {
        Some(node) => write!(f, " ({node}, {})", instance.zone)?,
        None => write!(f, " ({})", instance.zone)?,
    }
    match &instance.why {
        Why::Configuration { from, to } => {
            let name = |configuration: &Option<String>| configuration.clone().unwrap_or_else(|| "?".to_owned());
            write!(f, ": {} -> {}", name(from), name(to))?;
        }
        Why::Annotated => write!(f, ": its node asks for it")?,
        Why::Forced => write!(f, ": forced")?,
        Why::Detached => write!(f, ": left over from an earlier roll")?,
        Why::WarmPool => write!(f, ": old")?,
    }
    if instance.detached_first {
        write!(f, ", detached first")?;
    }
    if pods_known && instance.node.is_some() && !group.disabled {
        write!(f, ", {}", count(instance.evicted, "pod"))?;
    }
    writeln!(f)?;
    for held in &instance.held {
        let (pod, budget) = (&held.pod, &held.budget);
        match &held.hopeless {
            Some(why) => writeln!(f, "             ! {pod} can never be evicted under PodDisruptionBudget {budget}: {why}")?,
            None => writeln!(f, "             ! {pod} cannot be evicted under PodDisruptionBudget {budget} at the moment")?,
        }
    }
    names(f, &instance.unmanaged, "started again by nobody")?;
    names(f, &instance.local_storage, "losing local storage")
}

fn names(f: &mut fmt::Formatter<'_>, names: &Names, what: &str) -> fmt::Result {
    if names.count == 0 {
        return Ok(());
    }
    let more = names.count - names.first.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    writeln!(f, "             ! {what}: {}{more}", names.first.join(", "))
}

pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// To whole minutes, as nobody believes more of an estimate; short ones to seconds.
fn rounded(duration: jiff::SignedDuration) -> jiff::SignedDuration {
    let seconds = duration.as_secs();
    jiff::SignedDuration::from_secs(if seconds < 120 { seconds } else { (seconds + 30) / 60 * 60 })
}
