//! The kops binary of a version: fetched, verified, cached.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kopsline_core::{Classify, Failure, FailureKind};
use kopsline_state::{ObjectStore, Reader, StoreError, backoff};
use semver::Version;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

/// Where kOps publishes its releases.
pub const RELEASES: &str = "https://artifacts.k8s.io/binaries/kops";

/// How often a source is tried.
const ATTEMPTS: u32 = 3;

/// The longest wait for a connection, and for the next piece of a download.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest time for one download. kops has about 200 MB.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_mins(5);

/// More than this is no kops.
const MAX_SIZE: u64 = 1024 * 1024 * 1024;

/// The space to make for a download whose size is not told.
const USUAL_SIZE: u64 = 256 * 1024 * 1024;

/// A download that is older than this was left by a process that died.
const ABANDONED: Duration = Duration::from_hours(1);

const PARTIAL: &str = ".download-";

/// The processor that a binary is for, in kOps' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// 64-bit Arm.
    Arm64,
}

impl Arch {
    /// This process's own.
    pub fn current() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 }
    }

    /// The name in a release's paths.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// A kops binary that was verified in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kops {
    /// The file.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
}

/// A place to get kops from. All have a release's layout: `<version>/linux/<arch>/kops` and `kops.sha256` beside it.
#[derive(Clone)]
pub struct Source(Kind);

#[derive(Clone)]
enum Kind {
    Store(Arc<dyn ObjectStore>),
    Release { base: String, http: reqwest::Client },
}

/// A source that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Its address is not fit for programs that will be run.
    #[error("{base} cannot be a source of kops: use an https:// address, such as {RELEASES}")]
    Insecure {
        /// The address.
        base: String,
    },
    /// The HTTP client could not be made.
    #[error("no HTTP client for {base}")]
    Client {
        /// The address.
        base: String,
        /// Why.
        source: reqwest::Error,
    },
}

impl Classify for SourceError {
    fn kind(&self) -> FailureKind {
        FailureKind::Failed
    }
}

impl Source {
    /// A bucket, or a prefix of one.
    pub fn store(store: Arc<dyn ObjectStore>) -> Self {
        Self(Kind::Store(store))
    }

    /// kOps' own releases.
    pub fn official() -> Result<Self, SourceError> {
        Self::release(RELEASES)
    }

    /// A mirror of kOps' releases. It must be HTTPS, or on this machine: where no checksum is pinned, whoever answers here
    /// says which program runs.
    pub fn release(base: &str) -> Result<Self, SourceError> {
        let base = base.trim_end_matches('/').to_owned();
        let local = reqwest::Url::parse(&base).is_ok_and(|url| {
            url.scheme() == "http" && url.host_str().is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]"))
        });
        if !local && !base.starts_with("https://") {
            return Err(SourceError::Insecure { base });
        }
        let client = reqwest::Client::builder()
            .user_agent(concat!("kopsline/", env!("CARGO_PKG_VERSION")))
            .https_only(!local)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(STALL_TIMEOUT);
        match client.build() {
            Ok(http) => Ok(Self(Kind::Release { base, http })),
            Err(source) => Err(SourceError::Client { base, source }),
        }
    }

    fn place(&self, key: &str) -> String {
        match &self.0 {
            Kind::Store(store) => store.place(key),
            Kind::Release { base, .. } => format!("{base}/{key}"),
        }
    }

    async fn open(&self, key: &str) -> Result<Body, Miss> {
        match &self.0 {
            Kind::Store(store) => match store.open(key).await {
                Ok(Some(reader)) => Ok(Body::Store(reader)),
                Ok(None) => Err(Miss::final_("there is no such object")),
                Err(error) => Err(error.into()),
            },
            Kind::Release { base, http } => {
                let response = http.get(format!("{base}/{key}")).send().await?;
                let status = response.status();
                if status.is_success() {
                    return Ok(Body::Http(response));
                }
                let transient = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
                Err(Miss { reason: format!("HTTP {status}"), transient })
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.place("")).finish()
    }
}

