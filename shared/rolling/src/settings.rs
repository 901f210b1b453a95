//! `rollingUpdate`: how kOps resolves and validates it.

use serde::{Deserialize, Serialize};

use crate::spec::{Manager, Role};

/// A number, or a percentage such as `10%` (Kubernetes' `IntOrString`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// An absolute number.
    Int(i32),
    /// A percentage; any other text is invalid.
    Text(String),
}

/// The text of an [`IntOrString`] is no percentage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a number nor a percentage")]
pub struct NotAPercentage(pub String);

#[derive(Clone, Copy, PartialEq)]
enum Rounding {
    Up,
    Down,
}

impl IntOrString {
    /// The number itself, or the percentage of `total` (Kubernetes' `GetScaledValueFromIntOrPercent`).
    fn scaled(&self, total: usize, rounding: Rounding) -> Result<i64, NotAPercentage> {
        match self {
            Self::Int(number) => Ok(i64::from(*number)),
            Self::Text(text) => {
                let percent =
                    text.strip_suffix('%').and_then(|number| number.parse::<i32>().ok()).ok_or_else(|| NotAPercentage(text.clone()))?;
                let product = i64::from(percent).saturating_mul(i64::try_from(total).unwrap_or(i64::MAX));
                Ok(match rounding {
                    Rounding::Down => product.div_euclid(100),
                    Rounding::Up => product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0),
                })
            }
        }
    }
}

/// `spec.rollingUpdate` of a cluster or an instance group, as written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    /// Whether instances may be terminated at all; unset means true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_and_terminate: Option<bool>,
    /// How many instances may be out of service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
    /// How many instances may be added before others are removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_surge: Option<IntOrString>,
}

/// The settings in force for one group of a known size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whether instances may be terminated at all.
    pub drain_and_terminate: bool,
    /// How many instances may be out of service.
    pub max_unavailable: usize,
    /// How many instances may be added before others are removed.
    pub max_surge: usize,
}

impl Settings {
    /// Group, else cluster, else default (kOps 1.36 `pkg/instancegroups/settings.go`, on AWS). `instances` is the number of
    /// instances that percentages refer to. Surge defaults to 1, or to 0 under Karpenter; its percentages round up.
    /// Unavailability defaults to 1 where there is no surge; its percentages round down, but not below 1. Text that is no
    /// percentage counts as 0, as in kOps, which refuses to store it in the first place.
    pub fn resolve(cluster: &RollingUpdate, group: &RollingUpdate, manager: Manager, instances: usize) -> Self {
        let drain_and_terminate = group.drain_and_terminate.or(cluster.drain_and_terminate).unwrap_or(true);
        let max_surge = match group.max_surge.as_ref().or(cluster.max_surge.as_ref()) {
            Some(value) => count(value.scaled(instances, Rounding::Up)),
            None => usize::from(manager != Manager::Karpenter),
        };
        let max_unavailable = match group.max_unavailable.as_ref().or(cluster.max_unavailable.as_ref()) {
            Some(value @ IntOrString::Int(_)) => count(value.scaled(instances, Rounding::Down)),
            Some(value @ IntOrString::Text(_)) => count(value.scaled(instances, Rounding::Down)).max(1),
            None => usize::from(max_surge == 0),
        };
        Self { drain_and_terminate, max_unavailable, max_surge }
    }

    /// How many instances of a group may be down at once without the Kubernetes API, where `instances` are to be replaced.
    ///
    /// kOps does not detach under `--cloudonly`, yet keeps the surge in the concurrency, and treats 0 as 1
    /// (kOps 1.36 `pkg/instancegroups/instancegroups.go`). Deliberately stricter than kOps: the control plane is always
    /// replaced one by one, whatever `maxUnavailable` says, since two lost members of three are a lost etcd quorum.
    pub fn concurrency(self, role: Role, instances: usize) -> usize {
        match role {
            Role::ControlPlane => 1,
            Role::Bastion | Role::ApiServer | Role::Node => self.max_surge.min(instances).saturating_add(self.max_unavailable).max(1),
        }
    }
}

