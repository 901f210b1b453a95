//! Ways into the API: a certificate minted from the cluster's CA, made anew before it expires, or a kubeconfig.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::USER_AGENT;
use jiff::{SignedDuration, Timestamp};
use kopsline_state::{ObjectStore, StoreError};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;
use tracing::{debug, info};
use zeroize::Zeroizing;

use crate::error::innermost;
use crate::keyset::{Keyset, KeysetError};
use crate::mint::{MintError, USER, mint};
use crate::{Access, ClientCertificate};

/// A connection that is not there after this long will hardly come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the API may be silent in the midst of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Where kOps keeps the CA, below the key store; before kOps 1.22 it was called `ca`.
const KEYSETS: [&str; 2] = ["private/kubernetes-ca/keyset.yaml", "private/ca/keyset.yaml"];
/// The share of its lifetime after which a certificate is made anew.
const RENEWAL_SHARE: f64 = 0.5;

/// No way into the API.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The state store failed.
    #[error("the cluster's CA could not be read")]
    Store(#[from] StoreError),
    /// The state store has no CA of the cluster.
    #[error("the state store has no CA of the cluster: neither {} nor {}", .places.first().map_or("", String::as_str), .places.last().map_or("", String::as_str))]
    NoKeyset {
        /// Where it was looked for.
        places: Vec<String>,
    },
    /// The CA's keyset cannot be used.
    #[error("the cluster's CA in {place} cannot be used")]
    Keyset {
        /// Where it is.
        place: String,
        /// Why.
        #[source]
        source: KeysetError,
    },
    /// No certificate could be minted.
    #[error("no client certificate could be made")]
    Mint(#[from] MintError),
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig cannot be used: {reason}")]
    Kubeconfig {
        /// Why; it quotes no credentials.
        reason: String,
    },
    /// The address is none.
    #[error("{server:?} is no address of an API server")]
    Address {
        /// The address.
        server: String,
    },
    /// TLS cannot be set up.
    #[error("TLS to {server} cannot be set up: {reason}")]
    Tls {
        /// The API's address.
        server: String,
        /// Why.
        reason: String,
    },
}

impl ConnectError {
    /// Whether the same attempt may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

/// Where a cluster's CA comes from.
#[async_trait]
pub trait KeysetSource: Send + Sync {
    /// The CA as it is now: it may have been rotated since the last time.
    async fn keyset(&self) -> Result<Keyset, ConnectError>;
}

/// A cluster's CA in its key store, the store at `kopsline_state::Places::key_store`.
pub struct StoredKeyset {
    key_store: Arc<dyn ObjectStore>,
}

impl StoredKeyset {
    /// Reads nothing yet.
    pub fn new(key_store: Arc<dyn ObjectStore>) -> Self {
        Self { key_store }
    }
}

#[async_trait]
impl KeysetSource for StoredKeyset {
    async fn keyset(&self) -> Result<Keyset, ConnectError> {
        for key in KEYSETS {
            let Some(object) = self.key_store.get(key).await? else { continue };
            let bytes = Zeroizing::new(object.bytes);
            let place = || self.key_store.place(key);
            let text = std::str::from_utf8(&bytes).map_err(|_| KeysetError::Shape { line: 0, column: 0 });
            return text.and_then(Keyset::parse).map_err(|source| ConnectError::Keyset { place: place(), source });
        }
        Err(ConnectError::NoKeyset { places: KEYSETS.map(|key| self.key_store.place(key)).to_vec() })
    }
}

/// Certificates minted from a cluster's CA.
pub struct Minted {
    /// Where the API is.
    pub access: Access,
    /// The cluster's CA.
    pub keysets: Arc<dyn KeysetSource>,
    /// How long a certificate lives. At half of it another one is made.
    pub lifetime: SignedDuration,
}

/// How to get into an API.
pub enum Credentials {
    /// With certificates of our own making.
    Minted(Minted),
    /// With the current context of a kubeconfig, whose files and plugins must be there.
    Kubeconfig(SecretString),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minted(_) => "Minted",
            Self::Kubeconfig(_) => "Kubeconfig",
        })
    }
}

/// Clients for an API, made when they are needed and anew before they expire.
pub(crate) struct Connection {
    credentials: Credentials,
    now: fn() -> Timestamp,
    current: Mutex<Option<Current>>,
}

struct Current {
    client: Client,
    /// When to make another one.
    renewal: Option<Timestamp>,
}