/// A download under way.
enum Body {
    Store(Reader),
    Http(reqwest::Response),
}

impl Body {
    fn size(&self) -> Option<u64> {
        match self {
            Self::Store(reader) => reader.size,
            Self::Http(response) => response.content_length(),
        }
    }

    /// Appends the next piece; `false` at the end.
    async fn next(&mut self, into: &mut Vec<u8>) -> Result<bool, Miss> {
        let piece = async {
            match self {
                Self::Store(reader) => Ok(reader.body.read_buf(into).await? > 0),
                Self::Http(response) => match response.chunk().await? {
                    Some(chunk) => {
                        into.extend_from_slice(&chunk);
                        Ok(true)
                    }
                    None => Ok(false),
                },
            }
        };
        let stalled = |_| Miss::transient(format!("nothing came for {} s", STALL_TIMEOUT.as_secs()));
        tokio::time::timeout(STALL_TIMEOUT, piece).await.map_err(stalled)?
    }
}

/// Why one attempt at a source gave nothing.
#[derive(Debug)]
struct Miss {
    reason: String,
    transient: bool,
}

impl Miss {
    fn transient(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), transient: true }
    }

    fn final_(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), transient: false }
    }
}

impl From<StoreError> for Miss {
    fn from(error: StoreError) -> Self {
        Self { transient: error.is_transient(), reason: error.to_string() }
    }
}

impl From<reqwest::Error> for Miss {
    fn from(error: reqwest::Error) -> Self {
        // A refused redirect or a malformed address will not get better.
        let transient = !(error.is_builder() || error.is_redirect());
        // The address is told once, by whoever reports this.
        let error = error.without_url();
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            reason = format!("{reason}: {inner}");
            cause = inner.source();
        }
        Self { reason, transient }
    }
}

impl From<io::Error> for Miss {
    fn from(error: io::Error) -> Self {
        Self::transient(error.to_string())
    }
}

/// A kops that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// A download is not what its checksum says. It was deleted.
    #[error(
        "{place} has the SHA-256 {found}, but {expected} was expected ({by}); it was deleted and will not run. If the \
         expectation is wrong, correct it; else somebody changed the file"
    )]
    WrongChecksum {
        /// What was downloaded.
        place: String,
        /// The checksum that counts.
        expected: String,
        /// Its checksum.
        found: String,
        /// Who expects it.
        by: &'static str,
    },
    /// The pinned checksum is none.
    #[error("{0:?} is no SHA-256: use 64 hexadecimal digits")]
    NotAChecksum(String),
    /// No source has it.
    #[error("kops {version} for {arch} cannot be had:{}", listed(tried))]
    Unavailable {
        /// The version.
        version: Version,
        /// The processor.
        arch: &'static str,
        /// Every source and why it gave nothing.
        tried: Vec<String>,
        /// Whether trying again later may help.
        transient: bool,
    },
    /// The cache cannot be used.
    #[error("the cache of kops binaries at {} cannot be used; it needs about 300 MB of free space", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn listed(tried: &[String]) -> String {
    if tried.is_empty() {
        " no source is configured".to_owned()
    } else {
        tried.iter().map(|line| format!("\n- {line}")).collect::<Vec<_>>().concat()
    }
}

impl BinaryError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { transient: true, .. })
    }
}

impl Classify for BinaryError {
    fn kind(&self) -> FailureKind {
        let otherwise = if matches!(self, Self::NotAChecksum(_)) { FailureKind::BadInput } else { FailureKind::Failed };
        Failure::transient_or(self.is_transient(), otherwise)
    }
}

/// What is known of a file that was verified in this process: as long as this holds, its content is the verified one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: Option<SystemTime>,
    sha256: String,
}

