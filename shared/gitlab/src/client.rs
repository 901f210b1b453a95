//! A thin client of GitLab's REST API: bounded retries, bounded bodies, and errors that say what was tried.

use std::time::{Duration, Instant};

use kopsline_core::CommitId;
use reqwest::header::{HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

/// GitLab refuses longer names and descriptions of commit statuses (characters).
const MAX_STATUS_TEXT: usize = 255;

/// Bodies of answers that are not files or comparisons.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// A renamed project answers with one redirect to its new path; more than a few are a loop.
const MAX_REDIRECTS: usize = 3;

/// How often and how patiently a request is repeated: after 408, 429, 5xx and errors of the connection.
///
/// The wait before attempt `n + 1` is chosen evenly between nothing and `base * 2^(n-1)` ("full jitter"); a `Retry-After`
/// of the server's is waited for instead. No wait is longer than `max_wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// All attempts, the first included; 0 counts as 1.
    pub attempts: u32,
    /// The upper bound of the first wait.
    pub base: Duration,
    /// The upper bound of every wait.
    pub max_wait: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 4, base: Duration::from_millis(300), max_wait: Duration::from_secs(15) }
    }
}

impl Retry {
    /// One attempt only.
    pub const NEVER: Self = Self { attempts: 1, base: Duration::ZERO, max_wait: Duration::ZERO };

    fn wait(&self, attempt: u32, retry_after: Option<Duration>) -> Duration {
        if let Some(asked) = retry_after {
            return asked.min(self.max_wait);
        }
        let factor = 2u32.saturating_pow(attempt.saturating_sub(1));
        let most = self.base.saturating_mul(factor).min(self.max_wait);
        most.mul_f64(fastrand::f64())
    }
}

/// What went wrong with GitLab. Names method and path, never the query or the token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitLabError {
    /// The base URL cannot be used. It is not shown: it may hold a password.
    #[error("GitLab's base URL cannot be used ({0}): give it as https://gitlab.example.com or https://example.com/gitlab")]
    BaseUrl(&'static str),
    /// The token cannot be sent in a header.
    #[error("GitLab's token is empty or holds characters that no header can carry: copy it again")]
    Token,
    /// The HTTPS client cannot be made, in practice for want of certificates.
    #[error(
        "no HTTPS connection to GitLab can be made: install the system's CA certificates (ca-certificates) or name a bundle in SSL_CERT_FILE"
    )]
    Tls(#[source] reqwest::Error),
    /// GitLab answered, and no repetition will change it.
    #[error("{method} {path}: GitLab answered {status}{message}{remedy}")]
    Refused {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// The answer's status.
        status: u16,
        /// GitLab's message, shortened, with its separator; may be empty.
        message: String,
        /// What helps, with its separator; may be empty.
        remedy: &'static str,
    },
    /// GitLab did not answer, or with an error of its own, however often it was asked.
    #[error("{method} {path}: no usable answer from GitLab after {attempts} attempts in {:.1} s; the last: {last}", elapsed.as_secs_f64())]
    Outage {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// How often it was tried.
        attempts: u32,
        /// From the first attempt to the last answer.
        elapsed: Duration,
        /// What the last attempt met.
        last: String,
    },
    /// GitLab's answer is not of the shape its documentation gives.
    #[error("{method} {path}: GitLab's answer is not understood: {what}")]
    Answer {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
        /// What is wrong with it.
        what: String,
    },
}

impl GitLabError {
    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Outage { .. })
    }
}

/// The state of a commit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CommitState {
    /// It has yet to begin, or waits for somebody.
    Pending,
    /// It is being worked on.
    Running,
    /// It ended well.
    Success,
    /// It failed.
    Failed,
    /// It was called off.
    Canceled,
}

/// A commit status, as GitLab shows it beside the commit and in merge requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitStatus<'a> {
    /// Its state.
    pub state: CommitState,
    /// What tells it from other statuses of the commit.
    pub name: &'a str,
    /// One line for people.
    pub description: &'a str,
    /// Where it links to; left out when longer than GitLab's 255 characters, since half an address leads nowhere.
    pub target_url: Option<&'a str>,
}

