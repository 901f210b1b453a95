//! The rows of kOps' validation suite (1.36 and, where said, 1.37 `pkg/validation/validate_cluster_test.go`).

use std::collections::BTreeMap;

use super::*;
use crate::{ClusterSpec, GroupSpec, Instance, Manager, RollingUpdate};

/// A member: id or node name, state.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    Ready,
    NotReady,
    NoNode,
    Detached,
    DetachedWithoutNode,
    Warm,
}

struct Case {
    inventory: Inventory,
    facts: ClusterFacts,
}

impl Case {
    fn new() -> Self {
        let cluster = ClusterSpec { name: "testcluster.k8s.local".to_owned(), rolling_update: RollingUpdate::default(), groups: vec![] };
        let inventory = Inventory { cluster, groups: BTreeMap::new(), unmatched: vec![], nodes_known: true };
        Self { inventory, facts: ClusterFacts::default() }
    }

    fn spec(&mut self, name: &str, role: Role) -> GroupSpec {
        let spec =
            GroupSpec { name: name.to_owned(), role, manager: Manager::CloudGroup, min_size: 1, rolling_update: RollingUpdate::default() };
        self.inventory.cluster.groups.push(spec.clone());
        spec
    }

    fn group(mut self, name: &str, role: Role, target: u32, members: &[(&str, Is)]) -> Self {
        let spec = self.spec(name, role);
        let instance = |(name, is): &(&str, Is)| Instance {
            id: format!("i-{name}"),
            zone: String::new(),
            machine_type: String::new(),
            configuration: None,
            status: if matches!(is, Is::Detached | Is::DetachedWithoutNode) { Status::Detached } else { Status::Ready },
            warm: *is == Is::Warm,
            in_service: true,
            node: None,
        };
        for (index, (name, is)) in members.iter().enumerate() {
            if matches!(is, Is::Ready | Is::NotReady | Is::Detached) {
                self.facts.nodes.push(NodeFacts {
                    name: (*name).to_owned(),
                    provider_id: format!("aws:///us-test-1a/i-{name}"),
                    ready: *is != Is::NotReady,
                    addresses: vec![format!("10.0.{}.{index}", self.facts.nodes.len())],
                    ..NodeFacts::default()
                });
            }
        }
        let group = CloudGroup {
            auto_scaling_group: name.to_owned(),
            configuration: None,
            min: target,
            target,
            max: target,
            ready: members.iter().map(instance).collect(),
            need_update: vec![],
            suspended_processes: vec![],
            spec,
        };
        self.inventory.groups.insert(name.to_owned(), group);
        self
    }

    fn pod(mut self, namespace: &str, name: &str, priority: &str, phase: &str, ready: bool, node: &str) -> Self {
        self.facts.pods.push(PodFacts {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            priority_class: priority.to_owned(),
            phase: phase.to_owned(),
            unready_containers: if ready { vec![] } else { vec!["container1".to_owned(), "container2".to_owned()] },
            node: node.to_owned(),
            ..PodFacts::default()
        });
        self
    }

    fn failures(&self) -> Vec<Failure> {
        self.tolerating(0)
    }

    fn tolerating(&self, max_unready: usize) -> Vec<Failure> {
        validate(&self.inventory, &self.facts, &BTreeMap::new(), max_unready)
    }
}

fn failure(kind: FailureKind, name: &str, message: &str, group: Option<&str>) -> Failure {
    Failure { kind, name: name.to_owned(), message: message.to_owned(), group: group.map(str::to_owned), lacking: 0 }
}