/// Brings kops binaries, by version.
#[derive(Debug)]
pub struct KopsBinaries {
    cache: PathBuf,
    limit: u64,
    sources: Vec<Source>,
    verified: Mutex<BTreeMap<PathBuf, Stamp>>,
}

impl KopsBinaries {
    /// The cache on Lambda, whose only writable folder is `/tmp`.
    pub const LAMBDA_CACHE: &'static str = "/tmp/kopsline/kops";

    /// Binaries from these sources, tried in order, kept in the folder `cache` as long as they are within `limit` bytes
    /// together. One that is in use is kept whatever its size.
    pub fn new(cache: impl Into<PathBuf>, limit: u64, sources: Vec<Source>) -> Self {
        Self { cache: cache.into(), limit, sources, verified: Mutex::default() }
    }

    /// The binary of a version, from the cache or a source; in either case its content was verified in this process.
    ///
    /// With `pinned`, that SHA-256 counts and no other; without it, the one published beside the binary. Several processes
    /// may do this at once: each downloads to a file of its own and puts it in place in one step.
    pub async fn ensure(&self, version: &Version, arch: Arch, pinned: Option<&str>) -> Result<Kops, BinaryError> {
        let pinned = pinned.map(|text| checksum(text).ok_or_else(|| BinaryError::NotAChecksum(text.to_owned()))).transpose()?;
        // A semantic version has no `/` and no `..`, so this stays below the cache and the sources.
        let key = format!("{version}/linux/{}/kops", arch.as_str());
        let path = self.cache.join(&key);
        let found = |sha256| Kops { path: path.clone(), version: version.clone(), sha256 };

        // Held to the end: two callers in one process need one download.
        let mut verified = self.verified.lock().await;
        if let Some(sha256) = cached(&path, pinned.as_deref(), verified.get(&path)).await? {
            touch(&path);
            verified.insert(path.clone(), stamp(&path, &sha256).map_err(|source| cache_error(&path, source))?);
            return Ok(found(sha256));
        }
        let (mut tried, mut transient) = (Vec::new(), false);
        for source in &self.sources {
            match self.download(source, &key, &path, pinned.as_deref()).await? {
                Ok(sha256) => {
                    verified.insert(path.clone(), stamp(&path, &sha256).map_err(|source| cache_error(&path, source))?);
                    return Ok(found(sha256));
                }
                Err(miss) => {
                    tracing::warn!(source = source.place(&key), reason = miss.reason, "this source gave no kops");
                    transient |= miss.transient;
                    tried.push(format!("{}: {}", source.place(&key), miss.reason));
                }
            }
        }
        Err(BinaryError::Unavailable { version: version.clone(), arch: arch.as_str(), tried, transient })
    }

    async fn download(&self, source: &Source, key: &str, path: &Path, pinned: Option<&str>) -> Result<Result<String, Miss>, BinaryError> {
        let mut attempt = 0;
        loop {
            let one = self.download_once(source, key, path, pinned);
            let miss = match tokio::time::timeout(DOWNLOAD_TIMEOUT, one).await {
                Ok(Ok(Ok(sha256))) => return Ok(Ok(sha256)),
                Ok(Ok(Err(miss))) => miss,
                Ok(Err(error)) => return Err(error),
                Err(_) => Miss::transient(format!("the download took longer than {} s", DOWNLOAD_TIMEOUT.as_secs())),
            };
            attempt += 1;
            if !miss.transient {
                return Ok(Err(miss));
            }
            if attempt >= ATTEMPTS {
                return Ok(Err(Miss::transient(format!("{} (after {attempt} attempts)", miss.reason))));
            }
            tokio::time::sleep(backoff::delay(attempt, Duration::from_millis(250), Duration::from_secs(5))).await;
        }
    }

