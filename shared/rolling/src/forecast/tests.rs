use std::collections::BTreeMap;

use jiff::Timestamp;

use super::*;
use crate::{
    ClusterSpec, GroupSpec, Instance, InstancePhase, IntOrString, NodeFacts, Owner, RollingUpdate, Selector, Settings, Status as IsStatus,
};

fn instance(id: &str, version: &str, status: IsStatus) -> Instance {
    Instance {
        id: format!("i-{id}"),
        zone: "eu-central-1a".to_owned(),
        machine_type: "m7g.large".to_owned(),
        configuration: Some(format!("lt-1:{version}")),
        status,
        warm: false,
        in_service: status != IsStatus::Detached,
        node: Some(format!("node-{id}")),
    }
}

fn old(ids: &[&str]) -> Vec<Instance> {
    ids.iter().map(|id| instance(id, "3", IsStatus::NeedsUpdate)).collect()
}

fn group(inventory: &mut Inventory, name: &str, role: Role, rolling_update: RollingUpdate, ready: &[&str], need_update: Vec<Instance>) {
    let spec = GroupSpec { name: name.to_owned(), role, manager: Manager::CloudGroup, min_size: 1, rolling_update };
    inventory.cluster.groups.push(spec.clone());
    let target = u32::try_from(ready.len() + need_update.iter().filter(|instance| !instance.warm && instance.in_service).count()).unwrap();
    let group = CloudGroup {
        auto_scaling_group: format!("{name}.c.test"),
        configuration: Some("lt-1:4".to_owned()),
        min: 1,
        target,
        max: 9,
        ready: ready.iter().map(|id| instance(id, "4", IsStatus::Ready)).collect(),
        need_update,
        suspended_processes: vec![],
        spec,
    };
    inventory.groups.insert(name.to_owned(), group);
}

fn cluster() -> (Inventory, ClusterFacts) {
    let cluster = ClusterSpec { name: "prod.example.com".to_owned(), rolling_update: RollingUpdate::default(), groups: vec![] };
    let mut inventory = Inventory { cluster, groups: BTreeMap::new(), unmatched: vec!["stray.c.test".to_owned()], nodes_known: true };
    let settings = |surge, unavailable| RollingUpdate {
        drain_and_terminate: None,
        max_surge: Some(IntOrString::Int(surge)),
        max_unavailable: Some(IntOrString::Int(unavailable)),
    };
    let mut bastion = old(&["b"]);
    bastion[0].node = None;
    group(&mut inventory, "bastions", Role::Bastion, RollingUpdate::default(), &[], bastion);
    group(&mut inventory, "control-plane", Role::ControlPlane, RollingUpdate::default(), &["cp-3"], old(&["cp-1", "cp-2"]));
    group(&mut inventory, "nodes-a", Role::Node, settings(0, 2), &[], old(&["a-1", "a-2", "a-3", "a-4", "a-5"]));
    let mut surging = old(&["b-1", "b-2", "b-3"]);
    surging.push(Instance { warm: true, node: None, ..instance("b-warm", "3", IsStatus::NeedsUpdate) });
    surging.push(Instance { configuration: None, ..instance("b-left", "3", IsStatus::Detached) });
    surging[0].configuration = Some("lt-1:4".to_owned());
    group(&mut inventory, "nodes-b", Role::Node, settings(2, 0), &["b-4"], surging);
    let disabled = RollingUpdate { drain_and_terminate: Some(false), ..RollingUpdate::default() };
    group(&mut inventory, "nodes-c", Role::Node, disabled, &[], old(&["c-1"]));

    let mut facts = ClusterFacts::default();
    for instance in inventory.groups.values().flat_map(CloudGroup::instances) {
        if let Some(node) = &instance.node {
            facts.nodes.push(NodeFacts { name: node.clone(), provider_id: format!("aws:///z/{}", instance.id), ..NodeFacts::default() });
        }
    }
    let pod = |name: &str, node: &str, app: &str, owner: &str| PodFacts {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        node: node.to_owned(),
        labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
        phase: "Running".to_owned(),
        ready: true,
        controller: (!owner.is_empty()).then(|| Owner { kind: owner.to_owned(), name: app.to_owned() }),
        ..PodFacts::default()
    };
    facts.pods = vec![
        pod("db-0", "node-a-1", "db", "StatefulSet"),
        pod("web-1", "node-a-2", "web", "ReplicaSet"),
        pod("debug", "node-a-2", "debug", ""),
        PodFacts { local_storage: true, ..pod("cache-1", "node-b-1", "cache", "ReplicaSet") },
        pod("agent-1", "node-b-1", "agent", "DaemonSet"),
        pod("c", "node-c-1", "db", "StatefulSet"),
    ];
    facts
        .pods
        .extend((0..7).map(|number| PodFacts { local_storage: true, ..pod(&format!("log-{number}"), "node-a-5", "log", "ReplicaSet") }));
    let budget = |name: &str, expected, allowed| BudgetFacts {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        selector: Selector { match_labels: BTreeMap::from([("app".to_owned(), name.to_owned())]), match_expressions: vec![] },
        max_unavailable: Some(if expected == 1 { "0" } else { "1" }.to_owned()),
        disruptions_allowed: allowed,
        current_healthy: 1,
        desired_healthy: 1,
        expected_pods: expected,
        ..BudgetFacts::default()
    };
    facts.budgets = vec![budget("db", 1, 0), budget("web", 2, 0), budget("cache", 2, 1)];
    (inventory, facts)
}