/// A client of one GitLab, for every project that its token may see. Cheap to clone.
#[derive(Clone)]
pub struct GitLab {
    http: reqwest::Client,
    api: Url,
    token: SecretString,
    timeout: Duration,
    retry: Retry,
}

impl std::fmt::Debug for GitLab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GitLab")
            .field("api", &self.api.as_str())
            .field("timeout", &self.timeout)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct StatusBody<'a> {
    state: CommitState,
    name: String,
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_url: Option<&'a str>,
}

/// A request, ready to be sent more than once.
struct Request<'a> {
    method: Method,
    url: Url,
    body: Option<&'a StatusBody<'a>>,
    /// More than this many bytes of the answer are not read.
    limit: usize,
}

/// A final answer.
pub(crate) struct Answer {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) status: StatusCode,
    /// None when it is larger than the request's limit.
    pub(crate) body: Option<Vec<u8>>,
    /// What GitLab says in an answer that is no success, shortened.
    pub(crate) message: String,
}

/// An attempt that may be repeated.
struct Again {
    what: String,
    retry_after: Option<Duration>,
}

impl GitLab {
    /// A client for the GitLab at `base_url`, which may have a path of its own, with a project, group or personal access
    /// token: `read_api` suffices for sources, `api` for commit statuses. Does no IO.
    ///
    /// HTTPS trusts the system's certificates, or those in `SSL_CERT_FILE`. Plain HTTP needs none.
    pub fn new(base_url: &str, token: &SecretString) -> Result<Self, GitLabError> {
        let api = api_url(base_url)?;
        let token = SecretString::from(token.expose_secret().trim());
        let mut value = HeaderValue::from_str(token.expose_secret()).map_err(|_| GitLabError::Token)?;
        if value.is_empty() {
            return Err(GitLabError::Token);
        }
        value.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert("private-token", value);
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("kopsline/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // reqwest drops Authorization when a redirect leaves the host, but knows nothing of PRIVATE-TOKEN; and it turns a
            // redirected POST into a GET, whose success would say nothing. `once` follows what may be followed.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5));
        if api.scheme() == "http" {
            // The platform's verifier is an error where the system has no certificates, which plain HTTP does not need.
            builder = builder.tls_certs_only([]);
            if is_loopback(&api) {
                builder = builder.no_proxy();
            } else {
                tracing::warn!(host = api.host_str(), "GitLab is reached without TLS: its token travels in clear");
            }
        }
        let http = builder.build().map_err(GitLabError::Tls)?;
        Ok(Self { http, api, token, timeout: Duration::from_secs(10), retry: Retry::default() })
    }

    /// The same client with another timeout of each attempt.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The same client with other retries.
    #[must_use]
    pub fn with_retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// Sets a commit status (`POST /projects/:id/statuses/:sha`). `project` is a number or a full path. Name and description
    /// are cut at 255 characters.
    ///
    /// GitLab answers 400 "Cannot transition status" when the status is in this state already or has moved past it; that is
    /// no error, so that a repeated step ends the same. Versions that refuse to end a pending status get `running` first.
    pub async fn commit_status(&self, project: &str, commit: &CommitId, status: CommitStatus<'_>) -> Result<(), GitLabError> {
        let refusal = self.post_status(project, commit, status).await?;
        let ends = matches!(status.state, CommitState::Success | CommitState::Failed | CommitState::Canceled);
        match refusal {
            Some(message) if ends && message.contains("from :pending") => {
                self.post_status(project, commit, CommitStatus { state: CommitState::Running, ..status }).await?;
                if let Some(message) = self.post_status(project, commit, status).await? {
                    tracing::warn!(commit = commit.short(), name = status.name, message, "GitLab keeps the commit status as it is");
                }
            }
            Some(message) => tracing::debug!(commit = commit.short(), name = status.name, message, "the commit status stays as it is"),
            None => {}
        }
        Ok(())
    }

    /// Posts a status; GitLab's message where it refuses the transition.
    async fn post_status(&self, project: &str, commit: &CommitId, status: CommitStatus<'_>) -> Result<Option<String>, GitLabError> {
        let body = StatusBody {
            state: status.state,
            name: shortened(status.name, MAX_STATUS_TEXT),
            description: shortened(status.description, MAX_STATUS_TEXT),
            target_url: status.target_url.filter(|url| url.chars().count() <= MAX_STATUS_TEXT),
        };
        let url = self.url(&["projects", project, "statuses", commit.as_str()], &[]);
        let answer = self.send(&Request { method: Method::POST, url, body: Some(&body), limit: MAX_ANSWER_BYTES }).await?;
        if answer.status.is_success() {
            return Ok(None);
        }
        if answer.status == StatusCode::BAD_REQUEST && answer.message.contains("Cannot transition status") {
            return Ok(Some(answer.message));
        }
        Err(answer.refused())
    }

    /// Gets a resource, whatever the status of the answer.
    pub(crate) async fn get(&self, path: &[&str], query: &[(&str, &str)], limit: usize) -> Result<Answer, GitLabError> {
        self.send(&Request { method: Method::GET, url: self.url(path, query), body: None, limit }).await
    }

    /// Gets a small document.
    pub(crate) async fn get_document(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Answer, GitLabError> {
        self.get(path, query, MAX_ANSWER_BYTES).await
    }

    /// The URL of a path below the API's root; each segment is percent-encoded whole, slashes included.
    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.api.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    async fn send(&self, request: &Request<'_>) -> Result<Answer, GitLabError> {
        let started = Instant::now();
        let mut attempt = 1;
        loop {
            let again = match self.once(request).await {
                Ok(answer) => return Ok(answer),
                Err(again) => again,
            };
            if attempt >= self.retry.attempts {
                return Err(GitLabError::Outage {
                    method: request.method.clone(),
                    path: request.url.path().to_owned(),
                    attempts: attempt,
                    elapsed: started.elapsed(),
                    last: again.what,
                });
            }
            let wait = self.retry.wait(attempt, again.retry_after);
            tracing::info!(method = %request.method, path = request.url.path(), attempt, last = again.what, ?wait, "GitLab will be asked again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    async fn once(&self, request: &Request<'_>) -> Result<Answer, Again> {
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut builder = self.http.request(request.method.clone(), url.clone()).timeout(self.timeout);
            if let Some(body) = request.body {
                builder = builder.json(body);
            }
            let mut response = builder.send().await.map_err(|error| self.unanswered(error))?;
            if let Some(next) = self.redirect(request, &response) {
                url = next;
                continue;
            }
            let status = response.status();
            let retry_after = retry_after(response.headers());
            let limit = if status.is_success() { request.limit } else { MAX_ANSWER_BYTES };
            let body = read(&mut response, limit).await.map_err(|error| self.unanswered(error))?;
            let message = if status.is_success() { String::new() } else { self.message(body.as_deref()) };
            if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
                let what = if message.is_empty() { status.to_string() } else { format!("{status}: {message}") };
                return Err(Again { what, retry_after });
            }
            return Ok(Answer { method: request.method.clone(), path: request.url.path().to_owned(), status, body, message });
        }
        Err(Again { what: format!("more than {MAX_REDIRECTS} redirects"), retry_after: None })
    }

    /// Where to ask instead: only for a GET, only on the same scheme, host and port, since the token goes along.
    fn redirect(&self, request: &Request<'_>, response: &reqwest::Response) -> Option<Url> {
        if request.method != Method::GET || !response.status().is_redirection() {
            return None;
        }
        let next = response.url().join(response.headers().get(LOCATION)?.to_str().ok()?).ok()?;
        (next.origin() == self.api.origin()).then_some(next)
    }

    /// A request without an answer, in the words of every cause: the outermost says next to nothing.
    fn unanswered(&self, error: reqwest::Error) -> Again {
        let error = error.without_url();
        let mut what = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            what = format!("{what}: {inner}");
            cause = inner.source();
        }
        Again { what: self.redacted(&what), retry_after: None }
    }

    /// What an answer says, on one line: GitLab uses `message` (text, list or object) and `error`.
    fn message(&self, body: Option<&[u8]>) -> String {
        #[derive(Deserialize)]
        struct Message {
            message: Option<serde_json::Value>,
            error: Option<serde_json::Value>,
        }
        let parsed = body.and_then(|body| serde_json::from_slice::<Message>(body).ok());
        match parsed.and_then(|parsed| parsed.message.or(parsed.error)) {
            Some(serde_json::Value::String(text)) => self.redacted(&text),
            Some(other) => self.redacted(&other.to_string()),
            None => String::new(),
        }
    }

    /// A text from outside, fit for an error: short, on one line, without the token, which a proxy's answer might repeat.
    fn redacted(&self, text: &str) -> String {
        let text = text.replace(self.token.expose_secret(), "[token]");
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
    }
}

impl Answer {
    /// The answer as an error.
    pub(crate) fn refused(self) -> GitLabError {
        let remedy = match self.status {
            status if status.is_redirection() => "; the base URL must be the address GitLab itself uses, scheme included",
            StatusCode::UNAUTHORIZED => "; the token is unknown, expired or revoked: make a new one",
            StatusCode::FORBIDDEN => {
                "; the token needs the scope read_api (api for commit statuses) and a role in the project that allows this (Developer)"
            }
            StatusCode::NOT_FOUND => {
                "; check the project's path, and that the token's user is a member of it: GitLab hides what it may not show"
            }
            _ => "",
        };
        let message = if self.message.is_empty() { String::new() } else { format!(" ({})", self.message) };
        GitLabError::Refused { method: self.method, path: self.path, status: self.status.as_u16(), message, remedy }
    }

