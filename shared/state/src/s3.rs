//! The real store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ServerSideEncryption;
use jiff::Timestamp;
use kopsline_core::StateStoreUri;
use tokio::sync::OnceCell;

use crate::backoff;
use crate::object::{Condition, ETag, Object, ObjectMeta, ObjectStore, Reader, StoreError, Stores, WriteError, content_type, join};

/// Attempts of one request, the first included. With the SDK's standard backoff (jitter, at most 20 s each) this rides out
/// throttling without using up a function's time.
const MAX_ATTEMPTS: u32 = 5;

/// How often a write is sent again after `ConditionalRequestConflict`: S3 answers that when another conditional write
/// of the same key is under way, and asks to try again.
const MAX_CONFLICTS: u32 = 8;

/// How often a body that breaks off is read again; the SDK's own retries end with the headers.
const MAX_BODY_ATTEMPTS: u32 = 3;

/// A client with Kopsline's timeouts and retries.
pub fn client(config: &SdkConfig) -> Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(3))
        .operation_attempt_timeout(Duration::from_secs(20))
        .operation_timeout(Duration::from_mins(1))
        .build();
    // An endpoint of one's own (an emulator) serves buckets by path; AWS by host name.
    let own_endpoint = config.endpoint_url().is_some() || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
    let builder = aws_sdk_s3::config::Builder::from(config)
        .retry_config(RetryConfig::standard().with_max_attempts(MAX_ATTEMPTS))
        .timeout_config(timeouts)
        .force_path_style(own_endpoint);
    Client::from_conf(builder.build())
}

/// How new objects are encrypted.
#[derive(Debug, Clone, Default)]
enum Encryption {
    /// By the bucket's default.
    #[default]
    BucketDefault,
    /// As kOps does (1.36 util/pkg/vfs/s3fs.go): the bucket's default if it has a rule, else `AES256`. The cell keeps the
    /// answer for the life of the store.
    LikeKops(Arc<OnceCell<Option<ServerSideEncryption>>>),
}

/// An S3 bucket, or a prefix of one.
#[derive(Debug, Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    prefix: String,
    encryption: Encryption,
}

impl S3Store {
    /// A bucket, or with a prefix (without slashes at its ends) a part of it.
    pub fn new(client: Client, bucket: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self { client, bucket: bucket.into(), prefix: prefix.into(), encryption: Encryption::default() }
    }

    /// Encrypts new objects as kOps does.
    #[must_use]
    pub fn encrypting_like_kops(self) -> Self {
        Self { encryption: Encryption::LikeKops(Arc::default()), ..self }
    }

    fn full(&self, key: &str) -> String {
        join(&self.prefix, key)
    }

    fn error<E>(&self, operation: &'static str, key: &str, attempts: u32, error: &SdkError<E>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let (reason, transient) = describe(error);
        StoreError { operation, place: self.place(key), attempts: attempts.max(1), reason, transient }
    }

    async fn encryption(&self) -> Option<ServerSideEncryption> {
        let Encryption::LikeKops(cell) = &self.encryption else { return None };
        cell.get_or_init(|| async {
            let answer = self.client.get_bucket_encryption().bucket(&self.bucket).send().await;
            let has_rule = answer.is_ok_and(|answer| {
                answer.server_side_encryption_configuration().is_some_and(|configuration| {
                    configuration.rules().iter().any(|rule| rule.apply_server_side_encryption_by_default().is_some())
                })
            });
            if has_rule { None } else { Some(ServerSideEncryption::Aes256) }
        })
        .await
        .clone()
    }

