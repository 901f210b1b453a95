//! Who sent a delivery, decided on the raw bytes before anything is parsed.
//!
//! GitLab signs deliveries since 19.0, after the Standard Webhooks specification: HMAC-SHA256 over
//! `{webhook-id}.{webhook-timestamp}.{body}`, in `webhook-signature: v1,<base64>`, under a key given as `whsec_<base64>`.
//! Older ways send a secret in `X-Gitlab-Token`. From 19.0 on `webhook-id` and `webhook-timestamp` come with every delivery,
//! signed or not, so that only `webhook-signature` tells which way was meant.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderMap;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// How far a signed delivery's timestamp may be from now, in either direction: the convention of Standard Webhooks.
pub const TOLERANCE: Duration = Duration::from_mins(5);

/// The shortest signing key that Standard Webhooks allows, in bytes. GitLab itself makes 32.
const MIN_KEY_BYTES: usize = 24;

/// Which way a delivery must be authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only by signature; a right `X-Gitlab-Token` alone is not enough.
    Signed,
    /// Only by `X-Gitlab-Token`; a signature is not looked at.
    Token,
    /// By signature where one is present and a signing token is configured, else by `X-Gitlab-Token`: for the time of a
    /// migration. A wrong signature is never made good by a right token.
    Either,
}

/// A mode that is none of `signed`, `token` and `either`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to authenticate deliveries: use \"signed\", \"token\" or \"either\"")]
pub struct UnknownMode(String);

impl std::str::FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "signed" => Ok(Self::Signed),
            "token" => Ok(Self::Token),
            "either" => Ok(Self::Either),
            other => Err(UnknownMode(other.chars().take(40).collect())),
        }
    }
}

/// Secrets that cannot verify anything. Never shows a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadSecrets {
    /// The mode needs a signing token and none is configured.
    #[error("no signing token is configured: set the webhook's signing token, or authenticate by \"token\"")]
    NoSigningToken,
    /// The mode needs a token and none is configured.
    #[error("no secret token is configured: set the webhook's secret token, or authenticate by \"signed\"")]
    NoToken,
    /// Neither kind is configured.
    #[error("neither a signing token nor a secret token is configured: set the one that GitLab's webhook has")]
    Neither,
    /// A signing token is not `whsec_` and base64 of at least 24 bytes.
    #[error(
        "signing token number {0} is not \"whsec_\" followed by base64 of at least {MIN_KEY_BYTES} bytes: copy it from GitLab's webhook as it is"
    )]
    SigningToken(usize),
    /// A token is empty.
    #[error("secret token number {0} is empty: remove it or fill it in")]
    EmptyToken(usize),
}

/// Why a delivery was rejected: for logs, never for the sender. Carries nothing that was presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// A signature is required.
    #[error("it has no webhook-signature header, and only signed deliveries are accepted")]
    NoSignature,
    /// A header that the check needs is missing.
    #[error("its {0} header is missing")]
    Missing(&'static str),
    /// A header that the check needs came more than once, so that sender and receiver might read different ones.
    #[error("its {0} header came more than once")]
    Duplicate(&'static str),
    /// `webhook-timestamp` is not a number of seconds.
    #[error("its webhook-timestamp is not a number of seconds")]
    Timestamp,
    /// `webhook-timestamp` is further from now than the tolerance; positive in the past.
    #[error("its webhook-timestamp is {0} seconds before now, beyond the tolerance: a replay, or a wrong clock")]
    Stale(i64),
    /// No `v1` signature matches any configured signing token.
    #[error("no signature in its webhook-signature header matches a configured signing token")]
    Signature,
    /// The token matches none of those configured.
    #[error("its X-Gitlab-Token matches no configured secret token")]
    Token,
}

/// A delivery that is not what it says. Its text is the same for every reason, so that it may be sent back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unauthorized")]
pub struct Rejected(Reason);

impl Rejected {
    /// Why, for logs.
    pub fn reason(&self) -> Reason {
        self.0
    }
}

impl From<Reason> for Rejected {
    fn from(reason: Reason) -> Self {
        Self(reason)
    }
}

/// A delivery from a sender that knows a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    /// What makes this delivery itself, stable when GitLab sends it again: at most 128 letters, digits, `-` and `_`.
    ///
    /// `webhook-id`, else `Idempotency-Key`, else `X-Gitlab-Webhook-UUID`, else the body's SHA-256. (`X-Gitlab-Event-UUID`
    /// is shared by the deliveries of recursive hooks and is none.)
    pub delivery_id: String,
}