    /// One attempt: the outer error ends everything, the inner one this attempt.
    async fn download_once(
        &self,
        source: &Source,
        key: &str,
        path: &Path,
        pinned: Option<&str>,
    ) -> Result<Result<String, Miss>, BinaryError> {
        let (expected, by) = match pinned {
            Some(pinned) => (pinned.to_owned(), "pinned in the configuration"),
            None => match published(source, key).await {
                Ok(published) => (published, "published beside it"),
                Err(miss) => return Ok(Err(miss)),
            },
        };
        let mut body = match source.open(key).await {
            Ok(body) => body,
            Err(miss) => return Ok(Err(miss)),
        };
        let size = body.size();
        if size.is_some_and(|size| size > MAX_SIZE) {
            return Ok(Err(Miss::final_(format!("its {} bytes are too many for a kops", size.unwrap_or(0)))));
        }
        let failed = |source| cache_error(path, source);
        let folder = path.parent().unwrap_or(&self.cache);
        fs::create_dir_all(folder).map_err(failed)?;
        self.make_room(size.unwrap_or(USUAL_SIZE), path).map_err(failed)?;

        let partial = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(folder).map_err(failed)?;
        let mut file = tokio::fs::File::from_std(partial.reopen().map_err(failed)?);
        let (mut digest, mut written, mut piece) = (Sha256::new(), 0_u64, Vec::with_capacity(64 * 1024));
        loop {
            piece.clear();
            match body.next(&mut piece).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(miss) => return Ok(Err(miss)),
            }
            digest.update(&piece);
            written += u64::try_from(piece.len()).unwrap_or(u64::MAX);
            if written > MAX_SIZE {
                return Ok(Err(Miss::final_(format!("more than {MAX_SIZE} bytes are too many for a kops"))));
            }
            file.write_all(&piece).await.map_err(failed)?;
        }
        if size.is_some_and(|size| size != written) {
            return Ok(Err(Miss::transient(format!("it broke off after {written} of {} bytes", size.unwrap_or(0)))));
        }
        let found = hex::encode(digest.finalize());
        if found != expected {
            return Err(BinaryError::WrongChecksum { place: source.place(key), expected, found, by });
        }
        file.flush().await.map_err(failed)?;
        file.set_permissions(fs::Permissions::from_mode(0o755)).await.map_err(failed)?;
        file.sync_all().await.map_err(failed)?;
        drop(file);
        // The checksum goes in place first: between the two, what is there is another version's file or none, which a
        // reader finds out.
        let checksum = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(folder).map_err(failed)?;
        fs::write(checksum.path(), &found).map_err(failed)?;
        checksum.persist(beside(path)).map_err(|error| failed(error.error))?;
        partial.persist(path).map_err(|error| failed(error.error))?;
        tracing::info!(kops = %path.display(), sha256 = found, from = source.place(key), "kops downloaded and verified");
        Ok(Ok(found))
    }

    /// Removes what died downloads left, and the binaries used longest ago until `needed` more bytes are within the limit.
    fn make_room(&self, needed: u64, keep: &Path) -> io::Result<()> {
        let (mut binaries, mut used) = (Vec::new(), 0);
        for folder in folders(&self.cache, 3)? {
            for entry in fs::read_dir(folder)?.flatten() {
                // A file that vanishes here was another process's to remove.
                let Ok(meta) = entry.metadata() else { continue };
                let name = entry.file_name();
                let age = meta.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
                if name.to_string_lossy().starts_with(PARTIAL) && age > ABANDONED {
                    remove(&entry.path())?;
                } else if name == "kops" {
                    let last_use = fs::metadata(beside(&entry.path())).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                    used += meta.len();
                    binaries.push((last_use, meta.len(), entry.path()));
                }
            }
        }
        binaries.sort();
        for (_, size, path) in binaries {
            if used + needed <= self.limit {
                break;
            }
            if path != keep {
                tracing::info!(kops = %path.display(), "removed from the cache to make room");
                remove(&path)?;
                remove(&beside(&path))?;
                used -= size;
            }
        }
        Ok(())
    }
}