    /// The answer's document, when it is a success.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(self) -> Result<T, GitLabError> {
        if !self.status.is_success() {
            return Err(self.refused());
        }
        let Some(body) = &self.body else { return Err(self.not_understood("it is too large")) };
        serde_json::from_slice(body).map_err(|error| self.not_understood(&error.to_string()))
    }

    pub(crate) fn not_understood(&self, what: &str) -> GitLabError {
        GitLabError::Answer { method: self.method.clone(), path: self.path.clone(), what: what.chars().take(200).collect() }
    }
}

fn api_url(base_url: &str) -> Result<Url, GitLabError> {
    let mut url = Url::parse(base_url.trim()).map_err(|_| GitLabError::BaseUrl("it is no absolute URL"))?;
    if !matches!(url.scheme(), "https" | "http") {
        return Err(GitLabError::BaseUrl("its scheme is neither https nor http"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(GitLabError::BaseUrl("it holds a user or a password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(GitLabError::BaseUrl("it holds a query or a fragment"));
    }
    let Ok(mut segments) = url.path_segments_mut() else { return Err(GitLabError::BaseUrl("it has no host")) };
    segments.pop_if_empty().extend(["api", "v4"]);
    drop(segments);
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Reads a body; none when it is larger than `limit`.
async fn read(response: &mut reqwest::Response, limit: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len().saturating_add(chunk.len()) > limit {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// GitLab gives seconds; a date, which HTTP allows too, is left to the jitter.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use wiremock::matchers::{body_partial_json, header, method, path};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    pub(crate) const TOKEN: &str = "glpat-very-secret";
    pub(crate) const SHA: &str = "da1560886d4f094c3e6c9ef40349f7d38b5d27d7";

    pub(crate) fn client(base: &str) -> GitLab {
        let quick = Retry { attempts: 3, base: Duration::from_millis(1), max_wait: Duration::from_millis(5) };
        GitLab::new(base, &SecretString::from(TOKEN)).unwrap().with_retry(quick).with_timeout(Duration::from_secs(2))
    }

    fn commit() -> CommitId {
        CommitId::new(SHA).unwrap()
    }

    fn status(state: CommitState) -> CommitStatus<'static> {
        CommitStatus { state, name: "kopsline/plan", description: "2 to change", target_url: Some("https://example.com/run") }
    }

    const STATUSES: &str = "/api/v4/projects/platform%2Fclusters/statuses/da1560886d4f094c3e6c9ef40349f7d38b5d27d7";

    fn transition(message: &str) -> ResponseTemplate {
        ResponseTemplate::new(400).set_body_json(serde_json::json!({"message": message}))
    }

    async fn set(server: &MockServer, state: CommitState) -> Result<(), GitLabError> {
        client(&server.uri()).commit_status("platform/clusters", &commit(), status(state)).await
    }

    #[tokio::test]
    async fn a_commit_status() {
        let server = MockServer::start().await;
        let expected = serde_json::json!({
            "state": "running", "name": "kopsline/plan", "description": "2 to change", "target_url": "https://example.com/run",
        });
        Mock::given(method("POST"))
            .and(path(STATUSES))
            .and(header("PRIVATE-TOKEN", TOKEN))
            .and(wiremock::matchers::body_json(expected))
            .respond_with(ResponseTemplate::new(201).set_body_json(serde_json::json!({"id": 1})))
            .expect(1)
            .mount(&server)
            .await;
        set(&server, CommitState::Running).await.unwrap();
    }

    #[tokio::test]
    async fn long_texts_are_cut_and_long_links_left_out() {
        let server = MockServer::start().await;
        Mock::given(method("POST")).respond_with(ResponseTemplate::new(201)).mount(&server).await;
        let (name, url) = ("ä".repeat(300), format!("https://example.com/{}", "x".repeat(255)));
        let status = CommitStatus { state: CommitState::Failed, name: &name, description: &name, target_url: Some(&url) };
        client(&server.uri()).commit_status("1", &commit(), status).await.unwrap();
        let requests = server.received_requests().await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&requests[0].body).unwrap();
        for field in ["name", "description"] {
            assert_eq!(body[field].as_str().unwrap(), format!("{}…", "ä".repeat(254)));
        }
        assert_eq!(body.get("target_url"), None);
    }

    #[tokio::test]
    async fn a_transition_that_was_made_already_is_no_error() {
        let server = MockServer::start().await;
        let message = r#"Cannot transition status via :run from :running (Reason(s): Status cannot transition via "run")"#;
        Mock::given(method("POST")).respond_with(transition(message)).expect(1).mount(&server).await;
        set(&server, CommitState::Running).await.unwrap();
    }

    #[tokio::test]
    async fn a_pending_status_ends_by_way_of_running() {
        let server = MockServer::start().await;
        let success = || Mock::given(method("POST")).and(body_partial_json(serde_json::json!({"state": "success"})));
        success()
            .respond_with(transition("Cannot transition status via :success from :pending"))
            .up_to_n_times(1)
            .expect(1)
            .mount(&server)
            .await;
        success().respond_with(ResponseTemplate::new(201)).expect(1).mount(&server).await;
        Mock::given(method("POST"))
            .and(body_partial_json(serde_json::json!({"state": "running"})))
            .respond_with(ResponseTemplate::new(201))
            .expect(1)
            .mount(&server)
            .await;
        set(&server, CommitState::Success).await.unwrap();
    }

    #[tokio::test]
    async fn another_bad_request_is_an_error_and_not_repeated() {
        let server = MockServer::start().await;
        let answer = ResponseTemplate::new(400).set_body_json(serde_json::json!({"message": {"name": ["is too\nlong"]}}));
        Mock::given(method("POST")).respond_with(answer).expect(1).mount(&server).await;
        let error = set(&server, CommitState::Success).await.unwrap_err();
        assert!(!error.is_transient());
        assert_eq!(error.to_string(), format!(r#"POST {STATUSES}: GitLab answered 400 ({{"name":["is too\nlong"]}})"#));
    }

    #[tokio::test]
    async fn refusals_name_the_remedy() {
        for (status, remedy) in [(401, "make a new one"), (403, "scope read_api"), (404, "check the project's path"), (302, "base URL")] {
            let server = MockServer::start().await;
            Mock::given(method("POST")).respond_with(ResponseTemplate::new(status)).expect(1).mount(&server).await;
            let error = set(&server, CommitState::Success).await.unwrap_err();
            assert!(error.to_string().contains(remedy), "{error}");
            assert!(!error.is_transient());
        }
    }

    #[tokio::test]
    async fn what_may_pass_is_repeated() {
        for first in [408, 429, 500, 502, 503, 504] {
            let server = MockServer::start().await;
            Mock::given(method("POST")).respond_with(ResponseTemplate::new(first)).up_to_n_times(2).expect(2).mount(&server).await;
            Mock::given(method("POST")).respond_with(ResponseTemplate::new(201)).expect(1).mount(&server).await;
            set(&server, CommitState::Success).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_outage_says_what_was_tried() {
        let server = MockServer::start().await;
        let answer = ResponseTemplate::new(503)
            .insert_header("Retry-After", "86400")
            .set_body_json(serde_json::json!({"error": "down for maintenance"}));
        Mock::given(method("POST")).respond_with(answer).expect(3).mount(&server).await;
        let error = set(&server, CommitState::Success).await.unwrap_err();
        assert!(error.is_transient());
        let shown = error.to_string();
        assert!(shown.starts_with(&format!("POST {STATUSES}: no usable answer from GitLab after 3 attempts in ")), "{shown}");
        assert!(shown.ends_with("the last: 503 Service Unavailable: down for maintenance"), "{shown}");
    }

    #[tokio::test]
    async fn a_refused_connection_says_so() {
        // Port 1 of loopback listens nowhere.
        let error = client("http://127.0.0.1:1/gitlab").commit_status("1", &commit(), status(CommitState::Success)).await.unwrap_err();
        assert!(error.is_transient());
        let shown = error.to_string();
        assert!(shown.contains("POST /gitlab/api/v4/projects/1/statuses/") && shown.contains("onnection refused"), "{shown}");
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_given_up() {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .respond_with(ResponseTemplate::new(201).set_delay(Duration::from_mins(1)))
            .expect(2)
            .mount(&server)
            .await;
        let retry = Retry { attempts: 2, base: Duration::ZERO, max_wait: Duration::ZERO };
        let client = client(&server.uri()).with_timeout(Duration::from_millis(100)).with_retry(retry);
        let error = client.commit_status("1", &commit(), status(CommitState::Success)).await.unwrap_err();
        assert!(error.to_string().contains("timed out"), "{error}");
    }

    #[tokio::test]
    async fn the_token_is_never_shown() {
        let server = MockServer::start().await;
        for (status, attempts) in [(400, 1), (500, 3)] {
            let body = serde_json::json!({"message": format!("no such header: PRIVATE-TOKEN: {TOKEN}")});
            Mock::given(method("POST"))
                .respond_with(ResponseTemplate::new(status).set_body_json(body))
                .up_to_n_times(attempts)
                .mount(&server)
                .await;
            let error = set(&server, CommitState::Success).await.unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("PRIVATE-TOKEN: [token]") && !shown.contains(TOKEN), "{shown}");
        }
        let client = client(&server.uri());
        assert!(!format!("{client:?} {:?}", client.http).contains(TOKEN));
    }

    #[tokio::test]
    async fn redirects_are_followed_on_the_same_host_only() {
        let (server, elsewhere) = (MockServer::start().await, MockServer::start().await);
        Mock::given(path("/api/v4/projects/moved"))
            .respond_with(ResponseTemplate::new(301).insert_header("Location", "/api/v4/projects/7"))
            .mount(&server)
            .await;
        Mock::given(path("/api/v4/projects/7"))
            .and(header("PRIVATE-TOKEN", TOKEN))
            .respond_with(ResponseTemplate::new(200).set_body_string("7"))
            .mount(&server)
            .await;
        let away = format!("{}/api/v4/projects/7", elsewhere.uri());
        Mock::given(path("/api/v4/projects/away"))
            .respond_with(ResponseTemplate::new(302).insert_header("Location", away.as_str()))
            .mount(&server)
            .await;
        Mock::given(path("/api/v4/projects/loop"))
            .respond_with(ResponseTemplate::new(302).insert_header("Location", "/api/v4/projects/loop"))
            .mount(&server)
            .await;
        let client = client(&server.uri());

        let answer = client.get_document(&["projects", "moved"], &[]).await.unwrap();
        assert_eq!(answer.json::<u32>().unwrap(), 7);

        let answer = client.get_document(&["projects", "away"], &[]).await.unwrap();
        assert!(answer.json::<u32>().unwrap_err().to_string().contains("base URL"));
        assert!(elsewhere.received_requests().await.unwrap().is_empty());

        let error = client.get_document(&["projects", "loop"], &[]).await.err().unwrap();
        assert!(error.to_string().contains("redirects"), "{error}");
    }

    #[test]
    fn base_urls() {
        for (base, api) in [
            ("https://gitlab.example.com", "https://gitlab.example.com/api/v4"),
            ("https://gitlab.example.com/", "https://gitlab.example.com/api/v4"),
            (" https://example.com:8443/git/lab/\n", "https://example.com:8443/git/lab/api/v4"),
        ] {
            assert_eq!(api_url(base).unwrap().as_str(), api);
        }
        for bad in [
            "",
            "gitlab.example.com",
            "ftp://x",
            "mailto:a@b",
            "https://user:hunter2@x",
            "https://x/?private_token=hunter2",
            "https://x/#a",
        ] {
            let error = api_url(bad).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn tokens_that_no_header_carries() {
        for bad in ["", "  ", "a\nb"] {
            let error = GitLab::new("http://127.0.0.1", &SecretString::from(bad)).unwrap_err();
            assert!(matches!(error, GitLabError::Token));
        }
        assert!(GitLab::new("http://127.0.0.1", &SecretString::from("from-a-file\n")).is_ok());
    }

    #[test]
    fn segments_are_encoded_whole() {
        let client = client("http://127.0.0.1/sub");
        let url = client.url(&["projects", "a/b c", "files", "x%2Fy?z#.yaml"], &[("ref", "a&b")]);
        assert_eq!(url.as_str(), "http://127.0.0.1/sub/api/v4/projects/a%2Fb%20c/files/x%252Fy%3Fz%23.yaml?ref=a%26b");
    }

    #[test]
    fn the_servers_own_waits() {
        let asked = |value: &'static str| retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))]));
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(asked("-1"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    /// Runs [`without_certificates_inner`] in a process whose system has no certificates.
    #[test]
    fn without_certificates() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "client::tests::without_certificates_inner", "--ignored"])
            .env("SSL_CERT_FILE", "/nonexistent/bundle.pem")
            .env("SSL_CERT_DIR", "/nonexistent")
            .output()
            .unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && shown.contains("1 passed"), "{shown}");
    }

    #[test]
    #[ignore = "run by without_certificates in an environment of its own"]
    fn without_certificates_inner() {
        assert!(GitLab::new("http://127.0.0.1:1", &SecretString::from(TOKEN)).is_ok());
        let error = GitLab::new("https://gitlab.example.com", &SecretString::from(TOKEN)).unwrap_err();
        assert!(error.to_string().contains("SSL_CERT_FILE"), "{error}");
    }

    proptest! {
        #[test]
        fn waits_are_bounded(attempt in 0u32..100, base in 0u64..10_000, most in 0u64..10_000, asked in proptest::option::of(0u64..1_000_000)) {
            let retry = Retry { attempts: 4, base: Duration::from_millis(base), max_wait: Duration::from_millis(most) };
            let asked = asked.map(Duration::from_secs);
            let wait = retry.wait(attempt, asked);
            prop_assert!(wait <= retry.max_wait);
            match asked {
                Some(asked) => prop_assert_eq!(wait, asked.min(retry.max_wait)),
                None => prop_assert!(wait <= retry.base.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1)))),
            }
        }
    }
}
