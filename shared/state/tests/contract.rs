//! The contract that every store keeps, checked on the one in memory and, where there is one, on a real S3 API.
//!
//! `KOPSLINE_TEST_AWS_ENV` names a JSON file with the environment of an emulated AWS (`AWS_ENDPOINT_URL` and so on);
//! without it only the store in memory is checked.

// The lints' exception for tests does not reach helper functions of integration tests.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use futures::future::join_all;
use kopsline_state::testing::MemoryStore;
use kopsline_state::{Condition, ETag, ObjectStore, S3Store, WriteError};

async fn check(store: Arc<dyn ObjectStore>) {
    assert!(store.get("a/x").await.unwrap().is_none());
    store.delete("a/x", None).await.unwrap();

    let first = store.put("a/x", b"1".to_vec(), Condition::IfAbsent).await.unwrap();
    assert!(matches!(store.put("a/x", b"2".to_vec(), Condition::IfAbsent).await, Err(WriteError::Precondition { .. })));
    let found = store.get("a/x").await.unwrap().unwrap();
    assert_eq!((found.bytes.as_slice(), &found.etag), (b"1".as_slice(), &first));

    let second = store.put("a/x", b"2".to_vec(), Condition::IfMatch(first.clone())).await.unwrap();
    assert_ne!(first, second);
    assert!(matches!(store.put("a/x", b"3".to_vec(), Condition::IfMatch(first.clone())).await, Err(WriteError::Precondition { .. })));
    let none = ETag("\"0\"".into());
    assert!(matches!(store.put("a/none", b"3".to_vec(), Condition::IfMatch(none)).await, Err(WriteError::Precondition { .. })));
    store.put("a/x", b"3".to_vec(), Condition::Unconditional).await.unwrap();

    let writers = (0..16).map(|n| {
        let store = Arc::clone(&store);
        async move { store.put("race", n.to_string().into_bytes(), Condition::IfAbsent).await.is_ok() }
    });
    assert_eq!(join_all(writers).await.into_iter().filter(|won| *won).count(), 1, "exactly one of many creates");

    for n in 0..25 {
        store.put(&format!("list/{n:02}"), Vec::new(), Condition::Unconditional).await.unwrap();
    }
    let keys: Vec<_> = store.list("list/").await.unwrap().into_iter().map(|object| object.key).collect();
    assert_eq!(keys.len(), 25);
    assert!(keys.is_sorted());
    assert_eq!(store.list_first("list/", 3).await.unwrap().len(), 3);
    assert_eq!(store.list("list/0").await.unwrap().len(), 10);

    store.delete("a/x", None).await.unwrap();
    assert!(store.get("a/x").await.unwrap().is_none());
}

#[tokio::test]
async fn in_memory() {
    check(Arc::new(MemoryStore::default().below("some/prefix"))).await;
}

#[tokio::test]
async fn on_a_real_api() {
    let Some(file) = std::env::var_os("KOPSLINE_TEST_AWS_ENV") else {
        eprintln!("skipped: KOPSLINE_TEST_AWS_ENV is not set");
        return;
    };
    let env: BTreeMap<String, String> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(env["AWS_REGION"].clone()))
        .credentials_provider(Credentials::new(&env["AWS_ACCESS_KEY_ID"], &env["AWS_SECRET_ACCESS_KEY"], None, None, "test"))
        .endpoint_url(&env["AWS_ENDPOINT_URL"])
        .force_path_style(true)
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    let bucket = format!("kopsline-contract-{}", std::process::id());
    client.create_bucket().bucket(&bucket).set_create_bucket_configuration(location(&env["AWS_REGION"])).send().await.unwrap();
    check(Arc::new(S3Store::new(client, bucket, "some/prefix").encrypting_like_kops())).await;
}

/// S3 knows no constraint of the name us-east-1: it is where buckets without one are.
fn location(region: &str) -> Option<aws_sdk_s3::types::CreateBucketConfiguration> {
    (region != "us-east-1").then(|| aws_sdk_s3::types::CreateBucketConfiguration::builder().location_constraint(region.into()).build())
}