    /// Whether the object now is what a write meant to make it, for a write whose answer was lost.
    async fn is_now(&self, key: &str, bytes: &[u8]) -> Result<Option<ETag>, StoreError> {
        Ok(self.get(key).await?.filter(|object| object.bytes == bytes).map(|object| object.etag))
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn get(&self, key: &str) -> Result<Option<Object>, StoreError> {
        let (mut attempts, mut round) = (0, 0);
        loop {
            let counter = Attempts::default();
            let sent = self.client.get_object().bucket(&self.bucket).key(self.full(key));
            let answer = sent.customize().interceptor(counter.clone()).send().await;
            attempts += counter.count();
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) if error.code() == Some("NoSuchKey") => return Ok(None),
                Err(error) => return Err(self.error("GetObject", key, attempts, &error)),
            };
            let etag = ETag(answer.e_tag().unwrap_or_default().to_owned());
            match answer.body.collect().await {
                Ok(body) => return Ok(Some(Object { bytes: body.to_vec(), etag })),
                Err(error) if round + 1 >= MAX_BODY_ATTEMPTS => {
                    let reason = format!("the body broke off: {}", chain(&error));
                    return Err(StoreError { operation: "GetObject", place: self.place(key), attempts, reason, transient: true });
                }
                Err(_) => tokio::time::sleep(backoff::delay(round, Duration::from_millis(100), Duration::from_secs(2))).await,
            }
            round += 1;
        }
    }

    async fn open(&self, key: &str) -> Result<Option<Reader>, StoreError> {
        let counter = Attempts::default();
        let sent = self.client.get_object().bucket(&self.bucket).key(self.full(key));
        match sent.customize().interceptor(counter.clone()).send().await {
            Ok(answer) => {
                let size = answer.content_length().and_then(|size| u64::try_from(size).ok());
                Ok(Some(Reader { size, body: Box::new(answer.body.into_async_read()) }))
            }
            Err(error) if error.code() == Some("NoSuchKey") => Ok(None),
            Err(error) => Err(self.error("GetObject", key, counter.count(), &error)),
        }
    }

    async fn list_first(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectMeta>, StoreError> {
        let own = if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let mut found = Vec::new();
        let mut token = None;
        while found.len() < limit {
            let counter = Attempts::default();
            let page = i32::try_from(limit - found.len()).unwrap_or(i32::MAX).min(1000);
            let sent = self.client.list_objects_v2().bucket(&self.bucket).prefix(format!("{own}{prefix}"));
            let sent = sent.max_keys(page).set_continuation_token(token.take()).customize().interceptor(counter.clone());
            let answer = sent.send().await.map_err(|error| self.error("ListObjectsV2", prefix, counter.count(), &error))?;
            for object in answer.contents() {
                let Some(key) = object.key().and_then(|key| key.strip_prefix(&own)) else { continue };
                let written = object.last_modified().and_then(|at| Timestamp::new(at.secs(), 0).ok());
                found.push(ObjectMeta {
                    key: key.to_owned(),
                    etag: ETag(object.e_tag().unwrap_or_default().to_owned()),
                    size: object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                    last_modified: written.unwrap_or(Timestamp::UNIX_EPOCH),
                });
            }
            token = answer.next_continuation_token;
            if token.is_none() {
                break;
            }
        }
        Ok(found)
    }

    async fn put(&self, key: &str, bytes: Vec<u8>, condition: Condition) -> Result<ETag, WriteError> {
        let (mut attempts, mut conflicts) = (0, 0);
        // Whether an attempt of ours may have been applied without our knowing.
        let mut uncertain = false;
        loop {
            let counter = Attempts::default();
            let sent = self.client.put_object().bucket(&self.bucket).key(self.full(key)).content_type(content_type(key));
            let sent = sent.set_server_side_encryption(self.encryption().await).body(ByteStream::from(bytes.clone()));
            let sent = match &condition {
                Condition::Unconditional => sent,
                Condition::IfAbsent => sent.if_none_match("*"),
                Condition::IfMatch(etag) => sent.if_match(&etag.0),
            };
            let answer = sent.customize().interceptor(counter.clone()).send().await;
            attempts += counter.count();
            uncertain |= counter.count() > 1;
            let error = match answer {
                Ok(answer) => return Ok(ETag(answer.e_tag().unwrap_or_default().to_owned())),
                Err(error) => error,
            };
            match error.code() {
                // Without a condition such an answer is no conflict of ours.
                Some("PreconditionFailed" | "NoSuchKey") if condition != Condition::Unconditional => {
                    if uncertain && let Some(etag) = self.is_now(key, &bytes).await? {
                        return Ok(etag);
                    }
                    return Err(WriteError::Precondition { place: self.place(key) });
                }
                Some("ConditionalRequestConflict") if conflicts < MAX_CONFLICTS => {
                    tokio::time::sleep(backoff::delay(conflicts, Duration::from_millis(50), Duration::from_secs(2))).await;
                    conflicts += 1;
                }
                _ => return Err(self.error("PutObject", key, attempts, &error).into()),
            }
        }
    }

    async fn delete(&self, key: &str, if_match: Option<&ETag>) -> Result<(), WriteError> {
        let counter = Attempts::default();
        let sent = self.client.delete_object().bucket(&self.bucket).key(self.full(key));
        let sent = sent.set_if_match(if_match.map(|etag| etag.0.clone()));
        let Err(error) = sent.customize().interceptor(counter.clone()).send().await else { return Ok(()) };
        match error.code() {
            Some("NoSuchKey") => Ok(()),
            // Our own deletion, or another's, may have come first.
            Some("PreconditionFailed") if if_match.is_some() => match self.get(key).await? {
                None => Ok(()),
                Some(_) => Err(WriteError::Precondition { place: self.place(key) }),
            },
            _ => Err(self.error("DeleteObject", key, counter.count(), &error).into()),
        }
    }

    fn place(&self, key: &str) -> String {
        format!("s3://{}/{}", self.bucket, self.full(key))
    }
}