fn count(value: Result<i64, NotAPercentage>) -> usize {
    value.ok().and_then(|value| usize::try_from(value).ok()).unwrap_or(0)
}

/// The kind of a [`FieldError`], as in Kubernetes' field errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum FieldErrorKind {
    /// The value makes no sense.
    Invalid,
    /// The value is not allowed here.
    Forbidden,
}

/// A field of `rollingUpdate` that kOps refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("rollingUpdate.{field}: {message}")]
pub struct FieldError {
    /// What is wrong with the field.
    pub kind: FieldErrorKind,
    /// `maxUnavailable` or `maxSurge`.
    pub field: &'static str,
    /// Why, and what to do.
    pub message: String,
}

impl RollingUpdate {
    /// What kOps refuses when it stores the object (kOps 1.36 `pkg/apis/kops/validation/validation.go`,
    /// `validateRollingUpdate`). `role` is that of the group, `None` for the settings of the cluster.
    pub fn validate(&self, role: Option<Role>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut refuse = |kind, field, message: String| errors.push(FieldError { kind, field, message });
        let mut unavailable = 1;
        if let Some(value) = &self.max_unavailable {
            let scaled = value.scaled(1, Rounding::Down);
            unavailable = scaled.as_ref().copied().unwrap_or(0);
            match scaled {
                Err(error) => refuse(FieldErrorKind::Invalid, "maxUnavailable", error.to_string()),
                Ok(value) if value < 0 => refuse(FieldErrorKind::Invalid, "maxUnavailable", "cannot be negative".to_owned()),
                Ok(_) => {}
            }
        }
        if let Some(value) = &self.max_surge {
            let scaled = value.scaled(1000, Rounding::Up);
            let surge = scaled.as_ref().copied().unwrap_or(0);
            if let Err(error) = scaled {
                refuse(FieldErrorKind::Invalid, "maxSurge", error.to_string());
            }
            if role == Some(Role::ControlPlane) && surge != 0 {
                refuse(FieldErrorKind::Forbidden, "maxSurge", "the control plane cannot surge; remove the field".to_owned());
            } else if surge < 0 {
                refuse(FieldErrorKind::Invalid, "maxSurge", "cannot be negative".to_owned());
            }
            if unavailable == 0 && surge == 0 {
                refuse(FieldErrorKind::Forbidden, "maxSurge", "cannot be zero if maxUnavailable is zero".to_owned());
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> RollingUpdate {
        serde_json::from_value(value).unwrap()
    }

    fn resolve(cluster: Value, group: Value, instances: usize) -> Settings {
        Settings::resolve(&read(cluster), &read(group), Manager::CloudGroup, instances)
    }

    type Getter = fn(&Settings) -> Value;

    /// Karpenter's defaults (surge 0, unavailable 1) are those of kOps' test harness, which names no provider.
    #[test]
    fn row_44_settings_group_wins_over_cluster_over_default() {
        let fields: [(&str, Value, Value, Getter); 3] = [
            ("drainAndTerminate", json!(true), json!(false), |settings| json!(settings.drain_and_terminate)),
            ("maxUnavailable", json!(1), json!(2), |settings| json!(settings.max_unavailable)),
            ("maxSurge", json!(0), json!(2), |settings| json!(settings.max_surge)),
        ];
        for (field, default, other, get) in fields {
            let inputs = [None, Some(None), Some(Some(default.clone())), Some(Some(other.clone()))];
            for cluster in &inputs {
                for group in &inputs {
                    let object = |input: &Option<Option<Value>>| match input {
                        Some(Some(value)) => json!({ field: value }),
                        Some(None) | None => json!({}),
                    };
                    let expected = group.clone().flatten().or(cluster.clone().flatten()).unwrap_or(default.clone());
                    let settings = Settings::resolve(&read(object(cluster)), &read(object(group)), Manager::Karpenter, 1);
                    assert_eq!(get(&settings), expected, "{field}: cluster {cluster:?}, group {group:?}");
                }
            }
        }
    }

    #[test]
    fn row_45_max_unavailable() {
        for (instances, value, expected) in [(1, json!(0), 0), (1, json!("0%"), 1), (10, json!("39%"), 3), (10, json!("100%"), 10)] {
            assert_eq!(resolve(json!({}), json!({"maxUnavailable": value}), instances).max_unavailable, expected, "{instances} {value}");
        }
    }

    #[test]
    fn row_46_max_surge() {
        for (instances, value, expected) in [(1, json!(0), 0), (1, json!("0%"), 0), (10, json!("31%"), 4), (10, json!("100%"), 10)] {
            let settings = resolve(json!({}), json!({"maxSurge": value}), instances);
            assert_eq!(settings.max_surge, expected, "{instances} {value}");
            assert_eq!(settings.max_unavailable, usize::from(expected == 0), "{instances} {value}");
        }
    }

    #[test]
    fn row_47_default_on_aws() {
        assert_eq!(resolve(json!({}), json!({}), 1000), Settings { drain_and_terminate: true, max_unavailable: 0, max_surge: 1 });
    }

    #[test]
    fn concurrency_keeps_the_surge_and_never_doubles_the_control_plane() {
        let settings = |max_surge, max_unavailable| Settings { drain_and_terminate: true, max_surge, max_unavailable };
        assert_eq!(settings(2, 1).concurrency(Role::Node, 10), 3);
        assert_eq!(settings(10, 0).concurrency(Role::Node, 4), 4, "the surge is at most what is to be replaced");
        assert_eq!(settings(0, 0).concurrency(Role::Node, 4), 1);
        for (max_surge, max_unavailable) in [(0, 1), (2, 0), (1, 3), (0, 5)] {
            assert_eq!(settings(max_surge, max_unavailable).concurrency(Role::ControlPlane, 5), 1);
        }
    }

    /// `maxUnavailable`, `maxSurge`, whether on the control plane, expected errors.
    type Row = (Value, Value, bool, Vec<(FieldErrorKind, &'static str)>);

    #[test]
    fn section_2_7_field_validation() {
        let invalid = |field| (FieldErrorKind::Invalid, field);
        let forbidden = |field| (FieldErrorKind::Forbidden, field);
        let unset = Value::Null;
        let rows: Vec<Row> = vec![
            (unset.clone(), unset.clone(), false, vec![]),
            (json!(0), unset.clone(), false, vec![]),
            (json!("0%"), unset.clone(), false, vec![]),
            (json!("nope"), unset.clone(), false, vec![invalid("maxUnavailable")]),
            (json!(-1), unset.clone(), false, vec![invalid("maxUnavailable")]),
            (json!("-1%"), unset.clone(), false, vec![invalid("maxUnavailable")]),
            (unset.clone(), json!(0), false, vec![]),
            (unset.clone(), json!("0%"), false, vec![]),
            (unset.clone(), json!(1), false, vec![]),
            (unset.clone(), json!("1%"), false, vec![]),
            (unset.clone(), json!("nope"), false, vec![invalid("maxSurge")]),
            (unset.clone(), json!(-1), false, vec![invalid("maxSurge")]),
            (unset.clone(), json!("-1%"), false, vec![invalid("maxSurge")]),
            (unset.clone(), json!(0), true, vec![]),
            (unset.clone(), json!("0%"), true, vec![]),
            (unset.clone(), json!(1), true, vec![forbidden("maxSurge")]),
            (unset.clone(), json!("1%"), true, vec![forbidden("maxSurge")]),
            (unset.clone(), json!(-1), true, vec![forbidden("maxSurge")]),
            (unset.clone(), json!("-1%"), true, vec![forbidden("maxSurge")]),
            (unset, json!("nope"), true, vec![invalid("maxSurge")]),
            (json!(0), json!(0), false, vec![forbidden("maxSurge")]),
        ];
        for (unavailable, surge, control_plane, expected) in rows {
            let settings = read(json!({"maxUnavailable": unavailable, "maxSurge": surge}));
            let role = if control_plane { Role::ControlPlane } else { Role::Node };
            let found: Vec<_> = settings.validate(Some(role)).into_iter().map(|error| (error.kind, error.field)).collect();
            assert_eq!(found, expected, "maxUnavailable {unavailable}, maxSurge {surge}, control plane {control_plane}");
        }
    }
}