/// Verifies deliveries. Several secrets of a kind are all accepted, so that they can be rotated without a gap.
#[derive(Clone)]
pub struct Verifier {
    mode: Mode,
    /// Keyed once: what is left per delivery is a copy of the state.
    keys: Vec<Hmac<Sha256>>,
    /// Digests have one length: comparing them tells nothing of the tokens' lengths.
    tokens: Vec<[u8; 32]>,
    tolerance: Duration,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("mode", &self.mode)
            .field("signing_tokens", &self.keys.len())
            .field("tokens", &self.tokens.len())
            .field("tolerance", &self.tolerance)
            .finish()
    }
}

impl Verifier {
    /// A verifier with [`TOLERANCE`]. White space around secrets, such as a file's last line break, is dropped.
    pub fn new(mode: Mode, signing_tokens: &[SecretString], tokens: &[SecretString]) -> Result<Self, BadSecrets> {
        match mode {
            Mode::Signed if signing_tokens.is_empty() => return Err(BadSecrets::NoSigningToken),
            Mode::Token if tokens.is_empty() => return Err(BadSecrets::NoToken),
            Mode::Either if signing_tokens.is_empty() && tokens.is_empty() => return Err(BadSecrets::Neither),
            Mode::Signed | Mode::Token | Mode::Either => {}
        }
        let keys = signing_tokens.iter().zip(1..).map(|(token, number)| signing_key(token).ok_or(BadSecrets::SigningToken(number)));
        let tokens = tokens.iter().zip(1..).map(|(token, number)| match token.expose_secret().trim() {
            "" => Err(BadSecrets::EmptyToken(number)),
            token => Ok(Sha256::digest(token).into()),
        });
        Ok(Self { mode, keys: keys.collect::<Result<_, _>>()?, tokens: tokens.collect::<Result<_, _>>()?, tolerance: TOLERANCE })
    }

    /// The same verifier with another tolerance.
    #[must_use]
    pub fn with_tolerance(self, tolerance: Duration) -> Self {
        Self { tolerance, ..self }
    }

    /// Whether a delivery comes from GitLab, and which delivery it is. `raw_body` is what came over the wire.
    pub fn verify(&self, headers: &HeaderMap, raw_body: &[u8], now: Timestamp) -> Result<Authenticated, Rejected> {
        let signature = single(headers, "webhook-signature")?;
        match (self.mode, signature) {
            (Mode::Signed, None) => return Err(Reason::NoSignature.into()),
            (Mode::Signed, Some(signature)) => self.signed(signature, headers, raw_body, now)?,
            (Mode::Either, Some(signature)) if !self.keys.is_empty() => self.signed(signature, headers, raw_body, now)?,
            (Mode::Token | Mode::Either, _) => self.token(headers)?,
        }
        Ok(Authenticated { delivery_id: delivery_id(headers, raw_body)? })
    }

    fn signed(&self, signature: &[u8], headers: &HeaderMap, raw_body: &[u8], now: Timestamp) -> Result<(), Rejected> {
        let id = required(headers, "webhook-id")?;
        let timestamp = required(headers, "webhook-timestamp")?;
        let seconds = seconds(timestamp).ok_or(Reason::Timestamp)?;
        let age = now.as_second().saturating_sub(seconds);
        if age.unsigned_abs() > self.tolerance.as_secs() {
            return Err(Reason::Stale(age).into());
        }
        let candidates: Vec<Vec<u8>> =
            signature.split(|byte| *byte == b' ').filter_map(|entry| STANDARD.decode(entry.strip_prefix(b"v1,")?).ok()).collect();
        let mut matches = Choice::from(0);
        for key in &self.keys {
            let mut mac = key.clone();
            for part in [id, b".", timestamp, b".", raw_body] {
                mac.update(part);
            }
            let expected = mac.finalize().into_bytes();
            for candidate in &candidates {
                matches |= expected.as_slice().ct_eq(candidate);
            }
        }
        if matches.into() { Ok(()) } else { Err(Reason::Signature.into()) }
    }

