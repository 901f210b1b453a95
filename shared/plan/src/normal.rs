//! One form for all the texts that kOps prints for the same change.
//!
//! Dry runs of one change differ in three ways:
//! - maps print their entries in Go's random order (`util/pkg/reflectutils`, `ValueAsString`): every `Tags`;
//! - deletions of one kind come in any order (Go's `sort.Sort` is not stable);
//! - a diff may be coarser: the library behind kOps' `pkg/diff` stops refining after one second of wall time, which
//!   large files reach on a slow machine. Whatever it finds, the removed lines without the added ones are the same.

use std::collections::BTreeMap;

use crate::model::{Modified, Plan};
use crate::parse::parse;

/// How deep a value is looked into; kOps' own have three levels at most.
const MAX_DEPTH: usize = 16;

/// The normal form of a dry run's text: [`Plan::normal_form`]. A text that is not a whole dry run stays as it is.
pub fn normalise(text: &str) -> String {
    parse(text).map_or_else(|_| text.to_owned(), |plan| plan.normal_form())
}

impl Plan {
    /// A text that is equal for equal changes, however kOps happened to print them, and that reads back as a plan.
    ///
    /// It is for comparison, not for people: of a diff it holds only the net change, sorted, without empty lines (of
    /// which `pkg/diff` loses some). A mere change of order is a gap.
    pub fn normal_form(&self) -> String {
        self.normal().to_text()
    }

    /// What `now` does differently, in sentences; empty when it does the same.
    ///
    /// Redacted plans can be compared too: their markers differ where the secrets do.
    pub fn difference(&self, now: &Self) -> Vec<String> {
        let (before, now) = (self.actions(), now.actions());
        let mut sentences = Vec::new();
        for ((action, key), text) in &now {
            match before.get(&(*action, key.clone())) {
                None => sentences.push(format!("{key} would now be {action}")),
                Some(old) if old != text => sentences.push(format!("{key} would be {action} in another way")),
                Some(_) => {}
            }
        }
        let gone = before.keys().filter(|key| !now.contains_key(*key));
        sentences.extend(gone.map(|(action, key)| format!("{key} would no longer be {action}")));
        sentences
    }

    /// The normal form of everything that the plan does, by action and resource.
    fn actions(&self) -> BTreeMap<(&'static str, String), String> {
        let plan = self.normal();
        let mut actions: BTreeMap<_, String> = BTreeMap::new();
        for resource in plan.create {
            let single = Self { create: vec![resource.clone()], ..Self::default() };
            actions.entry(("created", resource.id)).or_default().push_str(&single.to_text());
        }
        for resource in plan.modify {
            let single = Self { modify: vec![resource.clone()], ..Self::default() };
            actions.entry(("modified", resource.id)).or_default().push_str(&single.to_text());
        }
        for (action, items) in [("deleted", plan.delete), ("deleted by --prune", plan.prune)] {
            for item in items {
                // Counts: the same item may be listed more than once.
                actions.entry((action, format!("{} {}", item.task, item.item))).or_default().push('x');
            }
        }
        actions
    }

    fn normal(&self) -> Self {
        let mut plan = self.clone();
        for field in plan.create.iter_mut().flat_map(|resource| &mut resource.fields) {
            field.value = value(&field.value, 0);
        }
        for field in plan.modify.iter_mut().flat_map(|Modified { fields, .. }| fields) {
            field.lines = if field.diff && is_diff(&field.lines) {
                net_change(&field.lines)
            } else {
                field.lines.iter().map(|line| sides(line)).collect()
            };
        }
        plan.create.sort_by_cached_key(|resource| (resource.id.clone(), format!("{resource:?}")));
        plan.modify.sort_by_cached_key(|resource| (resource.id.clone(), format!("{resource:?}")));
        for items in [&mut plan.prune, &mut plan.delete] {
            items.sort_by(|a, b| (&a.task, &a.item).cmp(&(&b.task, &b.item)));
        }
        plan
    }
}

/// A scalar of several lines is printed in a diff's place.
fn is_diff(lines: &[String]) -> bool {
    let fits = |line: &String| line == "..." || ["  ", "+ ", "- "].iter().any(|marker| line.starts_with(marker));
    lines.split_last().is_some_and(|(last, lines)| last.is_empty() && lines.iter().all(fits))
}

