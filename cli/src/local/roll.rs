//! A rolling update told instance by instance, from one checkpoint to the next.

use kopsline_rolling::{InstancePhase, InstanceRoll, RollState};

use crate::output;

/// What happened between two checkpoints, in words.
pub(crate) fn lines(before: Option<&RollState>, after: &RollState) -> Vec<String> {
    let mut lines = Vec::new();
    for group in &after.groups {
        let old = before.and_then(|state| state.groups.iter().find(|old| old.name == group.name));
        if group.started.is_some() && old.is_none_or(|old| old.started.is_none()) {
            let instances = output::count(group.instances.len(), "instance");
            lines.push(format!("group {}: {instances} to replace, at most {} at once", group.name, group.concurrency));
        }
        let total = group.instances.len();
        for (index, instance) in group.instances.iter().enumerate() {
            let was = old.and_then(|old| old.instances.iter().find(|old| old.id == instance.id));
            lines.extend(step(was, instance).into_iter().map(|what| format!("{} {}/{total}  {what}", group.name, index + 1)));
        }
    }
    lines
}

fn step(before: Option<&InstanceRoll>, after: &InstanceRoll) -> Vec<String> {
    let mut lines = Vec::new();
    if after.terminated.is_some() && before.is_none_or(|before| before.terminated.is_none()) {
        lines.push(format!("{} in {} terminated", after.id, after.zone));
    }
    if let Some(replaced) = &after.replaced
        && before.is_none_or(|before| before.replaced.is_none())
    {
        let took = after
            .terminated
            .map_or_else(String::new, |terminated| format!(", {} later", output::duration(replaced.at.duration_since(terminated))));
        lines.push(format!("{} in service in place of {}{took}", replaced.by, after.id));
    }
    let changed = before.is_none_or(|before| before.phase != after.phase);
    match &after.phase {
        InstancePhase::Vanished if changed => lines.push(format!("{} went away by itself before its turn", after.id)),
        InstancePhase::Failed { error } if changed => {
            lines.push(format!("{} could not be terminated: {}", after.id, output::one_line(error)));
        }
        _ => {}
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(instance: &serde_json::Value, started: Option<&str>) -> RollState {
        serde_json::from_value(serde_json::json!({
            "version": 1, "cluster": "demo.k8s.example.com", "options": {}, "started": "2026-01-01T00:00:00Z", "finished": null,
            "outcome": {"outcome": "running"},
            "groups": [{
                "name": "nodes", "role": "Node", "manager": "CloudGroup",
                "settings": {"drain_and_terminate": true, "max_surge": 1, "max_unavailable": 0},
                "concurrency": 1, "first_alone": true, "phase": {"state": "rolling"}, "gate": null, "started": started, "finished": null,
                "instances": [instance], "bystanders": [],
            }],
        }))
        .unwrap()
    }

    fn instance(phase: &str, terminated: Option<&str>, replaced: Option<&str>) -> serde_json::Value {
        let replaced = replaced.map(|at| serde_json::json!({"by": "i-new", "at": at}));
        serde_json::json!({"id": "i-old", "zone": "us-east-1a", "origin": "needs_update", "phase": phase, "started": null,
            "attempts": 1, "not_before": "2026-01-01T00:00:00Z", "terminated": terminated, "gone": null, "replaced": replaced})
    }

    #[test]
    fn each_step_is_told_once() {
        let start = "2026-01-01T00:00:00Z";
        let waiting = checkpoint(&instance("waiting", None, None), None);
        assert!(lines(None, &waiting).is_empty());
        let begun = checkpoint(&instance("terminating", None, None), Some(start));
        assert_eq!(lines(Some(&waiting), &begun), ["group nodes: 1 instance to replace, at most 1 at once"]);
        let terminated = checkpoint(&instance("terminated", Some(start), None), Some(start));
        assert_eq!(lines(Some(&begun), &terminated), ["nodes 1/1  i-old in us-east-1a terminated"]);
        let done = checkpoint(&instance("done", Some(start), Some("2026-01-01T00:00:02Z")), Some(start));
        assert_eq!(lines(Some(&terminated), &done), ["nodes 1/1  i-new in service in place of i-old, 2.0 s later"]);
        assert!(lines(Some(&done), &done).is_empty());
        let all = lines(None, &done);
        assert_eq!(all.len(), 3, "{all:?}");
    }
}