#[test]
fn row_50_cloud_group_missing() {
    let mut case = Case::new();
    case.spec("node-1", Role::Node);
    assert_eq!(
        case.failures(),
        [failure(FailureKind::InstanceGroup, "node-1", r#"InstanceGroup "node-1" is missing from the cloud provider"#, Some("node-1"))]
    );
}

#[test]
fn row_52_detached_nodes_dont_count() {
    let case = Case::new().group("node-1", Role::Node, 2, &[("node-1a", Is::Ready), ("node-1b", Is::Detached)]);
    let expected =
        failure(FailureKind::InstanceGroup, "node-1", r#"InstanceGroup "node-1" did not have enough nodes 1 vs 2"#, Some("node-1"));
    assert_eq!(case.failures(), [Failure { lacking: 1, ..expected }]);
}

#[test]
fn row_53_node_not_ready() {
    let case = Case::new().group("node-1", Role::Node, 2, &[("node-1a", Is::Ready), ("node-1b", Is::NotReady)]);
    assert_eq!(case.failures(), [failure(FailureKind::Node, "node-1b", r#"node "node-1b" of role "node" is not ready"#, Some("node-1"))]);
}

#[test]
fn row_55_master_not_ready() {
    let case = Case::new().group("master-1", Role::ControlPlane, 2, &[("master-1a", Is::Ready), ("master-1b", Is::NotReady)]);
    assert_eq!(
        case.failures(),
        [failure(FailureKind::Node, "master-1b", r#"node "master-1b" of role "control-plane" is not ready"#, Some("master-1"))]
    );
}

#[test]
fn row_57_no_pod_failures() {
    let mut case = Case::new().group("master-1", Role::ControlPlane, 1, &[("master-1a", Is::Ready)]);
    for priority in ["", "otherPriority"] {
        for phase in ["Pending", "Running", "Succeeded", "Failed", "Unknown"] {
            for ready in [true, false] {
                case = case.pod("kube-system", &format!("{priority}-{phase}-{ready}"), priority, phase, ready, "master-1a");
            }
        }
    }
    for priority in [NODE_CRITICAL, CLUSTER_CRITICAL] {
        for namespace in ["kube-system", "other"] {
            case = case.pod(namespace, "running", priority, "Running", true, "master-1a");
            case = case.pod(namespace, "ended", priority, "Succeeded", false, "master-1a");
        }
    }
    assert_eq!(case.failures(), []);
}

#[test]
fn critical_pods_that_are_not_well() {
    let node = || Case::new().group("node-1", Role::Node, 1, &[("node-1a", Is::Ready)]);
    for priority in [NODE_CRITICAL, CLUSTER_CRITICAL] {
        // Only a node-critical pod belongs to the group of its node.
        let group = (priority == NODE_CRITICAL).then_some("node-1");
        for (phase, ready, problem) in [
            ("Pending", true, "is pending"),
            ("Unknown", true, "is unknown phase"),
            ("Running", false, "is not ready (container1,container2)"),
            ("Failed", false, "is not ready (container1,container2)"),
        ] {
            let message = format!("{priority} pod \"pod\" {problem}");
            let expected = failure(FailureKind::Pod, "kube-system/pod", &message, group);
            assert_eq!(node().pod("kube-system", "pod", priority, phase, ready, "node-1a").failures(), std::slice::from_ref(&expected));
            assert_eq!(
                node().pod("kube-system", "pod", priority, phase, ready, "").failures(),
                [Failure { group: None, ..expected.clone() }],
                "it has no node"
            );
            let mut by_address = node().pod("kube-system", "pod", priority, phase, ready, "");
            by_address.facts.pods[0].host_ip = by_address.facts.nodes[0].addresses[0].clone();
            assert_eq!(by_address.failures(), [expected]);
        }
        assert_eq!(node().pod("other", "pod", priority, "Failed", true, "node-1a").failures(), [], "it has no container statuses");
    }
}

#[test]
fn control_plane_nodes_run_the_control_plane() {
    let case = |apps: &[&str]| {
        let mut case = Case::new().group("master-1", Role::ControlPlane, 1, &[("master-1a", Is::Ready)]);
        case.facts.nodes[0].control_plane = true;
        for app in apps {
            case = case.pod("kube-system", app, NODE_CRITICAL, "Running", true, "master-1a");
            case.facts.pods.last_mut().unwrap().labels.insert("k8s-app".to_owned(), (*app).to_owned());
        }
        case
    };
    assert_eq!(case(&CONTROL_PLANE_PODS).failures(), []);
    let missing = |app: &str| {
        failure(FailureKind::Node, "master-1a", &format!("control-plane node \"master-1a\" is missing {app} pod"), Some("master-1"))
    };
    assert_eq!(case(&["kube-scheduler"]).failures(), [missing("kube-apiserver"), missing("kube-controller-manager")]);
    let mut elsewhere = case(&CONTROL_PLANE_PODS);
    elsewhere.facts.pods[1].namespace = "default".to_owned();
    assert_eq!(elsewhere.failures(), [missing("kube-controller-manager")]);
    let mut not_ready = case(&[]);
    not_ready.facts.nodes[0].ready = false;
    assert_eq!(not_ready.failures().len(), 1, "nothing more is expected of a node that is not ready");
}

#[test]
fn row_59_bastion_nodes() {
    let case = |role| Case::new().group("ig", role, 1, &[("00001", Is::NoNode)]);
    assert_eq!(
        case(Role::Node).failures(),
        [failure(FailureKind::Machine, "i-00001", r#"machine "i-00001" has not yet joined cluster"#, Some("ig"))]
    );
    assert_eq!(case(Role::Bastion).failures(), []);
}

#[test]
fn row_60_detached_nodes_not_validated() {
    let members = [("node-1a", Is::Ready), ("node-1b", Is::Ready), ("00003", Is::DetachedWithoutNode)];
    assert_eq!(Case::new().group("node-1", Role::Node, 2, &members).failures(), []);
}

#[test]
fn warm_instances_are_members_that_need_not_join() {
    let members = [("node-1a", Is::Ready), ("node-1b", Is::Warm)];
    assert_eq!(Case::new().group("node-1", Role::Node, 2, &members).failures(), [], "kOps counts them, too");
}

/// kOps 1.37.
fn workers(target: u32, members: &[(&str, Is)]) -> Case {
    Case::new().group("node-1", Role::Node, target, members)
}

const ONE_NOT_READY: [(&str, Is); 2] = [("node-1a", Is::Ready), ("node-1b", Is::NotReady)];

#[test]
fn row_61_one_worker_not_ready_is_tolerated() {
    assert_eq!(workers(2, &ONE_NOT_READY).tolerating(1), []);
}

#[test]
fn row_62_one_instance_without_node_is_tolerated() {
    assert_eq!(workers(2, &[("node-1a", Is::Ready), ("node-1b", Is::NoNode)]).tolerating(1), []);
}

#[test]
fn row_63_a_node_critical_pod_on_it_is_no_second_problem() {
    let case = workers(2, &ONE_NOT_READY).pod("kube-system", "pod", NODE_CRITICAL, "Running", false, "node-1b");
    assert_eq!(case.tolerating(1), []);
    assert_eq!(case.failures().len(), 2);
    let elsewhere = workers(2, &ONE_NOT_READY).pod("kube-system", "pod", NODE_CRITICAL, "Running", false, "node-1a");
    assert_eq!(elsewhere.tolerating(1).len(), 1);
}

#[test]
fn row_64_two_workers_not_ready_are_one_too_many() {
    assert_eq!(workers(3, &[("a", Is::Ready), ("b", Is::NotReady), ("c", Is::NotReady)]).tolerating(1).len(), 2);
}

#[test]
fn row_65_none_is_tolerated_by_default() {
    assert_eq!(workers(2, &ONE_NOT_READY).tolerating(0).len(), 1);
}

#[test]
fn row_66_the_control_plane_is_never_tolerated() {
    let case = Case::new().group("master-1", Role::ControlPlane, 2, &ONE_NOT_READY);
    assert_eq!(case.tolerating(1).len(), 1);
}

#[test]
fn row_67_a_group_that_is_too_small_is_never_tolerated() {
    let failures = workers(3, &[("a", Is::Ready), ("b", Is::Ready)]).tolerating(1);
    assert_eq!(failures.iter().map(|failure| failure.kind).collect::<Vec<_>>(), [FailureKind::InstanceGroup]);
}

#[test]
fn a_name_that_does_not_resolve_stops_validation() {
    let mut case = workers(2, &[("a", Is::NotReady)]);
    case.facts.api_name = ApiName::Placeholder;
    assert!(matches!(&case.failures()[..], [Failure { kind: FailureKind::Dns, name, group: None, .. }] if name == "apiserver"));
    case.facts.api_name = ApiName::Unresolved { message: "NXDOMAIN".to_owned() };
    assert!(matches!(&case.failures()[..], [failure] if failure.message.ends_with("NXDOMAIN")));
}

/// kOps counts an instance until the cloud drops it, and waits for a node that is going away.
#[test]
fn what_is_about_to_go_is_no_member() {
    let members = [("a", Is::Ready), ("b", Is::NotReady), ("c", Is::Ready)];
    let case = workers(2, &members).pod("kube-system", "proxy", NODE_CRITICAL, "Running", false, "b").pod(
        "kube-system",
        "coredns",
        CLUSTER_CRITICAL,
        "Running",
        false,
        "b",
    );
    let leaving = BTreeMap::from([("i-b".to_owned(), Leaving::Terminated)]);
    let failures = validate(&case.inventory, &case.facts, &leaving, 0);
    assert_eq!(failures.iter().map(|failure| failure.name.as_str()).collect::<Vec<_>>(), ["kube-system/coredns"]);
    let leaving = BTreeMap::from(["i-a", "i-b"].map(|id| (id.to_owned(), Leaving::Terminated)));
    assert_eq!(
        validate(&case.inventory, &case.facts, &leaving, 0)[0].message,
        r#"InstanceGroup "node-1" did not have enough nodes 1 vs 2"#
    );
}

/// As in kOps, which looks at the nodes of detached instances, too.
#[test]
fn the_node_of_a_detached_instance_must_be_ready() {
    let case = workers(2, &[("a", Is::Ready), ("b", Is::NotReady), ("c", Is::Ready)]);
    let leaving = BTreeMap::from([("i-b".to_owned(), Leaving::Detached)]);
    let failures = validate(&case.inventory, &case.facts, &leaving, 0);
    assert_eq!(failures.iter().map(|failure| failure.name.as_str()).collect::<Vec<_>>(), ["b"]);
    let leaving = BTreeMap::from(["i-b", "i-c"].map(|id| (id.to_owned(), Leaving::Detached)));
    assert_eq!(validate(&case.inventory, &case.facts, &leaving, 0)[0].kind, FailureKind::InstanceGroup);
}

#[test]
fn failures_concern_their_group_the_control_plane_or_everybody() {
    let case = workers(1, &[("a", Is::Ready)]).group("node-2", Role::Node, 1, &[]).group("master-1", Role::ControlPlane, 1, &[]);
    let concerns = |group: Option<&str>| failure(FailureKind::Pod, "x", "x", group).concerns("node-1", &case.inventory);
    assert_eq!((concerns(None), concerns(Some("node-1")), concerns(Some("node-2")), concerns(Some("master-1"))), (true, true, false, true));
    let excusable = |kind, group| failure(kind, "x", "x", Some(group)).is_excusable(&case.inventory);
    for kind in [FailureKind::InstanceGroup, FailureKind::Machine, FailureKind::Node] {
        assert!(excusable(kind, "node-1") && !excusable(kind, "master-1"), "{kind:?}: the quorum depends on it");
    }
    assert!(excusable(FailureKind::Pod, "master-1"));
    assert!(!excusable(FailureKind::Dns, "node-1") && !excusable(FailureKind::Api, "node-1"));
}

#[test]
fn many_failures_are_shortened() {
    let failures: Vec<_> = (0..9).map(|number| failure(FailureKind::Pod, "x", &format!("message {}", number / 2 * 2), None)).collect();
    assert_eq!(shortened(failures.iter()), ["message 0", "message 2", "message 4", "message 6", "message 8"]);
    let failures: Vec<_> = (0..9).map(|number| failure(FailureKind::Pod, "x", &format!("message {number}"), None)).collect();
    assert_eq!(shortened(failures.iter()).last().unwrap(), "4 more");
}