/// The removed and the added lines that do not cancel each other, in sorted order.
fn net_change(lines: &[String]) -> Vec<String> {
    let mut balance: BTreeMap<&str, i64> = BTreeMap::new();
    for line in lines {
        match line.split_at_checked(2) {
            Some((_, "")) | None => {}
            Some(("+ ", text)) => *balance.entry(text).or_default() += 1,
            Some(("- ", text)) => *balance.entry(text).or_default() -= 1,
            Some(_) => {}
        }
    }
    let all = |marker: &'static str, sign: i64| {
        balance.iter().flat_map(move |(text, n)| (0..(n * sign).max(0)).map(move |_| format!("{marker} {text}")))
    };
    let mut net: Vec<String> = all("-", -1).chain(all("+", 1)).collect();
    if net.is_empty() {
        net.push("...".to_owned());
    }
    net.push(String::new());
    net
}

/// ` old -> new`, each side in its normal form. Where a value holds an arrow, its pieces are looked at one by one.
fn sides(line: &str) -> String {
    let (lead, rest) = line.strip_prefix(' ').map_or(("", line), |rest| (" ", rest));
    let sides: Vec<String> = rest.split(" -> ").map(|side| value(side, 0)).collect();
    format!("{lead}{}", sides.join(" -> "))
}

/// Sorts the entries of maps, `{key: value, …}`, on every level. Lists keep their order; so does JSON, which Go writes
/// in a fixed one.
fn value(text: &str, depth: usize) -> String {
    if depth >= MAX_DEPTH || text.starts_with("{\"") {
        return text.to_owned();
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let items: Vec<String> = pieces(inner).iter().map(|item| value(item, depth + 1)).collect();
        return format!("[{}]", items.join(", "));
    }
    let Some(mut entries) = entries(text, depth) else { return text.to_owned() };
    entries.sort();
    format!("{{{}}}", entries.join(", "))
}

/// The entries of a map, each in its normal form, in the order in which they are printed.
fn entries(text: &str, depth: usize) -> Option<Vec<String>> {
    let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))?;
    let mut entries: Vec<String> = Vec::new();
    for piece in pieces(inner) {
        match (piece.split_once(": "), entries.last_mut()) {
            (Some((key, inner)), _) => entries.push(format!("{key}: {}", value(inner, depth + 1))),
            // The rest of a value with a comma of its own.
            (None, Some(entry)) => {
                entry.push_str(", ");
                entry.push_str(piece);
            }
            (None, None) => entries.push(piece.to_owned()),
        }
    }
    Some(entries)
}

/// A scalar's change as people should see it: of two maps only the entries that differ, since kOps prints all of them,
/// in another order on each side.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sides {
    pub(crate) old: String,
    pub(crate) new: String,
    /// How many entries of a map are left out, being the same.
    pub(crate) same: usize,
}

/// The two sides of ` old -> new`; `None` if a value holds an arrow, so that they cannot be told apart.
pub(crate) fn change(line: &str) -> Option<Sides> {
    let mut sides = line.strip_prefix(' ').unwrap_or(line).split(" -> ");
    let (Some(old), Some(new), None) = (sides.next(), sides.next(), sides.next()) else { return None };
    let whole = || Sides { old: old.to_owned(), new: new.to_owned(), same: 0 };
    if old.starts_with("{\"") || new.starts_with("{\"") {
        return Some(whole());
    }
    let (Some(before), Some(after)) = (entries(old, 0), entries(new, 0)) else { return Some(whole()) };
    let only = |these: &[String], others: &[String]| {
        let mut only: Vec<&str> = these.iter().filter(|entry| !others.contains(entry)).map(String::as_str).collect();
        only.sort_unstable();
        only.join(", ")
    };
    let same = before.iter().filter(|entry| after.contains(entry)).count();
    Some(Sides { old: only(&before, &after), new: only(&after, &before), same })
}

