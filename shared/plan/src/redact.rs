//! Taking secrets out of text. What is taken out leaves a short hash, so that a reader still sees whether it changed.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use sha2::{Digest, Sha256};

use crate::model::Plan;

/// Each pattern's group `secret` is what goes.
static SECRETS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    [
        // Keys and other PEM blocks that are not certificates.
        r"(?s-u)(?P<secret>-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z))",
        // Base64 of the same, as keysets and user data hold it ("-----BEGIN ").
        r"(?-u)(?P<secret>LS0tLS1CRUdJTi[A-Za-z0-9+/=]{20,})",
        // `password: x`, `S3_SECRET_ACCESS_KEY=x`, `"auth": "x"`, and the like.
        r#"(?i-u)[A-Za-z0-9_.-]*(?:password|passwd|secret_?access_?key|secret_?key|client_?secret|api_?key|private_?key|private_?material|access_?token|auth_?token|security_?token|bootstrap_?token|[_"]token|[_"]auth)["']?\s*[:=]\s*["']?(?P<secret>[^\s"',}]{3,})"#,
        r"(?i-u)\b(?:authorization:\s*)?(?:bearer|basic)\s+(?P<secret>[A-Za-z0-9._~+/=-]{8,})",
        // Access key ids, GitLab tokens, webhook signing tokens, JSON web tokens.
        r"(?-u)\b(?P<secret>(?:AKIA|ASIA)[A-Z0-9]{16})\b",
        r"(?-u)\b(?P<secret>gl[a-z]{2,4}-[A-Za-z0-9_-]{16,})",
        r"(?-u)(?P<secret>whsec_[A-Za-z0-9+/=_-]{8,})",
        r"(?-u)\b(?P<secret>eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+)",
        // `https://user:password@host`.
        r"(?-u)://[^\s/:@]+:(?P<secret>[^\s/@]{3,})@",
    ]
    .iter()
    .filter_map(|pattern| Regex::new(pattern).ok())
    .collect()
});

/// A text without the secrets in it: for everything that kops printed, before it reaches a record, a log or a person.
pub fn scrub(text: &str) -> String {
    let mut text = text.to_owned();
    for pattern in SECRETS.iter() {
        let clean = pattern.replace_all(&text, |found: &Captures<'_>| {
            let whole = found.get(0).map_or("", |all| all.as_str());
            let secret = found.name("secret").map_or("", |secret| secret.as_str());
            if secret.starts_with("<redacted") { whole.to_owned() } else { whole.replace(secret, &mark(secret)) }
        });
        text = clean.into_owned();
    }
    text
}

fn mark(secret: &str) -> String {
    let digest = hex::encode(Sha256::digest(secret));
    // One line of redaction for every line, so that diffs keep their shape.
    let lines = secret.lines().count().saturating_sub(1);
    format!("<redacted {}>{}", digest.get(..8).unwrap_or(&digest), "\n".repeat(lines))
}

/// A plan without the secrets in it.
#[must_use]
pub fn redact(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for field in plan.create.iter_mut().flat_map(|resource| &mut resource.fields) {
        field.value = scrub(&field.value);
    }
    for field in plan.modify.iter_mut().flat_map(|resource| &mut resource.fields) {
        // Together: a key may go over several lines.
        field.lines = scrub(&field.lines.join("\n")).split('\n').map(str::to_owned).collect();
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(SECRETS.len(), 9);
    }

    #[test]
    fn secrets_go_and_the_rest_stays() {
        let secret = "hunter2hunter2";
        for text in [
            format!("S3_SECRET_ACCESS_KEY={secret}"),
            format!("+ S3_SECRET_ACCESS_KEY: {secret}"),
            format!("\"auth\": \"{secret}\""),
            format!("password: {secret}"),
            format!("Authorization: Bearer {secret}"),
            format!("https://oauth2:{secret}@gitlab.example.com/x"),
            format!("-----BEGIN RSA PRIVATE KEY-----\n{secret}\n-----END RSA PRIVATE KEY-----"),
            format!("whsec_{secret}"),
            format!("glpat-{secret}abc"),
        ] {
            let clean = scrub(&text);
            assert!(!clean.contains("hunter2"), "{clean}");
            assert!(clean.contains("<redacted "), "{clean}");
            assert_eq!(clean.lines().count(), text.lines().count(), "{clean}");
        }
        let plain = "NodeupConfigHash: tmWngvdO7J88FVGGg3U2iM/N4UeCRG2jfVL4+7o6s0U=\nInstanceType t3.medium -> t3.large";
        assert_eq!(scrub(plain), plain);
    }

    #[test]
    fn a_change_of_a_secret_is_still_seen() {
        assert_ne!(scrub("password: first-one"), scrub("password: second-one"));
        let once = scrub("password: first-one");
        assert_eq!(scrub(&once), once);
    }

    proptest! {
        #[test]
        fn planted_secrets_never_survive(before in "[a-z \n]{0,40}", after in "[a-z \n]{0,40}", key in "[A-Za-z0-9+/]{24,60}") {
            let text = format!("{before}\nsecret_key: {key}\n{after}");
            prop_assert!(!scrub(&text).contains(&key));
        }

        #[test]
        fn never_panics(text in ".{0,200}") {
            let _ = scrub(&text);
        }
    }
}