    fn token(&self, headers: &HeaderMap) -> Result<(), Rejected> {
        let presented: [u8; 32] = Sha256::digest(required(headers, "x-gitlab-token")?).into();
        let mut matches = Choice::from(0);
        for token in &self.tokens {
            matches |= token.ct_eq(&presented);
        }
        if matches.into() { Ok(()) } else { Err(Reason::Token.into()) }
    }
}

fn signing_key(token: &SecretString) -> Option<Hmac<Sha256>> {
    let key = STANDARD.decode(token.expose_secret().trim().strip_prefix("whsec_")?).ok()?;
    if key.len() < MIN_KEY_BYTES {
        return None;
    }
    Hmac::new_from_slice(&key).ok()
}

/// The value of a header that may come once or not at all.
fn single<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a [u8]>, Reason> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Reason::Duplicate(name));
    }
    Ok(first.map(http::HeaderValue::as_bytes))
}

fn required<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a [u8], Reason> {
    single(headers, name)?.filter(|value| !value.is_empty()).ok_or(Reason::Missing(name))
}

/// Seconds since 1970 as plain digits: no sign, no space, no fraction, which other readers might take otherwise.
fn seconds(text: &[u8]) -> Option<i64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn delivery_id(headers: &HeaderMap, raw_body: &[u8]) -> Result<String, Reason> {
    for name in ["webhook-id", "idempotency-key", "x-gitlab-webhook-uuid"] {
        let Some(id) = single(headers, name)?.filter(|id| !id.is_empty()) else { continue };
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        // Anything else is a sender's own invention, and the id may become part of a key or a path.
        return Ok(match std::str::from_utf8(id) {
            Ok(text) if text.len() <= 128 && id.iter().all(plain) => text.to_owned(),
            _ => digest(id),
        });
    }
    Ok(digest(raw_body))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256-{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    /// The reference vector of the Standard Webhooks libraries (their test `sign function works`).
    const VECTOR_TOKEN: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const VECTOR_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const VECTOR_SECONDS: i64 = 1_614_265_330;
    const VECTOR_BODY: &[u8] = br#"{"test": 2432232314}"#;
    const VECTOR_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    /// The example of GitLab's own description of signing tokens: 32 bytes.
    const OTHER_TOKEN: &str = "whsec_dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3Q=";
    const TOKEN: &str = "an older secret";

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn signed_headers(signature: &str) -> HeaderMap {
        headers(&[("webhook-id", VECTOR_ID), ("webhook-timestamp", "1614265330"), ("webhook-signature", signature)])
    }

    fn secrets(texts: &[&str]) -> Vec<SecretString> {
        texts.iter().map(|text| SecretString::from(*text)).collect()
    }

    fn verifier(mode: Mode, signing: &[&str], tokens: &[&str]) -> Verifier {
        Verifier::new(mode, &secrets(signing), &secrets(tokens)).unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(VECTOR_SECONDS).unwrap()
    }

    fn reason(result: Result<Authenticated, Rejected>) -> Reason {
        result.unwrap_err().reason()
    }

    #[test]
    fn the_reference_vector_verifies() {
        let verifier = verifier(Mode::Signed, &[VECTOR_TOKEN], &[]);
        let seen = verifier.verify(&signed_headers(VECTOR_SIGNATURE), VECTOR_BODY, now()).unwrap();
        assert_eq!(seen.delivery_id, VECTOR_ID);
    }

    #[test]
    fn every_signed_part_counts() {
        let verifier = verifier(Mode::Signed, &[VECTOR_TOKEN], &[]);
        let check = |id: &str, timestamp: &str, body: &[u8]| {
            let headers = headers(&[("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", VECTOR_SIGNATURE)]);
            reason(verifier.verify(&headers, body, now()))
        };
        assert_eq!(check("msg_other", "1614265330", VECTOR_BODY), Reason::Signature);
        assert_eq!(check(VECTOR_ID, "1614265331", VECTOR_BODY), Reason::Signature);
        assert_eq!(check(VECTOR_ID, "1614265330", br#"{"test":2432232314}"#), Reason::Signature);
    }

    #[test]
    fn several_signatures_and_several_tokens() {
        let both = verifier(Mode::Signed, &[OTHER_TOKEN, VECTOR_TOKEN], &[]);
        let wrong = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        for signature in [
            VECTOR_SIGNATURE.to_owned(),
            format!("{wrong} {VECTOR_SIGNATURE}"),
            format!("{VECTOR_SIGNATURE} {wrong}"),
            format!("v1a,bm90IGZvciB1cw== v1,not-base64 {VECTOR_SIGNATURE}"),
        ] {
            assert!(both.verify(&signed_headers(&signature), VECTOR_BODY, now()).is_ok(), "{signature}");
        }
        let bare = VECTOR_SIGNATURE.trim_start_matches("v1,");
        for signature in [wrong.to_owned(), format!("v2,{bare}"), bare.to_owned(), "v1,".into(), " ".into(), format!("{VECTOR_SIGNATURE},")]
        {
            assert_eq!(reason(both.verify(&signed_headers(&signature), VECTOR_BODY, now())), Reason::Signature, "{signature}");
        }
        let only_other = verifier(Mode::Signed, &[OTHER_TOKEN], &[]);
        assert_eq!(reason(only_other.verify(&signed_headers(VECTOR_SIGNATURE), VECTOR_BODY, now())), Reason::Signature);
    }

    #[test]
    fn timestamps_in_both_directions() {
        let verifier = verifier(Mode::Signed, &[VECTOR_TOKEN], &[]);
        let at = |offset: i64| {
            let now = Timestamp::from_second(VECTOR_SECONDS + offset).unwrap();
            verifier.verify(&signed_headers(VECTOR_SIGNATURE), VECTOR_BODY, now)
        };
        for inside in [-300, -1, 0, 300] {
            assert!(at(inside).is_ok(), "{inside}");
        }
        for outside in [-86_400, -301, 301, 86_400] {
            assert_eq!(reason(at(outside)), Reason::Stale(outside));
        }
        let longer = verifier.clone().with_tolerance(Duration::from_secs(400));
        assert!(
            longer.verify(&signed_headers(VECTOR_SIGNATURE), VECTOR_BODY, Timestamp::from_second(VECTOR_SECONDS + 400).unwrap()).is_ok()
        );
        for bad in ["soon", "+1614265330", " 1614265330", "-1614265330", "1614265330.0", "99999999999999999999"] {
            let headers = headers(&[("webhook-id", "a"), ("webhook-timestamp", bad), ("webhook-signature", VECTOR_SIGNATURE)]);
            assert_eq!(reason(verifier.verify(&headers, VECTOR_BODY, now())), Reason::Timestamp, "{bad}");
        }
        let far = headers(&[("webhook-id", "a"), ("webhook-timestamp", "9223372036854775807"), ("webhook-signature", VECTOR_SIGNATURE)]);
        assert!(matches!(reason(verifier.verify(&far, VECTOR_BODY, now())), Reason::Stale(_)));
    }

    #[test]
    fn headers_missing_or_repeated() {
        let verifier = verifier(Mode::Signed, &[VECTOR_TOKEN], &[]);
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            let mut missing = signed_headers(VECTOR_SIGNATURE);
            missing.remove(name);
            let expected = if name == "webhook-signature" { Reason::NoSignature } else { Reason::Missing(name) };
            assert_eq!(reason(verifier.verify(&missing, VECTOR_BODY, now())), expected);

            let mut twice = signed_headers(VECTOR_SIGNATURE);
            let value = twice[name].clone();
            twice.append(name, value);
            assert_eq!(reason(verifier.verify(&twice, VECTOR_BODY, now())), Reason::Duplicate(name));
        }
    }

    #[test]
    fn the_mode_and_the_signature_header_select_the_way() {
        let token_only = headers(&[("X-Gitlab-Token", TOKEN), ("webhook-id", "id-1"), ("webhook-timestamp", "1")]);
        let mut signed = signed_headers(VECTOR_SIGNATURE);
        let mut forged = signed_headers("v1,AAAA");
        for map in [&mut signed, &mut forged] {
            map.insert("x-gitlab-token", HeaderValue::from_static(TOKEN));
        }
        let mut wrong_token = signed.clone();
        wrong_token.insert("x-gitlab-token", HeaderValue::from_static("wrong"));

        let check = |mode, headers: &HeaderMap| {
            verifier(mode, &[VECTOR_TOKEN], &[TOKEN]).verify(headers, VECTOR_BODY, now()).map_err(|rejected| rejected.reason())
        };
        // A GitLab that was upgraded sends webhook-id with an unsigned delivery: the token must still do.
        assert_eq!(check(Mode::Either, &token_only).unwrap().delivery_id, "id-1");
        assert!(check(Mode::Token, &token_only).is_ok());
        assert_eq!(check(Mode::Signed, &token_only), Err(Reason::NoSignature));

        assert!(check(Mode::Signed, &signed).is_ok());
        assert!(check(Mode::Either, &wrong_token).is_ok());
        assert_eq!(check(Mode::Token, &wrong_token), Err(Reason::Token));

        // A right token does not make a wrong signature good.
        assert_eq!(check(Mode::Either, &forged), Err(Reason::Signature));
        assert_eq!(check(Mode::Signed, &forged), Err(Reason::Signature));
        assert!(check(Mode::Token, &forged).is_ok());

        // GitLab was given its signing token first: until ours follows, the token decides.
        assert!(verifier(Mode::Either, &[], &[TOKEN]).verify(&signed, VECTOR_BODY, now()).is_ok());
        // And the other way round: without a token of ours, none is right.
        assert_eq!(reason(verifier(Mode::Either, &[VECTOR_TOKEN], &[]).verify(&token_only, VECTOR_BODY, now())), Reason::Token);
    }

    #[test]
    fn tokens_are_compared_whole() {
        let verifier = verifier(Mode::Token, &[], &["first", TOKEN]);
        let check = |token: &str| verifier.verify(&headers(&[("X-Gitlab-Token", token)]), b"{}", now());
        assert!(check("first").is_ok() && check(TOKEN).is_ok());
        for wrong in ["firs", "first ", "firstx", "First", "an older secre"] {
            assert_eq!(reason(check(wrong)), Reason::Token, "{wrong:?}");
        }
        assert_eq!(reason(check("")), Reason::Missing("x-gitlab-token"));
        assert_eq!(reason(verifier.verify(&HeaderMap::new(), b"{}", now())), Reason::Missing("x-gitlab-token"));
        let twice = headers(&[("X-Gitlab-Token", TOKEN), ("X-Gitlab-Token", TOKEN)]);
        assert_eq!(reason(verifier.verify(&twice, b"{}", now())), Reason::Duplicate("x-gitlab-token"));
    }

    #[test]
    fn delivery_ids_in_their_order() {
        let verifier = verifier(Mode::Token, &[], &[TOKEN]);
        let all = [("webhook-id", "w"), ("Idempotency-Key", "i"), ("X-Gitlab-Webhook-UUID", "u")];
        let id = |pairs: &[(&str, &str)]| {
            let mut map = headers(pairs);
            map.insert("x-gitlab-token", HeaderValue::from_static(TOKEN));
            verifier.verify(&map, b"{}", now()).unwrap().delivery_id
        };
        assert_eq!(id(&all), "w");
        assert_eq!(id(&all[1..]), "i");
        assert_eq!(id(&all[2..]), "u");
        assert_eq!(id(&[("X-Gitlab-Event-UUID", "shared")]), "sha256-44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
        assert!(id(&[("webhook-id", "../../runs/x")]).starts_with("sha256-"));
        assert!(id(&[("webhook-id", &"x".repeat(129))]).starts_with("sha256-"));
        assert_ne!(id(&[("webhook-id", "a/b")]), id(&[("webhook-id", "a/c")]));
    }

    #[test]
    fn secrets_that_cannot_work_are_refused() {
        let new = |mode, signing: &[&str], tokens: &[&str]| Verifier::new(mode, &secrets(signing), &secrets(tokens)).unwrap_err();
        assert_eq!(new(Mode::Signed, &[], &[TOKEN]), BadSecrets::NoSigningToken);
        assert_eq!(new(Mode::Token, &[VECTOR_TOKEN], &[]), BadSecrets::NoToken);
        assert_eq!(new(Mode::Either, &[], &[]), BadSecrets::Neither);
        assert_eq!(new(Mode::Token, &[], &[TOKEN, " \n"]), BadSecrets::EmptyToken(2));
        for bad in ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_not base64!"] {
            let error = new(Mode::Signed, &[VECTOR_TOKEN, bad], &[]);
            assert_eq!(error, BadSecrets::SigningToken(2), "{bad}");
        }
        assert!(Verifier::new(Mode::Signed, &secrets(&[&format!("{VECTOR_TOKEN}\n")]), &[]).is_ok());
        assert!("signed".parse::<Mode>().is_ok() && "Signed".parse::<Mode>().is_err());
    }

    #[test]
    fn nothing_is_given_away() {
        let verifier = verifier(Mode::Either, &[VECTOR_TOKEN], &[TOKEN]);
        let rejected = [
            verifier.verify(&headers(&[("X-Gitlab-Token", "presented-secret")]), b"{}", now()).unwrap_err(),
            verifier.verify(&signed_headers("v1,presented-secret"), b"{}", now()).unwrap_err(),
            verifier.verify(&HeaderMap::new(), b"{}", now()).unwrap_err(),
        ];
        for rejected in rejected {
            assert_eq!(rejected.to_string(), "unauthorized");
            let shown = format!("{rejected:?} {}", rejected.reason());
            assert!(!shown.contains("presented-secret") && !shown.contains(TOKEN), "{shown}");
        }
        let shown = format!("{verifier:?}");
        assert!(!shown.contains("MfKQ9r8") && !shown.contains(TOKEN), "{shown}");
    }

    fn header_map() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
        let name = prop_oneof![
            Just("webhook-id".to_owned()),
            Just("webhook-timestamp".to_owned()),
            Just("webhook-signature".to_owned()),
            Just("idempotency-key".to_owned()),
            Just("x-gitlab-token".to_owned()),
            Just("x-gitlab-webhook-uuid".to_owned()),
            "[a-z-]{1,12}",
        ];
        let value = prop_oneof![
            Just(b"1614265330".to_vec()),
            Just(VECTOR_SIGNATURE.as_bytes().to_vec()),
            Just(b"v1,".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..80),
        ];
        proptest::collection::vec((name, value), 0..10)
    }

    proptest! {
        #[test]
        fn no_headers_and_body_pass_or_panic(pairs in header_map(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut map = HeaderMap::new();
            for (name, value) in &pairs {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
                }
            }
            for mode in [Mode::Signed, Mode::Token, Mode::Either] {
                prop_assert!(verifier(mode, &[OTHER_TOKEN], &[TOKEN]).verify(&map, &body, now()).is_err());
            }
            if let Ok(id) = delivery_id(&map, &body) {
                prop_assert!((1..=128).contains(&id.len()));
                prop_assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
            }
        }

        #[test]
        fn what_is_signed_verifies_and_one_changed_byte_does_not(
            key in proptest::collection::vec(any::<u8>(), 24..65),
            id in "[a-zA-Z0-9-]{1,64}",
            body in proptest::collection::vec(any::<u8>(), 1..300),
            position in any::<prop::sample::Index>(),
        ) {
            let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
            mac.update(format!("{id}.{VECTOR_SECONDS}.").as_bytes());
            mac.update(&body);
            let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
            let seconds = VECTOR_SECONDS.to_string();
            let map = headers(&[("webhook-id", &id), ("webhook-timestamp", &seconds), ("webhook-signature", &signature)]);
            let verifier = verifier(Mode::Signed, &[&format!("whsec_{}", STANDARD.encode(&key))], &[]);
            prop_assert_eq!(verifier.verify(&map, &body, now()).unwrap().delivery_id, id);
            let mut changed = body.clone();
            changed[position.index(body.len())] ^= 1;
            prop_assert_eq!(reason(verifier.verify(&map, &changed, now())), Reason::Signature);
        }
    }
}