#[test]
fn a_forecast_reads_well() {
    let (inventory, facts) = cluster();
    let forecast = forecast(&inventory, Some(&facts), &RollOptions::default(), None, &History::default()).unwrap();
    insta::assert_snapshot!(forecast.to_string());
    let json = serde_json::to_string(&forecast).unwrap();
    assert_eq!(serde_json::from_str::<Forecast>(&json).unwrap(), forecast);
}

#[test]
fn without_the_kubernetes_api_nothing_is_said_of_pods() {
    let (mut inventory, _) = cluster();
    for instance in inventory.groups.values_mut().flat_map(|group| group.need_update.iter_mut().chain(&mut group.ready)) {
        instance.node = None;
    }
    inventory.nodes_known = false;
    let options = RollOptions { cloudonly: true, ..RollOptions::default() };
    insta::assert_snapshot!(forecast(&inventory, None, &options, None, &History::default()).unwrap().to_string());
    assert!(forecast(&inventory, None, &RollOptions::default(), None, &History::default()).is_err());
}

#[test]
fn nothing_to_roll_is_said() {
    let (mut inventory, facts) = cluster();
    for group in inventory.groups.values_mut() {
        group.need_update.clear();
    }
    let nothing = forecast(&inventory, Some(&facts), &RollOptions::default(), None, &History::default()).unwrap();
    assert_eq!(nothing.to_string(), "Nothing to roll in prod.example.com.\n");
    assert_eq!((nothing.likely, nothing.instances), (SignedDuration::ZERO, 0));
}

/// The batches are those of the planner.
#[test]
fn batches_follow_the_settings() {
    let (inventory, facts) = cluster();
    let forecast = forecast(&inventory, Some(&facts), &RollOptions::default(), None, &History::default()).unwrap();
    let batches = |name: &str| {
        let group = forecast.groups.iter().find(|group| group.name == name).unwrap();
        group.instances.iter().map(|instance| (instance.id.as_str(), instance.batch, instance.detached_first)).collect::<Vec<_>>()
    };
    assert_eq!(batches("control-plane"), [("i-cp-1", 1, false), ("i-cp-2", 2, false)]);
    assert_eq!(
        batches("nodes-a"),
        [("i-a-1", 1, false), ("i-a-2", 2, false), ("i-a-3", 2, false), ("i-a-4", 3, false), ("i-a-5", 3, false)]
    );
    assert_eq!(
        batches("nodes-b"),
        [("i-b-warm", 0, false), ("i-b-1", 1, false), ("i-b-2", 1, false), ("i-b-3", 2, true), ("i-b-left", 2, false)],
        "the left-over one takes one slot of the surge"
    );
    assert_eq!((forecast.surge, forecast.instances), (1, 1 + 2 + 5 + 5));
}

#[test]
fn earlier_rolls_say_how_long_it_takes() {
    let (inventory, facts) = cluster();
    let mut roll = RollState::start(&inventory, RollOptions::default(), Timestamp::UNIX_EPOCH, None).unwrap();
    let at = |seconds| Some(Timestamp::from_second(seconds).unwrap());
    let replaced = roll.groups.iter_mut().find(|group| group.name == "nodes-a").unwrap();
    for (instance, drained) in replaced.instances.iter_mut().zip([100, 200, 900]) {
        (instance.cordoned, instance.drained, instance.terminated) = (at(0), at(drained), at(1_000));
        instance.replaced = Some(crate::Replaced { by: "i-new".to_owned(), at: at(1_600).unwrap() });
        instance.phase = InstancePhase::Done;
    }
    let mut history = History::default();
    history.learn(&roll);
    let options = RollOptions::default();
    let likely = |history: &History, name: &str| {
        let forecast = forecast(&inventory, Some(&facts), &options, None, history).unwrap();
        forecast.groups.into_iter().find(|group| group.name == name).unwrap().likely.as_secs()
    };
    assert_eq!(likely(&history, "nodes-a"), 3 * (200 + 5 + 600 + 10), "the median drain, the delay, the median of joining, a recheck");
    assert_eq!(likely(&history, "control-plane"), 2 * (200 + 5 + 600 + 10), "of all groups, where the group itself is new");
    assert_eq!(likely(&History::default(), "nodes-a"), 3 * (45 + 5 + 210 + 10));
}

#[test]
fn settings_are_those_in_force() {
    let (inventory, _) = cluster();
    let roll = RollState::start(&inventory, RollOptions::default(), Timestamp::UNIX_EPOCH, None).unwrap();
    assert_eq!(roll.groups[2].settings, Settings { drain_and_terminate: true, max_unavailable: 2, max_surge: 0 });
}

#[test]
fn a_plan_that_changes_a_launch_template_is_foreseen_to_replace_the_whole_group() {
    let (inventory, facts) = cluster();
    let of = |inventory: &Inventory, name: &str| {
        let history = History::default();
        let forecast = forecast(inventory, Some(&facts), &RollOptions::default(), None, &history).unwrap();
        forecast.groups.into_iter().find(|group| group.name == name).map(|group| group.instances.len())
    };
    assert_eq!(of(&inventory, "control-plane"), Some(2), "the third one is up to date");
    let planned = inventory.expecting(&["control-plane.c.test".to_owned(), "not-there-yet.c.test".to_owned()]);
    assert_eq!(of(&planned, "control-plane"), Some(3));
    assert_eq!(of(&planned, "nodes-a"), Some(5), "the others stay as they are");
}