/// The cached binary's checksum if it may run: it is as expected, verified now or, with an unchanged stamp, before.
async fn cached(path: &Path, pinned: Option<&str>, known: Option<&Stamp>) -> Result<Option<String>, BinaryError> {
    let failed = |source| cache_error(path, source);
    if !path.is_file() {
        return Ok(None);
    }
    let recorded = || fs::read_to_string(beside(path)).ok().and_then(|text| checksum(&text));
    let Some(expected) = pinned.map(str::to_owned).or_else(recorded) else { return Ok(None) };
    if let Some(known) = known
        && known.sha256 == expected
        && stamp(path, &expected).is_ok_and(|now| now == *known)
    {
        return Ok(Some(expected));
    }
    let file = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || hash(&file)).await.map_err(|error| failed(io::Error::other(error)))?;
    let found = hashed.map_err(failed)?;
    if found == expected {
        return Ok(Some(found));
    }
    tracing::warn!(kops = %path.display(), expected, found, "the cached kops is not as expected and is removed");
    remove(path).map_err(failed)?;
    Ok(None)
}

/// The checksum that a source publishes beside the binary.
async fn published(source: &Source, key: &str) -> Result<String, Miss> {
    let key = format!("{key}.sha256");
    let named = |miss: Miss| Miss { reason: format!("{} (its checksum {})", miss.reason, source.place(&key)), ..miss };
    let mut body = source.open(&key).await.map_err(named)?;
    let mut text = Vec::new();
    while text.len() < 4096 && body.next(&mut text).await.map_err(named)? {}
    let text = String::from_utf8_lossy(&text);
    text.split_whitespace().next().and_then(checksum).ok_or_else(|| Miss::final_(format!("{} holds no SHA-256", source.place(&key))))
}

fn checksum(text: &str) -> Option<String> {
    let text = text.trim();
    (text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| text.to_ascii_lowercase())
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1024 * 1024]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(digest.finalize()));
        }
        digest.update(buffer.get(..read).unwrap_or_default());
    }
}

fn stamp(path: &Path, sha256: &str) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok(Stamp { inode: (meta.dev(), meta.ino()), size: meta.len(), modified: meta.modified().ok(), sha256: sha256.to_owned() })
}