/// Opens S3 stores by address, for clusters' state stores.
#[derive(Debug, Clone)]
pub struct S3Stores {
    client: Client,
}

impl S3Stores {
    /// Stores behind this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl Stores for S3Stores {
    fn store(&self, place: &StateStoreUri) -> Arc<dyn ObjectStore> {
        Arc::new(S3Store::new(self.client.clone(), place.bucket(), place.prefix()).encrypting_like_kops())
    }
}

/// Counts the attempts the SDK makes for one request, which its errors do not tell.
#[derive(Debug, Clone, Default)]
struct Attempts(Arc<AtomicU32>);

impl Attempts {
    fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Intercept for Attempts {
    fn name(&self) -> &'static str {
        "KopslineAttempts"
    }

    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The reason of a failure in one line, and whether it is transient.
fn describe<E>(error: &SdkError<E>) -> (String, bool)
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => ("timed out".to_owned(), true),
        SdkError::DispatchFailure(failure) => {
            let text = failure.as_connector_error().map_or_else(|| "the request could not be sent".to_owned(), |error| chain(error));
            (text, failure.is_io() || failure.is_timeout())
        }
        SdkError::ResponseError(_) => (format!("the answer could not be read: {}", chain(error)), true),
        SdkError::ServiceError(context) => {
            let status = context.raw().status().as_u16();
            let code = context.err().code().unwrap_or("no error code");
            let message = context.err().message().unwrap_or("no message");
            let throttled = matches!(
                code,
                "SlowDown"
                    | "RequestTimeout"
                    | "RequestTimeTooSkewed"
                    | "Throttling"
                    | "ThrottlingException"
                    | "ConditionalRequestConflict"
                    | "OperationAborted"
            );
            (format!("{code}: {message} (HTTP {status})"), throttled || status >= 500 || status == 429)
        }
        _ => (chain(error), false),
    }
}