impl Connection {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self::with_clock(credentials, Timestamp::now)
    }

    pub(crate) fn with_clock(credentials: Credentials, now: fn() -> Timestamp) -> Self {
        Self { credentials, now, current: Mutex::new(None) }
    }

    /// A client whose credentials are good for a while. Nothing is sent to the API yet.
    pub(crate) async fn client(&self) -> Result<Client, ConnectError> {
        let mut current = self.current.lock().await;
        let now = (self.now)();
        if let Some(kept) = current.as_ref().filter(|kept| kept.renewal.is_none_or(|renewal| now < renewal)) {
            return Ok(kept.client.clone());
        }
        let made = match &self.credentials {
            Credentials::Minted(minted) => minted.client(now).await?,
            Credentials::Kubeconfig(text) => Current { client: from_kubeconfig(text).await?, renewal: None },
        };
        Ok(current.insert(made).client.clone())
    }

    /// Makes the next [`client`](Self::client) a new one, because the API did not accept this one's credentials: the CA may
    /// have been rotated. `false` if that cannot help.
    pub(crate) async fn forget(&self) -> bool {
        let renewable = matches!(self.credentials, Credentials::Minted(_));
        if renewable {
            *self.current.lock().await = None;
        }
        renewable
    }
}

impl Minted {
    async fn client(&self, now: Timestamp) -> Result<Current, ConnectError> {
        let keyset = self.keysets.keyset().await?;
        let certificate = mint(&keyset, self.lifetime, now)?;
        info!(server = self.access.server, user = USER, not_after = %certificate.not_after, "made a client certificate");
        let share = self.lifetime.as_secs_f64() * RENEWAL_SHARE;
        let renewal = SignedDuration::try_from_secs_f64(share).ok().and_then(|share| now.checked_add(share).ok());
        let client = build(minted_config(&self.access, &keyset, &certificate)?)?;
        Ok(Current { client, renewal: Some(renewal.unwrap_or(now)) })
    }
}

fn minted_config(access: &Access, keyset: &Keyset, certificate: &ClientCertificate) -> Result<Config, ConnectError> {
    let address = access.server.parse().map_err(|_| ConnectError::Address { server: access.server.clone() })?;
    let mut config = Config::new(address);
    config.root_cert = access.by_cluster_ca.then(|| keyset.trusted().iter().map(|der| der.to_vec()).collect());
    config.tls_server_name = Some(access.tls_server_name.clone());
    config.auth_info.client_certificate_data = Some(STANDARD.encode(&certificate.certificate));
    config.auth_info.client_key_data = Some(STANDARD.encode(certificate.key.expose_secret()).into());
    Ok(config)
}

async fn from_kubeconfig(text: &SecretString) -> Result<Client, ConnectError> {
    // The reader's own messages may quote what it read.
    let parsed = Kubeconfig::from_yaml(text.expose_secret());
    let kubeconfig = parsed.map_err(|_| ConnectError::Kubeconfig { reason: "it is not YAML of a kubeconfig's shape".to_owned() })?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    build(config.map_err(|error| ConnectError::Kubeconfig { reason: innermost(&error) })?)
}

