//! The taint of nodes that a rolling update will replace. A node's taints are one atomic list: who adds one must give all.

use serde_json::{Value, json};

/// The taint's key.
pub(crate) const SCHEDULED_FOR_UPDATE: &str = "kops.k8s.io/scheduled-for-update";

/// The patch that gives a node the taint, or takes it away; `None` when there is nothing to change. It says which version
/// of the node it is for, so a taint that somebody adds meanwhile is not lost: the API answers 409.
///
/// Other taints are kept as they were read, also fields that are not known here.
pub(crate) fn patch(node: &Value, wanted: bool) -> Option<Value> {
    let taints = node.pointer("/spec/taints").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let is_ours = |taint: &&Value| taint.get("key").and_then(Value::as_str) == Some(SCHEDULED_FOR_UPDATE);
    if taints.iter().any(|taint| is_ours(&taint)) == wanted {
        return None;
    }
    let mut after: Vec<Value> = taints.iter().filter(|taint| !is_ours(taint)).cloned().collect();
    if wanted {
        after.push(json!({"key": SCHEDULED_FOR_UPDATE, "effect": "PreferNoSchedule"}));
    }
    let version = node.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    Some(json!({"metadata": {"resourceVersion": version}, "spec": {"taints": after}}))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(taints: &[Value]) -> Value {
        json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": taints}})
    }

    #[test]
    fn a_node_without_taints() {
        let patch = patch(&json!({"metadata": {"resourceVersion": "7"}, "spec": {}}), true).unwrap();
        let taint = json!({"key": "kops.k8s.io/scheduled-for-update", "effect": "PreferNoSchedule"});
        assert_eq!(patch, json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": [taint]}}));
    }

    #[test]
    fn the_taint_of_another_effect_counts() {
        let ours = json!({"key": SCHEDULED_FOR_UPDATE, "value": "x", "effect": "NoSchedule"});
        assert_eq!(patch(&node(std::slice::from_ref(&ours)), true), None);
        assert_eq!(patch(&node(&[ours]), false).unwrap()["spec"]["taints"], json!([]));
    }

    proptest! {
        #[test]
        fn other_taints_are_never_lost(keys in proptest::collection::vec("[a-d]", 0..5), at in 0_usize..6, tainted: bool, wanted: bool) {
            let others: Vec<Value> = keys.iter().map(|key| json!({"key": key, "effect": "NoExecute", "timeAdded": "2026-11-25T00:00:00Z"})).collect();
            let mut taints = others.clone();
            if tainted {
                taints.insert(at.min(taints.len()), json!({"key": SCHEDULED_FOR_UPDATE, "effect": "PreferNoSchedule"}));
            }
            match patch(&node(&taints), wanted) {
                None => prop_assert_eq!(tainted, wanted),
                Some(patch) => {
                    let after = patch["spec"]["taints"].as_array().unwrap();
                    prop_assert_eq!(&after[..others.len()], &others[..]);
                    prop_assert_eq!(after.len() - others.len(), usize::from(wanted));
                    prop_assert_eq!(&patch["metadata"]["resourceVersion"], "7");
                }
            }
        }
    }
}