/// Splits at the commas outside brackets, or at every comma when the brackets do not match.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return text.split(", ").collect(),
            },
            ',' if depth == 0 && text.get(at..).is_some_and(|rest| rest.starts_with(", ")) => {
                pieces.extend(text.get(start..at));
                start = at + 2;
            }
            _ => {}
        }
    }
    if depth != 0 {
        return text.split(", ").collect();
    }
    pieces.extend(text.get(start..));
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHANGE: &str = include_str!("../tests/fixtures/change.txt");

    #[test]
    fn real_runs_of_one_change_have_one_form() {
        for (one, other) in [
            (CHANGE, include_str!("../tests/fixtures/change-again.txt")),
            (include_str!("../tests/fixtures/create.txt"), include_str!("../tests/fixtures/create-again.txt")),
        ] {
            assert_ne!(one, other, "the runs differ as kops printed them");
            assert_eq!(normalise(one), normalise(other));
            assert_eq!(normalise(&normalise(one)), normalise(one), "normalising is done once");
        }
    }

    #[test]
    fn every_change_of_meaning_shows() {
        let before = normalise(CHANGE);
        for (from, to) in [
            ("t3.medium -> t3.large", "t3.medium -> t3.xlarge"),
            ("+     workload: api", "+     workload: apis"),
            ("LaunchTemplate/nodes-general", "LaunchTemplate/nodes-spot"),
            ("team: platform", "team: other"),
        ] {
            assert!(CHANGE.contains(from), "{from}");
            assert_ne!(normalise(&CHANGE.replacen(from, to, 1)), before, "{from}");
        }
    }

    #[test]
    fn a_coarser_diff_is_the_same_change() {
        let fine = ["  a", "- b", "+ x", "  c", ""].map(str::to_owned);
        let coarse = ["- a", "- b", "- c", "+ a", "+ x", "+ c", ""].map(str::to_owned);
        assert_eq!(net_change(&fine), net_change(&coarse));
        assert_eq!(net_change(&["- a", "- b", "+ b", "+ a", ""].map(str::to_owned)), ["...", ""]);
    }

    #[test]
    fn maps_are_sorted_and_lists_are_not() {
        for (text, normal) in [
            ("{b: 1, a: {d: x, c: y}}", "{a: {c: y, d: x}, b: 1}"),
            ("[b, a]", "[b, a]"),
            ("{b: one, two, a: }", "{a: , b: one, two}"),
            ("{b: }x, a: y}", "{a: y, b: }x}"),
            ("{\"b\":1,\"a\":\"x, y: z\"}", "{\"b\":1,\"a\":\"x, y: z\"}"),
        ] {
            assert_eq!(value(text, 0), normal);
        }
    }

    #[test]
    fn of_two_maps_the_difference_is_shown() {
        let sides = |old: &str, new: &str, same| Some(Sides { old: old.into(), new: new.into(), same });
        assert_eq!(change(" {b: 1, a: x, c: } -> {c: , a: y, b: 1}"), sides("a: x", "a: y", 2));
        assert_eq!(change(" {a: x} -> {a: x, b: y}"), sides("", "b: y", 1));
        assert_eq!(change(" 3 -> 2"), sides("3", "2", 0));
        assert_eq!(change(" <nil> -> {a: x}"), sides("<nil>", "{a: x}", 0));
        assert_eq!(change(" a -> b -> c"), None);
    }

    #[test]
    fn what_moved_is_said() {
        let plan = |text: &str| parse(text).unwrap();
        let before = plan(include_str!("../tests/fixtures/delete.txt"));
        assert_eq!(before.difference(&before), Vec::<String>::new());
        let now = plan(&include_str!("../tests/fixtures/delete.txt").replace("10.99.0.0", "10.98.0.0"));
        assert_eq!(
            before.difference(&now),
            [
                "VPCCIDRBlock vpc-117abd2db8770d397: cidr=10.98.0.0/16 would now be deleted",
                "ManagedFile/cluster-completed.spec would be modified in another way",
                "VPCCIDRBlock vpc-117abd2db8770d397: cidr=10.99.0.0/16 would no longer be deleted",
            ]
        );
    }

    proptest! {
        #[test]
        fn the_order_of_entries_does_not_matter(
            (entries, shuffled) in proptest::collection::btree_map("[a-z/.]{1,8}", "[a-z =]{0,8}", 0..8)
                .prop_map(|map| map.into_iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>())
                .prop_flat_map(|entries| (Just(entries.clone()), Just(entries).prop_shuffle()))
        ) {
            let text = |entries: &[String]| format!("{{{}}}", entries.join(", "));
            prop_assert_eq!(value(&text(&entries), 0), value(&text(&shuffled), 0));
        }

        #[test]
        fn the_order_within_a_diff_does_not_matter(
            (lines, shuffled) in proptest::collection::vec("[-+ ] [a-c]{0,2}", 0..9)
                .prop_flat_map(|lines| (Just(lines.clone()), Just(lines).prop_shuffle()))
        ) {
            prop_assert_eq!(net_change(&lines), net_change(&shuffled));
        }

        #[test]
        fn any_value_is_normalised_once(text in r"([{}\[\]:, ]|a|bc|-> ){0,40}") {
            let once = sides(&text);
            prop_assert_eq!(sides(&once), once);
        }
    }
}