/// Marks a binary as used now, on the checksum's file so that the binary's own stamp stays.
fn touch(path: &Path) {
    let used = fs::File::options().append(true).open(beside(path)).and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = used {
        // Only the order of removal suffers.
        tracing::debug!(kops = %path.display(), %error, "the time of use was not kept");
    }
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("sha256")
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The folders `depth` levels below one.
fn folders(below: &Path, depth: u32) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![below.to_owned()];
    for _ in 0..depth {
        let mut next = Vec::new();
        for folder in found {
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            next.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
        found = next;
    }
    Ok(found)
}

fn cache_error(path: &Path, source: io::Error) -> BinaryError {
    BinaryError::Cache { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kopsline_state::testing::{Fault, Faults, FaultyStore, MemoryStore};
    use std::sync::atomic::{AtomicU32, Ordering};
    use tempfile::TempDir;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use wiremock::matchers::{method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    const CONTENT: &[u8] = b"#!/bin/sh\necho kops\n";

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    fn sum(content: &[u8]) -> String {
        hex::encode(Sha256::digest(content))
    }

    fn key(version: &str) -> String {
        format!("/{version}/linux/amd64/kops")
    }

    /// A release server with one version.
    async fn release(version: &str, content: &[u8], published: &str) -> MockServer {
        let server = MockServer::start().await;
        serve(&server, version, content, published).await;
        server
    }

    async fn serve(server: &MockServer, version: &str, content: &[u8], published: &str) {
        let sums = ResponseTemplate::new(200).set_body_string(published);
        Mock::given(method("GET")).and(path(format!("{}.sha256", key(version)))).respond_with(sums).mount(server).await;
        Mock::given(method("GET"))
            .and(path(key(version)))
            .respond_with(ResponseTemplate::new(200).set_body_bytes(content))
            .mount(server)
            .await;
    }

    fn binaries(cache: &TempDir, servers: &[&MockServer]) -> KopsBinaries {
        let sources = servers.iter().map(|server| Source::release(&server.uri()).unwrap()).collect();
        KopsBinaries::new(cache.path(), 1024 * 1024 * 1024, sources)
    }

    async fn ensure(binaries: &KopsBinaries, of: &str) -> Result<Kops, BinaryError> {
        binaries.ensure(&version(of), Arch::Amd64, None).await
    }

    /// The files in the cache.
    fn files(cache: &TempDir) -> Vec<String> {
        let folders = folders(cache.path(), 3).unwrap();
        let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap().flatten());
        let mut names: Vec<_> = entries.map(|entry| entry.path().strip_prefix(cache.path()).unwrap().display().to_string()).collect();
        names.sort();
        names
    }

    async fn requests(server: &MockServer) -> usize {
        server.received_requests().await.unwrap().len()
    }

    #[tokio::test]
    async fn downloads_once_and_verifies_again_in_every_process() {
        let cache = tempfile::tempdir().unwrap();
        let server = release("1.36.2", CONTENT, &format!("{}  kops\n", sum(CONTENT).to_uppercase())).await;
        let first = binaries(&cache, &[&server]);
        let kops = ensure(&first, "1.36.2").await.unwrap();
        assert_eq!((fs::read(&kops.path).unwrap().as_slice(), kops.sha256.as_str()), (CONTENT, sum(CONTENT).as_str()));
        assert_eq!(fs::metadata(&kops.path).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(ensure(&first, "1.36.2").await.unwrap(), kops);
        assert_eq!(ensure(&binaries(&cache, &[&server]), "1.36.2").await.unwrap(), kops, "a new process finds it in the cache");
        assert_eq!(requests(&server).await, 2);
        assert_eq!(files(&cache), ["1.36.2/linux/amd64/kops", "1.36.2/linux/amd64/kops.sha256"]);
    }

    #[tokio::test]
    async fn a_wrong_checksum_leaves_nothing_behind_and_ends_the_search() {
        let wrong = sum(b"other");
        let bad = release("1.36.2", CONTENT, &wrong).await;
        let good = release("1.36.2", CONTENT, &sum(CONTENT)).await;
        for pinned in [None, Some(wrong.as_str())] {
            let cache = tempfile::tempdir().unwrap();
            let servers = if pinned.is_some() { [&good, &bad] } else { [&bad, &good] };
            let error = binaries(&cache, &servers).ensure(&version("1.36.2"), Arch::Amd64, pinned).await.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, BinaryError::WrongChecksum { .. }) && !error.is_transient(), "{text}");
            assert!(text.contains(&wrong) && text.contains(&sum(CONTENT)) && text.contains("/1.36.2/linux/amd64/kops"), "{text}");
            assert!(files(&cache).is_empty());
        }
    }

    #[tokio::test]
    async fn a_pinned_checksum_wins_over_the_published_one() {
        let cache = tempfile::tempdir().unwrap();
        let server = release("1.36.2", CONTENT, &sum(b"other")).await;
        let binaries = binaries(&cache, &[&server]);
        binaries.ensure(&version("1.36.2"), Arch::Amd64, Some(&sum(CONTENT).to_uppercase())).await.unwrap();
        assert_eq!(requests(&server).await, 1, "the published one is not even asked for");
        let error = binaries.ensure(&version("1.36.2"), Arch::Amd64, Some("1234")).await.unwrap_err();
        assert!(matches!(error, BinaryError::NotAChecksum(_)));
        // Another pin finds the cached file unfit.
        assert!(binaries.ensure(&version("1.36.2"), Arch::Amd64, Some(&sum(b"x"))).await.is_err());
    }

    #[tokio::test]
    async fn a_changed_file_in_the_cache_is_replaced() {
        let cache = tempfile::tempdir().unwrap();
        let server = release("1.36.2", CONTENT, &sum(CONTENT)).await;
        let same_process = binaries(&cache, &[&server]);
        for binaries in [&same_process, &same_process, &binaries(&cache, &[&server])] {
            let kops = ensure(binaries, "1.36.2").await.unwrap();
            assert_eq!(fs::read(&kops.path).unwrap(), CONTENT);
            fs::write(&kops.path, b"#!/bin/sh\necho evil\n").unwrap();
        }
    }

    #[tokio::test]
    async fn what_one_source_lacks_comes_from_the_next() {
        let cache = tempfile::tempdir().unwrap();
        let (empty, full) = (MockServer::start().await, release("1.36.2", CONTENT, &sum(CONTENT)).await);
        assert!(ensure(&binaries(&cache, &[&empty, &full]), "1.36.2").await.is_ok());
        assert_eq!(requests(&empty).await, 1, "a 404 is not tried again");
    }

    #[tokio::test]
    async fn passing_failures_are_tried_again() {
        let cache = tempfile::tempdir().unwrap();
        let server = MockServer::start().await;
        Mock::given(method("GET")).respond_with(ResponseTemplate::new(503)).up_to_n_times(2).mount(&server).await;
        serve(&server, "1.36.2", CONTENT, &sum(CONTENT)).await;
        assert!(ensure(&binaries(&cache, &[&server]), "1.36.2").await.is_ok());
    }

    #[tokio::test]
    async fn an_error_lists_everything_that_was_tried() {
        let cache = tempfile::tempdir().unwrap();
        let (empty, down) = (MockServer::start().await, MockServer::start().await);
        Mock::given(method("GET")).respond_with(ResponseTemplate::new(500)).mount(&down).await;
        let store = FaultyStore::new(MemoryStore::new("artifacts"), Faults::new(|_| Fault::NotApplied));
        let sources = vec![Source::store(Arc::new(store)), Source::release(&empty.uri()).unwrap(), Source::release(&down.uri()).unwrap()];
        let error = ensure(&KopsBinaries::new(cache.path(), 1, sources), "1.36.2").await.unwrap_err();
        let text = error.to_string();
        for part in
            ["kops 1.36.2 for amd64", "s3://artifacts/1.36.2", "HTTP 404", "HTTP 500", "after 3 attempts", &empty.uri(), &down.uri()]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(error.is_transient());
        assert_eq!(requests(&down).await, 3);
        let none = ensure(&KopsBinaries::new(cache.path(), 1, Vec::new()), "1.36.2").await.unwrap_err();
        assert!(none.to_string().contains("no source is configured") && !none.is_transient());
    }

    #[tokio::test]
    async fn a_download_that_breaks_off_is_tried_again_and_never_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let answers = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&answers);
        let server = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let read = socket.read(&mut request).await.unwrap();
                let body = if String::from_utf8_lossy(&request[..read]).contains(".sha256") {
                    sum(CONTENT).into_bytes()
                } else {
                    CONTENT[..5].to_vec()
                };
                let length = if body.len() == 64 { 64 } else { CONTENT.len() };
                count.fetch_add(1, Ordering::Relaxed);
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                socket.write_all(&[head.into_bytes(), body].concat()).await.unwrap();
            }
        });
        let cache = tempfile::tempdir().unwrap();
        let binaries = KopsBinaries::new(cache.path(), 1 << 30, vec![Source::release(&base).unwrap()]);
        let error = ensure(&binaries, "1.36.2").await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert_eq!(answers.load(Ordering::Relaxed), 6);
        assert!(files(&cache).is_empty());
        server.abort();
    }

    #[tokio::test]
    async fn a_bucket_is_a_source_too() {
        let cache = tempfile::tempdir().unwrap();
        let store = MemoryStore::new("artifacts").below("kops");
        store.set("1.36.2/linux/arm64/kops", CONTENT);
        store.set("1.36.2/linux/arm64/kops.sha256", sum(CONTENT));
        let binaries = KopsBinaries::new(cache.path(), 1 << 30, vec![Source::store(Arc::new(store.clone()))]);
        let kops = binaries.ensure(&version("1.36.2"), Arch::Arm64, None).await.unwrap();
        assert_eq!(fs::read(kops.path).unwrap(), CONTENT);
        store.set("1.36.3/linux/arm64/kops", CONTENT);
        let error = binaries.ensure(&version("1.36.3"), Arch::Arm64, None).await.unwrap_err();
        assert!(error.to_string().contains("s3://artifacts/kops/1.36.3/linux/arm64/kops.sha256"), "{error}");
    }

    #[tokio::test]
    async fn many_processes_at_once_get_the_same_whole_file() {
        let cache = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let server = release("1.36.2", &content, &sum(&content)).await;
        // Each has a lock of its own, as each process has.
        let all: Vec<_> = (0..8).map(|_| binaries(&cache, &[&server])).collect();
        let ensured = futures::future::join_all(all.iter().map(|binaries| ensure(binaries, "1.36.2"))).await;
        for kops in ensured {
            assert_eq!(sum(&fs::read(kops.unwrap().path).unwrap()), sum(&content));
        }
        assert_eq!(files(&cache), ["1.36.2/linux/amd64/kops", "1.36.2/linux/amd64/kops.sha256"]);
    }

    #[tokio::test]
    async fn the_binaries_used_longest_ago_make_room() {
        let cache = tempfile::tempdir().unwrap();
        let server = MockServer::start().await;
        for version in ["1.34.0", "1.35.0", "1.36.0"] {
            serve(&server, version, CONTENT, &sum(CONTENT)).await;
        }
        let size = u64::try_from(CONTENT.len()).unwrap();
        let binaries = KopsBinaries::new(cache.path(), 2 * size, vec![Source::release(&server.uri()).unwrap()]);
        let old = ensure(&binaries, "1.34.0").await.unwrap();
        let newer = ensure(&binaries, "1.35.0").await.unwrap();
        for (kops, hours) in [(&old, 1), (&newer, 2)] {
            let file = fs::File::options().append(true).open(beside(&kops.path)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_hours(hours)).unwrap();
        }
        let abandoned = newer.path.with_file_name(".download-abandoned");
        fs::write(&abandoned, "half").unwrap();
        fs::File::options().append(true).open(&abandoned).unwrap().set_modified(SystemTime::now() - Duration::from_hours(2)).unwrap();
        ensure(&binaries, "1.36.0").await.unwrap();
        assert!(old.path.exists() && !newer.path.exists(), "1.35.0 was used before 1.34.0");
        assert!(!abandoned.exists());
        // One that is bigger than the limit alone is kept while it is the one in use.
        let tiny = KopsBinaries::new(cache.path(), 1, vec![Source::release(&server.uri()).unwrap()]);
        assert!(ensure(&tiny, "1.35.0").await.unwrap().path.exists());
        assert!(!old.path.exists());
    }

    #[test]
    fn programs_come_over_https_or_from_this_machine() {
        for good in [RELEASES, "https://mirror.example.com/kops/", "http://127.0.0.1:8080/x", "http://localhost/x", "http://[::1]:1"] {
            assert!(Source::release(good).is_ok(), "{good}");
        }
        for bad in ["http://artifacts.k8s.io/binaries/kops", "http://127.0.0.1.evil.com", "ftp://x", "", "http://localhost@evil.com/"] {
            assert!(matches!(Source::release(bad), Err(SourceError::Insecure { .. })), "{bad}");
        }
    }
}
