//! Where a cluster's API is and what vouches for it, as `kops export kubecfg` decides it
//! (kOps 1.36 `pkg/kubeconfig/create_kubecfg.go`, `upup/pkg/fi/cloudup/awsup/aws_cloud.go`).

use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};

/// The tag by which kOps tells a replaced network load balancer from its successor: the highest number is the latest.
pub const REVISION_TAG: &str = "kops.k8s.io/revision";
/// Where a network load balancer listens for client certificates when its port 443 has a certificate of its own.
const ADMIN_PORT: u16 = 8443;

/// What a cluster's manifest says about its API.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApiSpec {
    /// The cluster's name.
    pub cluster: String,
    /// `spec.api.publicName`; `spec.masterPublicName` in manifests of version `kops.k8s.io/v1alpha2`.
    pub public_name: Option<String>,
    /// `spec.api.loadBalancer`.
    pub load_balancer: Option<LoadBalancer>,
    /// Whether the API's name is in DNS, and may be the placeholder: not for `dns: None` nor for names by gossip.
    pub publishes_dns: bool,
}

/// A load balancer before the API.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadBalancer {
    /// Its class, as written. kOps fills in `Classic` only in the full specification.
    pub class: Option<String>,
    /// Whether it has a certificate of its own (`sslCertificate`), which is not by the cluster's CA.
    pub has_certificate: bool,
}

/// Which kind of load balancer to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancerKind {
    /// A classic Elastic Load Balancer.
    Classic,
    /// A network load balancer.
    Network,
}

/// A load balancer to look for in the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookUp {
    /// Its kind.
    pub kind: LoadBalancerKind,
    /// The value of its tag `Name`.
    pub name_tag: String,
}

/// A load balancer as the cloud has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLoadBalancer {
    /// Its DNS name.
    pub dns_name: String,
    /// The value of its tag `Name`.
    pub name_tag: String,
    /// The value of its tag [`REVISION_TAG`].
    pub revision: Option<String>,
}

/// How the API is to be reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessOptions {
    /// This address instead of what the manifest says.
    pub api_server: Option<String>,
    /// By the name that resolves inside of the cluster's network.
    pub internal: bool,
    /// With an administrator's certificate.
    pub admin: bool,
}

/// An API to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Its address, `https://...`.
    pub server: String,
    /// The name that its certificate must have.
    pub tls_server_name: String,
    /// Whether the cluster's CA vouches for it; otherwise those do that the system trusts.
    pub by_cluster_ca: bool,
}

/// A cluster's manifest that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cluster's manifest cannot be read: {reason}")]
pub struct ApiSpecError {
    /// What is wrong.
    pub reason: String,
}