/// With this crate's timeouts, and without the client's own retries: they would take a budget's refusal for an outage and
/// repeat it fifteen times.
fn build(mut config: Config) -> Result<Client, ConnectError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    config.write_timeout = Some(WRITE_TIMEOUT);
    config.default_retry = false;
    config.headers.push((USER_AGENT, HeaderValue::from_static(concat!("kopsline/", env!("CARGO_PKG_VERSION")))));
    let server = config.cluster_url.to_string();
    debug!(server, "connecting");
    Client::try_from(config).map_err(|error| ConnectError::Tls { server, reason: innermost(&error) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use kopsline_core::StateStoreUri;
    use kopsline_state::Stores as _;
    use kopsline_state::testing::{Fault, Faults, FaultyStores, MemoryStores};

    use super::*;
    use crate::testing::{Authority, Form, Keys, keyset};

    fn key_store() -> StateStoreUri {
        StateStoreUri::new("s3://state/a.example.com/pki").unwrap()
    }

    fn stored(keys: &[&str]) -> (String, MemoryStores) {
        let text = keyset(None, &[("1", false, &Authority::new(Keys::P256, "a"))], Form::Own);
        let stores = MemoryStores::default();
        for key in keys {
            stores.bucket("state").set(&format!("a.example.com/pki/{key}"), text.as_str());
        }
        (text, stores)
    }

    fn access() -> Access {
        Access { server: "https://127.0.0.1:1".to_owned(), tls_server_name: "api.internal.a.example.com".to_owned(), by_cluster_ca: true }
    }

    #[tokio::test]
    async fn the_ca_is_found_under_both_of_its_names() {
        for keys in [
            &["private/kubernetes-ca/keyset.yaml"][..],
            &["private/ca/keyset.yaml"],
            &["private/kubernetes-ca/keyset.yaml", "private/ca/keyset.yaml"],
        ] {
            let (_, stores) = stored(keys);
            let read = StoredKeyset::new(stores.store(&key_store())).keyset().await.unwrap();
            assert_eq!(read.trusted().len(), 1);
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_ca_is_said_and_where() {
        let (text, stores) = stored(&[]);
        let missing = StoredKeyset::new(stores.store(&key_store())).keyset().await.unwrap_err();
        assert_eq!(
            missing.to_string(),
            "the state store has no CA of the cluster: neither s3://state/a.example.com/pki/private/kubernetes-ca/keyset.yaml \
             nor s3://state/a.example.com/pki/private/ca/keyset.yaml"
        );
        stores.bucket("state").set("a.example.com/pki/private/ca/keyset.yaml", text.replace("- id: \"1\"", "- id: \"x\""));
        let unusable = StoredKeyset::new(stores.store(&key_store())).keyset().await.unwrap_err();
        assert_eq!(unusable.to_string(), "the cluster's CA in s3://state/a.example.com/pki/private/ca/keyset.yaml cannot be used");
        assert!(!unusable.is_transient());
        let faulty = FaultyStores::new(MemoryStores::default(), Faults::killing(0, Fault::NotApplied));
        assert!(StoredKeyset::new(faulty.store(&key_store())).keyset().await.unwrap_err().is_transient());
    }

    /// Counts how often a certificate is made.
    struct Counted {
        text: String,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl KeysetSource for Counted {
        async fn keyset(&self) -> Result<Keyset, ConnectError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Ok(Keyset::parse(&self.text).unwrap())
        }
    }

    static SECONDS: AtomicI64 = AtomicI64::new(1_795_000_000);

    #[tokio::test]
    async fn a_certificate_is_made_anew_at_half_of_its_life_and_when_it_is_refused() {
        let keysets = Arc::new(Counted { text: stored(&[]).0, asked: AtomicUsize::new(0) });
        let minted = Minted { access: access(), keysets: keysets.clone(), lifetime: SignedDuration::from_mins(60) };
        let connection =
            Connection::with_clock(Credentials::Minted(minted), || Timestamp::from_second(SECONDS.load(Ordering::Relaxed)).unwrap());
        let mut counts = Vec::new();
        for (minutes, refused) in [(0, false), (29, false), (1, false), (0, false), (0, true)] {
            SECONDS.fetch_add(60 * minutes, Ordering::Relaxed);
            if refused {
                assert!(connection.forget().await);
            }
            connection.client().await.unwrap();
            counts.push(keysets.asked.load(Ordering::Relaxed));
        }
        assert_eq!(counts, [1, 1, 2, 2, 3]);
    }

    #[tokio::test]
    async fn the_systems_authorities_are_asked_where_the_clusters_is_not() {
        let keyset = Keyset::parse(&stored(&[]).0).unwrap();
        let certificate = mint(&keyset, SignedDuration::from_mins(60), Timestamp::now()).unwrap();
        for by_cluster_ca in [true, false] {
            let config = minted_config(&Access { by_cluster_ca, ..access() }, &keyset, &certificate).unwrap();
            assert_eq!(config.root_cert.is_some(), by_cluster_ca);
            assert_eq!(config.tls_server_name.as_deref(), Some("api.internal.a.example.com"));
            assert!(build(config).is_ok());
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_is_taken_and_never_quoted() {
        let kubeconfig = |token: &str| {
            format!(
                "{{current-context: x, contexts: [{{name: x, context: {{cluster: c, user: u}}}}], \
                 clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:1'}}}}], users: [{{name: u, user: {{token: {token}}}}}]}}"
            )
        };
        let connection = |text: String| Connection::new(Credentials::Kubeconfig(text.into()));
        let good = connection(kubeconfig("verysecret"));
        assert!(good.client().await.is_ok());
        assert!(!good.forget().await, "there is nothing newer");
        for text in [kubeconfig("[verysecret]"), kubeconfig("verysecret").replace("cluster: c", "cluster: other"), "verysecret".to_owned()]
        {
            let error = connection(text).client().await.err().unwrap();
            let shown = format!("{error} {error:?}");
            assert!(shown.starts_with("the kubeconfig cannot be used: ") && !shown.contains("verysecret"), "{shown}");
        }
        assert!(!format!("{:?}", Credentials::Kubeconfig("verysecret".to_owned().into())).contains("verysecret"));
    }

    #[tokio::test]
    async fn an_address_must_be_one() {
        let keyset = Keyset::parse(&stored(&[]).0).unwrap();
        let certificate = mint(&keyset, SignedDuration::from_mins(60), Timestamp::now()).unwrap();
        let error = minted_config(&Access { server: "https://a b".to_owned(), ..access() }, &keyset, &certificate).unwrap_err();
        assert_eq!(error.to_string(), "\"https://a b\" is no address of an API server");
    }
}