/// An error and its causes, each frame once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let frame = inner.to_string();
        if !text.ends_with(&frame) {
            text = format!("{text}: {frame}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use wiremock::matchers::{header, method, path, query_param, query_param_is_missing};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    fn store_at(uri: &str, prefix: &str) -> S3Store {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .credentials_provider(Credentials::new("id", "key", None, None, "test"))
            .endpoint_url(uri)
            .force_path_style(true)
            .retry_config(RetryConfig::standard().with_max_attempts(3).with_initial_backoff(Duration::from_millis(1)))
            .build();
        S3Store::new(Client::from_conf(config), "state", prefix)
    }

    fn failure(status: u16, code: &str) -> ResponseTemplate {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>because</Message></Error>");
        ResponseTemplate::new(status).set_body_raw(body, "application/xml")
    }

    fn done(etag: &str) -> ResponseTemplate {
        ResponseTemplate::new(200).insert_header("etag", etag)
    }

    async fn requests(server: &MockServer, wanted: &str) -> usize {
        server.received_requests().await.unwrap().iter().filter(|request| request.method.as_str() == wanted).count()
    }

    #[tokio::test]
    async fn reads_and_tells_missing_from_forbidden() {
        let server = MockServer::start().await;
        Mock::given(method("GET")).and(path("/state/team/a")).respond_with(done("\"1\"").set_body_string("text")).mount(&server).await;
        Mock::given(method("GET")).and(path("/state/team/none")).respond_with(failure(404, "NoSuchKey")).mount(&server).await;
        Mock::given(method("GET")).and(path("/state/team/secret")).respond_with(failure(403, "AccessDenied")).mount(&server).await;
        let store = store_at(&server.uri(), "team");
        assert_eq!(store.get("a").await.unwrap().unwrap(), Object { bytes: b"text".to_vec(), etag: ETag("\"1\"".into()) });
        assert!(store.get("none").await.unwrap().is_none());
        let error = store.get("secret").await.unwrap_err();
        assert_eq!(error.to_string(), "GetObject s3://state/team/secret failed after 1 attempt: AccessDenied: because (HTTP 403)");
        assert!(!error.is_transient());
        let mut text = String::new();
        let mut reader = store.open("a").await.unwrap().unwrap();
        reader.body.read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), reader.size), ("text", Some(4)));
    }

    #[tokio::test]
    async fn an_outage_is_retried_and_then_told_with_its_attempts() {
        let server = MockServer::start().await;
        Mock::given(method("GET")).respond_with(failure(503, "SlowDown")).mount(&server).await;
        let error = store_at(&server.uri(), "").get("a").await.unwrap_err();
        assert_eq!((error.attempts, error.is_transient()), (3, true), "{error}");
        assert_eq!(requests(&server, "GET").await, 3);
        drop(server);
        let error = store_at("http://127.0.0.1:1", "").get("a").await.unwrap_err();
        assert!(error.is_transient() && error.attempts == 3, "{error}");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_read_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            for body in ["who", "whole text"] {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await.unwrap();
                let answer = format!("HTTP/1.1 200 OK\r\netag: \"1\"\r\ncontent-length: 10\r\nconnection: close\r\n\r\n{body}");
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let object = store_at(&uri, "").get("a").await.unwrap().unwrap();
        assert_eq!(object.bytes, b"whole text");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn conditions_become_headers_and_their_failure_a_precondition() {
        let server = MockServer::start().await;
        Mock::given(method("PUT"))
            .and(path("/state/new.json"))
            .and(header("if-none-match", "*"))
            .and(header("content-type", "application/json"))
            .respond_with(done("\"2\""))
            .mount(&server)
            .await;
        Mock::given(method("PUT"))
            .and(path("/state/old"))
            .and(header("if-match", "\"1\""))
            .respond_with(failure(412, "PreconditionFailed"))
            .mount(&server)
            .await;
        Mock::given(method("PUT")).and(path("/state/gone")).respond_with(failure(404, "NoSuchKey")).mount(&server).await;
        let store = store_at(&server.uri(), "");
        assert_eq!(store.put("new.json", b"x".to_vec(), Condition::IfAbsent).await.unwrap(), ETag("\"2\"".into()));
        for key in ["old", "gone"] {
            let error = store.put(key, b"x".to_vec(), Condition::IfMatch(ETag("\"1\"".into()))).await.unwrap_err();
            assert!(matches!(&error, WriteError::Precondition { place } if *place == format!("s3://state/{key}")), "{error}");
        }
        assert_eq!(requests(&server, "GET").await, 0, "a plain refusal needs no reading back");
        let error = store.put("gone", b"x".to_vec(), Condition::Unconditional).await.unwrap_err();
        assert!(matches!(error, WriteError::Store(_)), "{error}");
    }

    #[tokio::test]
    async fn a_lost_answer_is_resolved_by_reading_back() {
        for (content, ours) in [("mine", true), ("theirs", false)] {
            let server = MockServer::start().await;
            Mock::given(method("PUT")).respond_with(failure(500, "InternalError")).up_to_n_times(1).mount(&server).await;
            Mock::given(method("PUT")).respond_with(failure(412, "PreconditionFailed")).mount(&server).await;
            Mock::given(method("GET")).respond_with(done("\"9\"").set_body_string(content)).mount(&server).await;
            let result = store_at(&server.uri(), "").put("a", b"mine".to_vec(), Condition::IfAbsent).await;
            assert_eq!(result.as_ref().ok(), ours.then(|| ETag("\"9\"".into())).as_ref(), "{result:?}");
            assert_eq!(requests(&server, "PUT").await, 2);
        }
    }

    #[tokio::test]
    async fn a_conflict_of_conditional_writes_is_tried_again() {
        let server = MockServer::start().await;
        Mock::given(method("PUT")).respond_with(failure(409, "ConditionalRequestConflict")).up_to_n_times(2).mount(&server).await;
        Mock::given(method("PUT")).respond_with(done("\"3\"")).mount(&server).await;
        let store = store_at(&server.uri(), "");
        assert!(store.put("a", b"x".to_vec(), Condition::IfAbsent).await.is_ok());
        assert_eq!(requests(&server, "PUT").await, 3);
    }

    #[tokio::test]
    async fn lists_all_pages_relative_to_the_prefix_up_to_a_limit() {
        let page = |keys: &[&str], next: Option<&str>| {
            let object = |key: &&str| {
                let rest = "<ETag>\"1\"</ETag><Size>7</Size><LastModified>2026-01-02T03:04:05.000Z</LastModified>";
                format!("<Contents><Key>team/{key}</Key>{rest}</Contents>")
            };
            let contents = keys.iter().map(object).collect::<Vec<_>>().concat();
            let next = next.map(|token| format!("<NextContinuationToken>{token}</NextContinuationToken>")).unwrap_or_default();
            ResponseTemplate::new(200).set_body_raw(format!("<ListBucketResult>{contents}{next}</ListBucketResult>"), "application/xml")
        };
        let server = MockServer::start().await;
        let listing = || Mock::given(method("GET")).and(query_param("list-type", "2")).and(query_param("prefix", "team/ig/"));
        listing()
            .and(query_param_is_missing("continuation-token"))
            .and(query_param("max-keys", "1000"))
            .respond_with(page(&["ig/a", "ig/b"], Some("t")))
            .mount(&server)
            .await;
        listing().and(query_param("continuation-token", "t")).respond_with(page(&["ig/c"], None)).mount(&server).await;
        listing().and(query_param("max-keys", "1")).respond_with(page(&["ig/a"], Some("t"))).mount(&server).await;
        let store = store_at(&server.uri(), "team");
        let found = store.list("ig/").await.unwrap();
        assert_eq!(found.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["ig/a", "ig/b", "ig/c"]);
        assert_eq!((found[0].size, found[0].last_modified), (7, "2026-01-02T03:04:05Z".parse().unwrap()));
        assert_eq!(store.list_first("ig/", 1).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn encrypts_as_kops_does() {
        let rule = "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>";
        let with_rule = ResponseTemplate::new(200).set_body_raw(rule, "application/xml");
        let without = failure(404, "ServerSideEncryptionConfigurationNotFoundError");
        for (answer, expected) in [(with_rule, None), (without, Some("AES256"))] {
            let server = MockServer::start().await;
            Mock::given(method("GET")).and(query_param("encryption", "")).respond_with(answer).mount(&server).await;
            Mock::given(method("PUT")).respond_with(done("\"1\"")).mount(&server).await;
            let store = store_at(&server.uri(), "").encrypting_like_kops();
            for _ in 0..2 {
                store.put("config", b"x".to_vec(), Condition::Unconditional).await.unwrap();
            }
            let received = server.received_requests().await.unwrap();
            let puts: Vec<_> = received.iter().filter(|request| request.method.as_str() == "PUT").collect();
            for put in &puts {
                let header = put.headers.get("x-amz-server-side-encryption").map(|value| value.to_str().unwrap());
                assert_eq!(header, expected);
            }
            assert_eq!((puts.len(), received.len()), (2, 3), "the bucket is asked once");
        }
    }

    #[tokio::test]
    async fn deletes_once_and_only_the_version_meant() {
        let server = MockServer::start().await;
        Mock::given(method("DELETE"))
            .and(path("/state/a"))
            .and(header("if-match", "\"1\""))
            .respond_with(ResponseTemplate::new(204))
            .mount(&server)
            .await;
        Mock::given(method("DELETE")).respond_with(failure(412, "PreconditionFailed")).mount(&server).await;
        Mock::given(method("GET")).and(path("/state/changed")).respond_with(done("\"2\"")).mount(&server).await;
        Mock::given(method("GET")).respond_with(failure(404, "NoSuchKey")).mount(&server).await;
        let store = store_at(&server.uri(), "");
        let etag = ETag("\"1\"".into());
        store.delete("a", Some(&etag)).await.unwrap();
        store.delete("gone", Some(&etag)).await.unwrap();
        assert!(matches!(store.delete("changed", Some(&etag)).await, Err(WriteError::Precondition { .. })));
    }
}