#[derive(Deserialize)]
struct Manifest {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    master_public_name: Option<String>,
    api: Option<Api>,
    topology: Option<Topology>,
    networking: Option<Networking>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Api {
    public_name: Option<String>,
    load_balancer: Option<Balancer>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Balancer {
    class: Option<String>,
    ssl_certificate: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Topology {
    dns: Option<Dns>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Networking {
    topology: Option<Topology>,
}

/// `dns: {type: None}` in `kops.k8s.io/v1alpha2`, `dns: None` later.
#[derive(Deserialize)]
#[serde(untagged)]
enum Dns {
    Plain(String),
    Typed {
        #[serde(rename = "type", default)]
        kind: Option<String>,
    },
}

impl ApiSpec {
    /// Reads a cluster's manifest, such as the state store's `config`.
    pub fn parse(manifest: &str) -> Result<Self, ApiSpecError> {
        let Manifest { metadata: Metadata { name }, spec } =
            serde_saphyr::from_str(manifest).map_err(|error| ApiSpecError { reason: error.to_string() })?;
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let api = spec.api.unwrap_or_default();
        let topology = spec.topology.or(spec.networking.and_then(|networking| networking.topology)).unwrap_or_default();
        let dns = topology.dns.and_then(|dns| match dns {
            Dns::Plain(kind) => Some(kind),
            Dns::Typed { kind } => kind,
        });
        Ok(Self {
            public_name: given(api.public_name).or(given(spec.master_public_name)),
            load_balancer: api
                .load_balancer
                .map(|balancer| LoadBalancer { class: given(balancer.class), has_certificate: given(balancer.ssl_certificate).is_some() }),
            publishes_dns: !is_gossip(&name) && !dns.is_some_and(|kind| kind.eq_ignore_ascii_case("none")),
            cluster: name,
        })
    }

    /// The load balancer whose DNS name [`access`](Self::access) wants to know, if any. Without an explicit class kOps
    /// looks for none.
    pub fn look_up(&self, options: &AccessOptions) -> Option<LookUp> {
        let balancer = self.load_balancer.as_ref().filter(|balancer| !balancer.has_certificate || options.admin)?;
        if options.api_server.is_some() || options.internal {
            return None;
        }
        let kind = match balancer.class.as_deref() {
            Some("Classic") => LoadBalancerKind::Classic,
            Some("Network") => LoadBalancerKind::Network,
            _ => return None,
        };
        Some(LookUp { kind, name_tag: format!("api.{}", self.cluster) })
    }

    /// Where the API is. `load_balancer` is the DNS name of what [`look_up`](Self::look_up) asked for; without one the
    /// API's own name is taken, as kOps does after a warning.
    pub fn access(&self, options: &AccessOptions, load_balancer: Option<&str>) -> Access {
        let internal_name = format!("api.internal.{}", self.cluster);
        let balancer = self.load_balancer.as_ref();
        let is_network = balancer.is_some_and(|balancer| balancer.class.as_deref() == Some("Network"));
        let has_certificate = balancer.is_some_and(|balancer| balancer.has_certificate);
        let name = match &self.public_name {
            Some(name) => bracketed(name),
            None => format!("api.{}", self.cluster),
        };
        let balanced = load_balancer.filter(|_| balancer.is_some() && (!has_certificate || options.admin));
        let mut server = match (&options.api_server, options.internal, balanced) {
            (Some(server), _, _) => server.clone(),
            (None, true, _) => format!("https://{internal_name}"),
            (None, false, Some(balanced)) => format!("https://{}", bracketed(balanced)),
            (None, false, None) => format!("https://{name}"),
        };
        if options.admin && has_certificate && is_network {
            server = format!("{server}:{ADMIN_PORT}");
        }
        Access { server, tls_server_name: internal_name, by_cluster_ca: !has_certificate || is_network || options.internal }
    }
}

/// Of the load balancers that the cloud has, the DNS name of the one that is looked for; of network load balancers the
/// one of the highest revision. Several classic ones of one name are an error for kOps; here the first by name is taken.
pub fn pick_load_balancer<'a>(look_up: &LookUp, found: &'a [FoundLoadBalancer]) -> Option<&'a str> {
    let named = found.iter().filter(|balancer| balancer.name_tag == look_up.name_tag);
    let revised = named.filter_map(|balancer| match (look_up.kind, balancer.revision.as_deref()) {
        (LoadBalancerKind::Classic, _) | (LoadBalancerKind::Network, None | Some("")) => Some((0, balancer)),
        (LoadBalancerKind::Network, Some(revision)) => Some((revision.parse::<i64>().ok()?, balancer)),
    });
    let best = revised.min_by_key(|(revision, balancer)| (std::cmp::Reverse(*revision), &balancer.dns_name));
    best.map(|(_, balancer)| balancer.dns_name.as_str())
}

/// Whether a cluster of this name finds its API by gossip or not at all, and not by DNS.
fn is_gossip(cluster: &str) -> bool {
    cluster.trim_end_matches('.').ends_with(".k8s.local")
}

fn bracketed(host: &str) -> String {
    if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BALANCER: &str = "elbHostName";

    fn spec(cluster: &str, public_name: Option<&str>, load_balancer: Option<(&str, bool)>) -> ApiSpec {
        ApiSpec {
            cluster: cluster.to_owned(),
            public_name: public_name.map(str::to_owned),
            load_balancer: load_balancer.map(|(class, has_certificate)| LoadBalancer {
                class: Some(class.to_owned()).filter(|class| !class.is_empty()),
                has_certificate,
            }),
            publishes_dns: true,
        }
    }

    fn public() -> ApiSpec {
        spec("testcluster", Some("testcluster.test.com"), None)
    }

    fn admin() -> AccessOptions {
        AccessOptions { admin: true, ..AccessOptions::default() }
    }

    fn assert_access(spec: &ApiSpec, options: &AccessOptions, server: &str, by_cluster_ca: bool) {
        let tls_server_name = format!("api.internal.{}", spec.cluster);
        // Upstream's status always has a load balancer.
        assert_eq!(spec.access(options, Some(BALANCER)), Access { server: server.to_owned(), tls_server_name, by_cluster_ca });
    }

    #[test]
    fn row_68_public_name_without_load_balancer() {
        assert_access(&public(), &admin(), "https://testcluster.test.com", true);
    }

    #[test]
    fn row_69_network_load_balancer_with_certificate_for_an_administrator() {
        let spec = spec("testcluster", Some("testcluster.test.com"), Some(("Network", true)));
        assert_access(&spec, &admin(), "https://elbHostName:8443", true);
        assert_eq!(spec.look_up(&admin()), Some(LookUp { kind: LoadBalancerKind::Network, name_tag: "api.testcluster".to_owned() }));
    }

    #[test]
    fn row_70_classic_load_balancer_with_certificate_for_an_administrator() {
        for class in ["", "Classic"] {
            let spec = spec("testcluster", Some("testcluster.test.com"), Some((class, true)));
            assert_access(&spec, &admin(), "https://elbHostName", false);
        }
    }

    #[test]
    fn row_71_network_load_balancer_with_certificate_for_others() {
        let spec = spec("testcluster", Some("testcluster.test.com"), Some(("Network", true)));
        assert_access(&spec, &AccessOptions::default(), "https://testcluster.test.com", true);
        assert_eq!(spec.look_up(&AccessOptions::default()), None);
    }

    #[test]
    fn row_72_public_name_for_another_user() {
        // Kopsline's user is always its own; the address does not depend on it.
        assert_access(&public(), &AccessOptions::default(), "https://testcluster.test.com", true);
    }

    #[test]
    fn row_73_no_public_name() {
        assert_access(&spec("testcluster", None, None), &AccessOptions::default(), "https://api.testcluster", true);
    }

    #[test]
    fn row_74_gossip_behind_a_network_load_balancer() {
        let spec = spec("testgossipcluster.k8s.local", None, Some(("Network", false)));
        assert_access(&spec, &AccessOptions::default(), "https://elbHostName", true);
    }

    #[test]
    fn row_75_plugin_for_authentication() {
        // Where credentials come from does not change the address either.
        assert_access(&public(), &AccessOptions::default(), "https://testcluster.test.com", true);
    }

    #[test]
    fn row_76_internal_name() {
        for admin in [true, false] {
            let options = AccessOptions { internal: true, admin, api_server: None };
            assert_access(&public(), &options, "https://api.internal.testcluster", true);
            assert_eq!(spec("testcluster", None, Some(("Network", false))).look_up(&options), None);
        }
    }

    #[test]
    fn row_77_gossip_behind_a_network_load_balancer_with_certificate() {
        let spec = spec("testgossipcluster.k8s.local", None, Some(("Network", true)));
        assert_access(&spec, &admin(), "https://elbHostName:8443", true);
    }

    #[test]
    fn row_78_a_given_address_wins() {
        let api_server = Some("https://api.testcluster.example.com".to_owned());
        let options = AccessOptions { api_server, internal: true, admin: true };
        assert_access(&public(), &options, "https://api.testcluster.example.com", true);
    }

    #[test]
    fn without_the_load_balancer_the_name_is_taken() {
        let spec = spec("a.example.com", None, Some(("Network", false)));
        assert_eq!(spec.access(&admin(), None).server, "https://api.a.example.com");
    }

    #[test]
    fn addresses_of_version_6_are_bracketed() {
        assert_access(&spec("a.example.com", Some("2001:db8::1"), None), &admin(), "https://[2001:db8::1]", true);
    }

    #[test]
    fn the_latest_revision_is_picked() {
        let balancer = |dns_name: &str, name_tag: &str, revision: Option<&str>| FoundLoadBalancer {
            dns_name: dns_name.to_owned(),
            name_tag: name_tag.to_owned(),
            revision: revision.map(str::to_owned),
        };
        let found = [
            balancer("other", "api.other", Some("9")),
            balancer("first", "api.a", None),
            balancer("tenth", "api.a", Some("10")),
            balancer("ninth", "api.a", Some("9")),
            balancer("odd", "api.a", Some("x")),
        ];
        let look_up = |kind| LookUp { kind, name_tag: "api.a".to_owned() };
        assert_eq!(pick_load_balancer(&look_up(LoadBalancerKind::Network), &found), Some("tenth"));
        assert_eq!(pick_load_balancer(&look_up(LoadBalancerKind::Network), &found[..2]), Some("first"));
        assert_eq!(pick_load_balancer(&look_up(LoadBalancerKind::Network), &found[..1]), None);
        assert_eq!(pick_load_balancer(&look_up(LoadBalancerKind::Classic), &found[..2]), Some("first"));
    }

    #[test]
    fn manifests_of_both_versions_are_read() {
        let old = "metadata: {name: a.example.com}\nspec:\n  masterPublicName: api.a.example.com\n  api:\n    loadBalancer:\n      class: Network\n      type: Public\n      sslCertificate: arn:aws:acm:x\n  topology:\n    dns: {type: Public}\n";
        let new = "metadata: {name: a.example.com}\nspec:\n  api:\n    publicName: api.a.example.com\n    loadBalancer: {class: Network, sslCertificate: arn}\n  networking: {topology: {dns: Public}}\n";
        let expected = spec("a.example.com", Some("api.a.example.com"), Some(("Network", true)));
        assert_eq!(ApiSpec::parse(old).unwrap(), expected);
        assert_eq!(ApiSpec::parse(new).unwrap(), expected);
        for (manifest, publishes_dns) in [
            ("metadata: {name: a.example.com}", true),
            ("metadata: {name: a.k8s.local}\nspec: {api: {dns: {}}}", false),
            ("metadata: {name: a.example.com}\nspec: {topology: {dns: {type: None}}}", false),
            ("metadata: {name: a.example.com}\nspec: {networking: {topology: {dns: None}}}", false),
        ] {
            let spec = ApiSpec::parse(manifest).unwrap();
            assert_eq!((spec.publishes_dns, spec.load_balancer), (publishes_dns, None), "{manifest}");
        }
        assert!(ApiSpec::parse("spec: {}").is_err());
    }
}
