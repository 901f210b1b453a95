use serde_json::Value;

use crate::edit::{self, ReadError};
use crate::path::FieldPath;

/// Where a cluster keeps everything but its registry: keys, secrets and the files that its machines read. The registry
/// (`config`, `instancegroup/*`) is always at `<state store>/<cluster>` (kOps 1.36 pkg/client/simple/vfsclientset).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stores {
    /// `spec.configBase`; without it `<state store>/<cluster>`.
    pub config_base: Option<String>,
    /// `spec.keyStore`; without it `<config base>/pki`.
    pub key_store: Option<String>,
    /// `spec.secretStore`; without it `<config base>/secrets`.
    pub secret_store: Option<String>,
}

/// The fields, in the order of [`Stores`]' own.
type Fields = [&'static [&'static str]; 3];

const V1ALPHA2: Fields = [&["spec", "configBase"], &["spec", "keyStore"], &["spec", "secretStore"]];
const V1ALPHA3: Fields = [&["spec", "configStore", "base"], &["spec", "configStore", "keypairs"], &["spec", "configStore", "secrets"]];

fn fields(cluster: &Value) -> Fields {
    match cluster.get("apiVersion").and_then(Value::as_str) {
        Some(version) if version.ends_with("/v1alpha3") => V1ALPHA3,
        _ => V1ALPHA2,
    }
}

impl Stores {
    /// The stores that the text of a Cluster names.
    ///
    /// # Errors
    /// The text is no YAML document.
    pub fn of(cluster: &str) -> Result<Self, ReadError> {
        Ok(Self::in_document(&edit::read(cluster)?.value))
    }

    pub(crate) fn in_document(cluster: &Value) -> Self {
        let [config_base, key_store, secret_store] = fields(cluster).map(|keys| {
            let value = FieldPath::keys(keys).get(cluster)?.as_str()?;
            (!value.is_empty()).then(|| value.to_owned())
        });
        Self { config_base, key_store, secret_store }
    }

    /// The text of a Cluster with exactly these stores: what it names beyond them is removed. Nothing else changes.
    ///
    /// # Errors
    /// The text is no YAML document.
    pub fn write_into(&self, cluster: &str) -> Result<String, ReadError> {
        let document = edit::read(cluster)?.value;
        let stores = [&self.config_base, &self.key_store, &self.secret_store];
        let mut changes: Vec<(&[&str], Option<Value>)> =
            fields(&document).into_iter().zip(stores).map(|(keys, store)| (keys, store.clone().map(Value::from))).collect();
        let holder = document.pointer("/spec/configStore");
        if *self == Self::default() && holder.is_some() {
            changes = vec![(&["spec", "configStore"], None)];
        }
        edit::set_fields(cluster, &changes)
    }

    /// The stores in effect for a cluster in a state store, so that two of them can be compared.
    pub(crate) fn resolved(&self, state_store: &str, cluster: &str) -> [(&'static str, String); 3] {
        let trim = |path: &str| path.trim_end_matches('/').to_owned();
        let base = match &self.config_base {
            Some(base) => trim(base),
            None => format!("{}/{cluster}", trim(state_store)),
        };
        let or = |store: &Option<String>, default| match store {
            Some(store) => trim(store),
            None => format!("{base}/{default}"),
        };
        let (keys, secrets) = (or(&self.key_store, "pki"), or(&self.secret_store, "secrets"));
        [("configBase", base), ("keyStore", keys), ("secretStore", secrets)]
    }

    /// The field that names a store, in the version of the cluster's document.
    pub(crate) fn field(cluster: &Value, store: &str) -> FieldPath {
        let [base, keys, secrets] = fields(cluster);
        FieldPath::keys(match store {
            "keyStore" => keys,
            "secretStore" => secrets,
            _ => base,
        })
    }
}

/// The text of a Cluster that keeps its keys, secrets and files at `base`, whatever its registry's place: with the live
/// store as base, a dry run on a copy of the registry compares with the live cluster.
///
/// # Errors
/// The text is no YAML document.
pub fn with_config_base(cluster: &str, base: &str) -> Result<String, ReadError> {
    let stores = Stores { config_base: Some(base.into()), ..Stores::of(cluster)? };
    stores.write_into(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "apiVersion: kops.k8s.io/v1alpha2\nkind: Cluster # ours\nspec:\n  channel: stable\n  configBase: s3://b/c\n  keyStore: s3://k\n  zone: a\n";
    const V3: &str = "apiVersion: kops.k8s.io/v1alpha3\nkind: Cluster\nspec:\n  channel: stable\n  configStore:\n    base: s3://b/c\n    keypairs: s3://k\n  zone: a\n";

    #[test]
    fn isolation_and_back() {
        let stores = Stores { config_base: Some("s3://b/c".into()), key_store: Some("s3://k".into()), secret_store: None };
        let bare = V2.replace("  configBase: s3://b/c\n  keyStore: s3://k\n", "");
        assert_eq!(Stores::of(V2).unwrap(), stores);
        assert_eq!(Stores::default().write_into(V2).unwrap(), bare);
        assert_eq!(stores.write_into(&bare).unwrap(), V2);
        assert_eq!(stores.write_into(V2).unwrap(), V2);

        let bare = V3.replace("  configStore:\n    base: s3://b/c\n    keypairs: s3://k\n", "");
        assert_eq!(Stores::of(V3).unwrap(), stores);
        assert_eq!(Stores::default().write_into(V3).unwrap(), bare);
    }

    #[test]
    fn a_base_for_a_dry_run() {
        let bare = V2.replace("  configBase: s3://b/c\n", "");
        assert_eq!(with_config_base(&bare, "s3://b/c").unwrap(), V2);
        let other = with_config_base(V2, "file:///tmp/x").unwrap();
        assert_eq!(other, V2.replace("s3://b/c", "file:///tmp/x"));
    }
}
