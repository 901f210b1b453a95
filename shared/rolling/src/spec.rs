//! What the state store says about a cluster: its instance groups, their roles and rolling-update settings.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::settings::RollingUpdate;

/// The role of an instance group. The order of the variants is the order of a rolling update
/// (kOps 1.36 `pkg/instancegroups/rollingupdate.go`): bastions first, nodes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// SSH jump hosts; not part of the Kubernetes cluster.
    Bastion,
    /// Runs etcd and the control plane.
    ControlPlane,
    /// Runs only an API server.
    #[serde(rename = "APIServer")]
    ApiServer,
    /// Runs workloads.
    Node,
}

impl Role {
    /// The roles, as an error offers them.
    pub const NAMES: &str = "control-plane, apiserver, node or bastion";

    /// Reads a role as kOps does, ignoring case: `Master`, `ControlPlane`, `control-plane`, `APIServer`, `Node`,
    /// `Bastion`, and their plurals (kOps 1.36 `pkg/apis/kops/parse.go`, lenient).
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_lowercase();
        match lower.strip_suffix('s').unwrap_or(&lower) {
            "bastion" => Some(Self::Bastion),
            "control-plane" | "controlplane" | "master" => Some(Self::ControlPlane),
            "apiserver" => Some(Self::ApiServer),
            "node" => Some(Self::Node),
            _ => None,
        }
    }

    /// The name of the Auto Scaling group that kOps makes for an instance group
    /// (kOps 1.36 `upup/pkg/fi/cloudup/awsup/instancegroups.go`).
    pub fn auto_scaling_group_name(self, group: &str, cluster: &str) -> String {
        match self {
            Self::ControlPlane => format!("{group}.masters.{cluster}"),
            Self::ApiServer => format!("{group}.apiservers.{cluster}"),
            Self::Node | Self::Bastion => format!("{group}.{cluster}"),
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bastion => "bastion",
            Self::ControlPlane => "control-plane",
            Self::ApiServer => "apiserver",
            Self::Node => "node",
        })
    }
}

/// Who creates and removes the instances of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Manager {
    /// An Auto Scaling group.
    #[default]
    CloudGroup,
    /// Karpenter: there is no Auto Scaling group, and sizes are unknown.
    Karpenter,
}

/// A cluster as far as a rolling update needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// The cluster's name, which is also the value of the `KubernetesCluster` tag.
    pub name: String,
    /// `spec.rollingUpdate` of the cluster: defaults for its groups.
    pub rolling_update: RollingUpdate,
    /// All instance groups, also those that a selection leaves out.
    pub groups: Vec<GroupSpec>,
}

/// An instance group as far as a rolling update needs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupSpec {
    /// The instance group's name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Who manages its instances.
    pub manager: Manager,
    /// `spec.minSize`; kOps takes 1 where it is absent.
    pub min_size: u32,
    /// `spec.rollingUpdate` of the group.
    pub rolling_update: RollingUpdate,
}

/// A cluster or instance group object that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// `metadata.name` is missing.
    #[error("a {kind} has no metadata.name")]
    NoName {
        /// `Cluster` or `InstanceGroup`.
        kind: &'static str,
    },
    /// The role is missing or unknown.
    #[error("instance group {group:?} has the unknown role {role:?}; use ControlPlane, APIServer, Node or Bastion")]
    UnknownRole {
        /// The instance group.
        group: String,
        /// What it says.
        role: String,
    },
    /// The manager is unknown.
    #[error("instance group {group:?} has the unknown manager {manager:?}; use CloudGroup or Karpenter")]
    UnknownManager {
        /// The instance group.
        group: String,
        /// What it says.
        manager: String,
    },
    /// `spec.rollingUpdate` has the wrong shape.
    #[error("spec.rollingUpdate of {object} cannot be read")]
    RollingUpdate {
        /// Kind and name.
        object: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl ClusterSpec {
    /// Reads the cluster object and its instance groups, in any API version of kOps.
    pub fn from_json(cluster: &Value, groups: &[Value]) -> Result<Self, SpecError> {
        let name = object_name(cluster, "Cluster")?;
        let rolling_update = rolling_update(cluster, || format!("cluster {name:?}"))?;
        let groups = groups.iter().map(GroupSpec::from_json).collect::<Result<_, _>>()?;
        Ok(Self { name, rolling_update, groups })
    }
}

impl GroupSpec {
    /// Reads an `InstanceGroup` object.
    pub fn from_json(group: &Value) -> Result<Self, SpecError> {
        let name = object_name(group, "InstanceGroup")?;
        let text = |field: &str| group.pointer(field).and_then(Value::as_str).unwrap_or_default();
        let role = Role::parse(text("/spec/role"))
            .ok_or_else(|| SpecError::UnknownRole { group: name.clone(), role: text("/spec/role").to_owned() })?;
        let manager = match text("/spec/manager") {
            "" | "CloudGroup" => Manager::CloudGroup,
            "Karpenter" => Manager::Karpenter,
            other => return Err(SpecError::UnknownManager { group: name.clone(), manager: other.to_owned() }),
        };
        let min_size = group.pointer("/spec/minSize").and_then(Value::as_u64).and_then(|size| u32::try_from(size).ok()).unwrap_or(1);
        let rolling_update = rolling_update(group, || format!("instance group {name:?}"))?;
        Ok(Self { name, role, manager, min_size, rolling_update })
    }
}

fn object_name(object: &Value, kind: &'static str) -> Result<String, SpecError> {
    match object.pointer("/metadata/name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(SpecError::NoName { kind }),
    }
}

fn rolling_update(object: &Value, describe: impl FnOnce() -> String) -> Result<RollingUpdate, SpecError> {
    match object.pointer("/spec/rollingUpdate") {
        None | Some(Value::Null) => Ok(RollingUpdate::default()),
        Some(value) => RollingUpdate::deserialize(value).map_err(|source| SpecError::RollingUpdate { object: describe(), source }),
    }
}

/// Which groups to roll: by name, by role, or both (their intersection); empty lists select everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Selection {
    /// Names of instance groups.
    pub instance_groups: Vec<String>,
    /// Roles.
    pub roles: Vec<Role>,
}

/// A selection that names something that does not exist.
#[derive(Debug, thiserror::Error)]
pub enum SelectionError {
    /// No such instance group. The text is kOps' own.
    #[error("InstanceGroup {0:?} not found")]
    NotFound(String),
}

impl Selection {
    /// The names of the selected groups.
    pub fn resolve(&self, cluster: &ClusterSpec) -> Result<BTreeSet<String>, SelectionError> {
        if let Some(missing) = self.instance_groups.iter().find(|name| !cluster.groups.iter().any(|group| group.name == **name)) {
            return Err(SelectionError::NotFound(missing.clone()));
        }
        let by_name = |group: &GroupSpec| self.instance_groups.is_empty() || self.instance_groups.contains(&group.name);
        let by_role = |group: &GroupSpec| self.roles.is_empty() || self.roles.contains(&group.role);
        Ok(cluster.groups.iter().filter(|group| by_name(group) && by_role(group)).map(|group| group.name.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn roles_are_read_in_every_spelling_of_kops() {
        for (text, role) in [
            ("Master", Role::ControlPlane),
            ("masters", Role::ControlPlane),
            ("ControlPlane", Role::ControlPlane),
            ("control-plane", Role::ControlPlane),
            ("control-planes", Role::ControlPlane),
            ("APIServer", Role::ApiServer),
            ("apiservers", Role::ApiServer),
            ("Node", Role::Node),
            ("nodes", Role::Node),
            ("Bastion", Role::Bastion),
            ("BASTIONS", Role::Bastion),
        ] {
            assert_eq!(Role::parse(text), Some(role), "{text}");
        }
        assert_eq!(Role::parse("worker"), None);
        assert_eq!(Role::parse(""), None);
    }

    #[test]
    fn row_8_unknown_role_is_an_error_before_anything_is_touched() {
        let error = GroupSpec::from_json(&json!({"metadata": {"name": "node-1"}, "spec": {"role": "Unknown"}})).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"instance group "node-1" has the unknown role "Unknown"; use ControlPlane, APIServer, Node or Bastion"#
        );
    }

    #[test]
    fn reads_cluster_and_groups() {
        let cluster = json!({"metadata": {"name": "c.example.com"}, "spec": {"rollingUpdate": {"maxSurge": "10%"}}});
        let groups = [
            json!({"metadata": {"name": "cp"}, "spec": {"role": "Master"}}),
            json!({"metadata": {"name": "nodes"}, "spec": {"role": "Node", "manager": "Karpenter", "minSize": 0,
                "rollingUpdate": {"drainAndTerminate": false, "maxUnavailable": 2}}}),
        ];
        let spec = ClusterSpec::from_json(&cluster, &groups).unwrap();
        assert_eq!(spec.rolling_update.max_surge, Some(crate::IntOrString::Text("10%".to_owned())));
        assert_eq!((spec.groups[0].role, spec.groups[0].min_size), (Role::ControlPlane, 1));
        assert_eq!((spec.groups[1].manager, spec.groups[1].min_size), (Manager::Karpenter, 0));
        assert_eq!(spec.groups[1].rolling_update.drain_and_terminate, Some(false));

        let bad = json!({"metadata": {"name": "c"}, "spec": {"rollingUpdate": {"drainAndTerminate": "no"}}});
        assert!(matches!(ClusterSpec::from_json(&bad, &[]), Err(SpecError::RollingUpdate { .. })));
        assert!(matches!(ClusterSpec::from_json(&json!({}), &[]), Err(SpecError::NoName { kind: "Cluster" })));
    }

    #[test]
    fn names_and_roles_intersect() {
        let group = |name: &str, role: &str| json!({"metadata": {"name": name}, "spec": {"role": role}});
        let spec = ClusterSpec::from_json(
            &json!({"metadata": {"name": "c"}}),
            &[group("a", "Node"), group("b", "Node"), group("cp", "ControlPlane")],
        )
        .unwrap();
        let resolve = |names: &[&str], roles: &[Role]| {
            Selection { instance_groups: names.iter().map(|&name| name.to_owned()).collect(), roles: roles.to_vec() }
                .resolve(&spec)
                .map(|names| names.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(resolve(&[], &[]).unwrap(), ["a", "b", "cp"]);
        assert_eq!(resolve(&["a", "cp"], &[Role::Node]).unwrap(), ["a"]);
        assert_eq!(resolve(&[], &[Role::ControlPlane, Role::Bastion]).unwrap(), ["cp"]);
        assert_eq!(resolve(&["x"], &[]).unwrap_err().to_string(), r#"InstanceGroup "x" not found"#);
    }
}
