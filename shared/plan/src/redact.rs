//! Taking secrets out of text. What is taken out leaves a short hash, so that a reader still sees whether it changed.
//!
//! The rules err on the side of hiding: a hidden harmless value costs a look into the manifests, a shown secret costs a
//! rotation. Every rule keeps the number of lines, so diffs keep their shape.

use std::sync::LazyLock;

use regex_lite::Regex;
use sha2::{Digest, Sha256};

use crate::model::{ModifiedField, Plan};

const MARK: &str = "<redacted sha256:";

/// Secrets that are known by their own form; the first group is what goes.
const FORMS: &[&str] = &[
    // A private key on one line, its line breaks escaped.
    r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY.*-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----)",
    // Base64 of "-----BEGIN ", as keysets hold keys.
    r"(LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]*)",
    // JSON web tokens.
    r"\b(eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?)",
    // AWS access key ids.
    r"\b((?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16})\b",
    // Tokens of GitLab, GitHub, Slack, Google, npm, Vault and Docker; signing secrets of webhooks.
    r"\b(gl[a-z]{2,6}-[A-Za-z0-9_.-]{16,})",
    r"\b((?:gh[oprsu]|github_pat)_[A-Za-z0-9_]{20,})",
    r"\b(xox[a-z]-[A-Za-z0-9-]{10,})",
    r"\b(AIza[A-Za-z0-9_-]{30,})",
    r"\b((?:npm_|hvs\.|dckr_pat_|sk_live_|sk-)[A-Za-z0-9_-]{16,})",
    r"\b(whsec_[A-Za-z0-9+/=_-]{8,})",
    // https://user:password@host
    r#"://([^/\s@"'<>]+)@"#,
    // Authorization headers.
    r"(?i)\b(?:bearer|basic)\s+([A-Za-z0-9._~+/=-]{16,})",
    // Command lines: `--token x`, `-u user:password`.
    r#"--[A-Za-z-]*(?:password|passwd|passphrase|token|secret|api-key|access-key|secret-key|credentials?)[ ]+["']?([^\s"'<-][^\s"']*)"#,
    r#"(?:^|\s)(?:-u|--user)[ =]["']?([^\s"':<]+:[^\s"']+)"#,
];

/// The patterns, compiled. They are constants, and a test proves that each of them compiles.
static FORMS_COMPILED: LazyLock<Vec<Regex>> = LazyLock::new(|| FORMS.iter().filter_map(|form| Regex::new(form).ok()).collect());

/// A name and what separates it from its value: `name: `, `"name":`, `NAME=`, and kOps' tab.
const KEY: &str = r#"([A-Za-z_][A-Za-z0-9_.-]*)\\?["']?([ ]*:[ ]*|[ ]*=[ ]*|[ ]*\t[ ]*)"#;

/// A run of base64, of either alphabet.
const BASE64: &str = r"[A-Za-z0-9+/_-]{7,}={0,2}";

/// `AutoscalingGroup`, `NTHLifecycleHook2`: the humps of words, not of chance.
const CAMEL: &str = "^[A-Z]*[a-z]*(?:[A-Z][a-z]{2,})*[0-9]*$";

static KEY_COMPILED: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(KEY).ok());
static CAMEL_COMPILED: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(CAMEL).ok());
static BASE64_COMPILED: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(BASE64).ok());

/// A text without the secrets in it: for everything that kOps printed, before it reaches a record, a log or a person.
///
/// It works line by line, keeps the number of lines, and changes nothing in a text that it has been through.
pub fn scrub(text: &str) -> String {
    let lines: Vec<&str> = text.split('\n').collect();
    scrub_lines(&lines).join("\n")
}

/// A plan without the secrets in it.
///
/// Of user data only what kOps itself writes by name is kept: anything else there is the user's, and scripts hold
/// secrets in every form. Make the digest before: it has to see secrets change.
#[must_use]
pub fn redact(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for resource in &mut plan.create {
        let secret = holds_secrets(&resource.id);
        for field in &mut resource.fields {
            field.value = if secret || is_hidden_field(&field.name) { each_line(&field.value, hide) } else { scrub(&field.value) };
        }
    }
    for resource in &mut plan.modify {
        let secret = holds_secrets(&resource.id);
        for field in &mut resource.fields {
            field.lines = redact_change(field, secret);
        }
    }
    for item in plan.delete.iter_mut().chain(&mut plan.prune) {
        item.item = scrub(&item.item);
    }
    plan
}

/// kOps' task that is a secret itself (`upup/pkg/fi/fitasks/secret.go`). Key pairs print only subjects and signers.
fn holds_secrets(id: &str) -> bool {
    id.starts_with("Secret/") || id.starts_with("MirrorSecrets/")
}

fn is_hidden_field(name: &str) -> bool {
    name == "UserData" || is_sensitive(name)
}

fn redact_change(field: &ModifiedField, secret: bool) -> Vec<String> {
    let lines: Vec<&str> = field.lines.iter().map(String::as_str).collect();
    if field.diff && field.name == "UserData" {
        return user_data(&lines);
    }
    if !(secret || is_hidden_field(&field.name)) {
        return scrub_lines(&lines);
    }
    let whole = |line: &&str| {
        let sides: Vec<String> = line.split(" -> ").map(hide).collect();
        sides.join(" -> ")
    };
    lines.iter().map(|line| if field.diff { hide(line) } else { whole(line) }).collect()
}

/// What kOps writes into user data by name: its bootstrap script's variables and `BootConfig` (kOps 1.36
/// `pkg/model/resources/nodeup.go`, `pkg/apis/nodeup/config.go`).
const USER_DATA: &[&str] = &[
    "APIServerIPs",
    "CloudProvider",
    "ClusterName",
    "ConfigBase",
    "ConfigServer",
    "InstanceGroupName",
    "InstanceGroupRole",
    "NODEUP_HASH_AMD64",
    "NODEUP_HASH_ARM64",
    "NODEUP_URL_AMD64",
    "NODEUP_URL_ARM64",
    "NodeupConfigHash",
    "__EOF_KUBE_ENV",
];

fn user_data(lines: &[&str]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for line in lines {
        let (_, content, _) = parts(line);
        let name = content.split([':', '=']).next().unwrap_or_default();
        if content.is_empty() || USER_DATA.contains(&name) || *line == "..." {
            if *line != "..." || out.last().is_none_or(|last| last != "...") {
                out.push(scrub_line(line));
            }
        } else if line.starts_with(['+', '-']) {
            out.push(hide(line));
        } else if out.last().is_none_or(|last| last != "...") {
            // Context serves only to find one's way: leave it out as kOps leaves out what is farther away.
            out.push("...".to_owned());
        }
    }
    out
}

fn each_line(text: &str, change: fn(&str) -> String) -> String {
    text.split('\n').map(change).collect::<Vec<_>>().join("\n")
}

/// The line's indentation and markers, what it says, and the white space after that.
fn parts(line: &str) -> (&str, &str, &str) {
    let rest = line.trim_start_matches([' ', '\t', '+']);
    // `- ` is a diff's marker or a list's; `-----BEGIN` is neither.
    let mut rest = rest;
    while let Some(after) = rest.strip_prefix("- ").or_else(|| rest.strip_prefix("-\t")) {
        rest = after.trim_start_matches([' ', '\t', '+']);
    }
    let content = rest.trim_end();
    let head = line.len() - rest.len();
    let (Some(head), Some(tail)) = (line.get(..head), line.get(head + content.len()..)) else { return ("", line, "") };
    (head, content, tail)
}

/// The line with all that it says hidden.
fn hide(line: &str) -> String {
    let (head, content, tail) = parts(line);
    format!("{head}{}{tail}", mark(content))
}

/// The marker for a secret; for what says nothing (or is a marker) that itself.
fn mark(secret: &str) -> String {
    if secret.is_empty() || secret == "..." || says_nothing(secret) {
        return secret.to_owned();
    }
    let digest = hex::encode(Sha256::digest(secret));
    format!("{MARK}{}>", digest.get(..8).unwrap_or(&digest))
}

/// Values that are no secret whatever their name is.
fn says_nothing(value: &str) -> bool {
    let marker = value
        .strip_prefix(MARK)
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let variable = value
        .strip_prefix('$')
        .map(|name| name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name))
        .is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'));
    marker
        || variable
        || ["<nil>", "<resource>", "true", "false", "null", "nil", "none", "~"].contains(&value.to_ascii_lowercase().as_str())
}

fn scrub_lines(lines: &[&str]) -> Vec<String> {
    let mut hidden = vec![false; lines.len()];
    mark_keys(lines, &mut hidden);
    mark_blocks(lines, &mut hidden);
    mark_manifests(lines, &mut hidden);
    lines.iter().zip(hidden).map(|(line, hidden)| if hidden { hide(line) } else { scrub_line(line) }).collect()
}

fn set(hidden: &mut [bool], at: usize) {
    if let Some(flag) = hidden.get_mut(at) {
        *flag = true;
    }
}

/// Private keys over several lines. A diff may show only the end of one, and a gap may hide where it ends.
fn mark_keys(lines: &[&str], hidden: &mut [bool]) {
    let mut inside = false;
    for (at, line) in lines.iter().enumerate() {
        let content = parts(line).1;
        let key = content.contains("PRIVATE KEY");
        let opens = key && content.rfind("-----BEGIN ") > content.rfind("-----END ");
        let closes = key && content.find("-----END ").is_some_and(|end| content.find("-----BEGIN ").is_none_or(|begin| end < begin));
        if opens || closes {
            inside = opens;
            set(hidden, at);
        }
        if closes {
            for (back, line) in lines.iter().enumerate().take(at).rev() {
                if !is_key_body(parts(line).1) {
                    break;
                }
                set(hidden, back);
            }
        } else if inside && !opens {
            inside = is_key_body(content) || content.is_empty() || content == "..." || content.starts_with(MARK);
            if inside {
                set(hidden, at);
            }
        }
    }
}

fn is_key_body(content: &str) -> bool {
    let body = content.trim_matches(['"', '\'', ',', '\\']);
    let header = body.starts_with("Proc-Type:") || body.starts_with("DEK-Info:");
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    header || (!body.is_empty() && body.chars().all(base64))
}

/// The lines below `password: |`.
fn mark_blocks(lines: &[&str], hidden: &mut [bool]) {
    let mut block: Option<usize> = None;
    for (at, line) in lines.iter().enumerate() {
        let (head, content, _) = parts(line);
        if block.is_some_and(|indent| content.is_empty() || head.len() > indent) {
            set(hidden, at);
            continue;
        }
        let opens = content.split_once(':').is_some_and(|(name, value)| {
            let value = value.trim();
            let mark = value.trim_end_matches(['+', '-', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
            is_sensitive(name.trim_matches(['"', '\''])) && (mark == "|" || mark == ">")
        });
        block = opens.then_some(head.len());
    }
}

/// The values of Kubernetes Secrets. kOps writes keys in alphabetical order, `data` before `kind`, so the whole document
/// is looked at first.
fn mark_manifests(lines: &[&str], hidden: &mut [bool]) {
    let boundary = |line: &str| {
        let content = parts(line).1;
        content == "..." || content.starts_with("---") && !content.contains("BEGIN") || is_task(line)
    };
    let mut start = 0;
    for document in lines.split_inclusive(|line| boundary(line)) {
        let secret = document.iter().any(|line| {
            let content = parts(line).1;
            content == "kind: Secret" || content == "\"kind\": \"Secret\"," || content.starts_with("stringData:")
        });
        if secret {
            for (at, line) in document.iter().enumerate() {
                let content = parts(line).1;
                let name = content.split(':').next().unwrap_or_default().trim_matches(['"', '\'']);
                let plain = ["apiVersion", "kind", "metadata", "name", "namespace", "type", "data", "stringData", "labels", "annotations"];
                if !(boundary(line) || plain.contains(&name)) {
                    set(hidden, start + at);
                }
            }
        }
        start += document.len();
    }
}

/// A resource's first line in kOps' dry run.
fn is_task(line: &str) -> bool {
    line.strip_prefix("  ")
        .and_then(|id| id.split_once('/'))
        .is_some_and(|(kind, _)| !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn scrub_line(line: &str) -> String {
    let mut line = line.to_owned();
    for form in FORMS_COMPILED.iter() {
        let spans = form.captures_iter(&line).filter_map(|found| found.get(1)).map(|group| group.range()).collect();
        line = hide_spans(&line, spans);
    }
    let spans = values_of_sensitive_keys(&line);
    line = hide_spans(&line, spans);
    let spans = BASE64_COMPILED
        .iter()
        .flat_map(|pattern| pattern.find_iter(&line))
        .filter(|found| is_key_material(&line, found.start(), found.as_str()))
        .map(|found| found.range())
        .collect();
    hide_spans(&line, spans)
}

fn hide_spans(line: &str, spans: Vec<std::ops::Range<usize>>) -> String {
    let mut out = String::with_capacity(line.len());
    let mut done = 0;
    for span in spans {
        if let (Some(before), Some(secret)) = (line.get(done..span.start), line.get(span.clone())) {
            out.push_str(before);
            out.push_str(&mark(secret));
            done = span.end;
        }
    }
    out.push_str(line.get(done..).unwrap_or_default());
    out
}

/// `passwordFile`, `secretName`: where a secret is, not what it is.
const PLACES: &[&str] =
    &["file", "path", "dir", "name", "ref", "type", "policy", "ttl", "enabled", "length", "url", "arn", "seconds", "projection"];

/// Words that make a name sensitive wherever they stand in it.
const ANYWHERE: &[&str] =
    &["password", "passwd", "passphrase", "secretkey", "privatekey", "accesskey", "apikey", "privatematerial", "dockerconfig"];

/// Words that make a name sensitive at its end.
const LAST: &[&str] = &[
    "secret",
    "token",
    "credential",
    "credentials",
    "auth",
    "authorization",
    "passcode",
    "encryptionkey",
    "signingkey",
    "sharedkey",
    "masterkey",
    "cookie",
    "dsn",
    "pass",
    "pwd",
];

/// Environment variables: any word counts, since names like `SECRET_KEY_BASE` and `TOKEN_2` are common.
const WORDS: &[&str] =
    &["PASSWORD", "PASSWD", "PASS", "PASSPHRASE", "SECRET", "SECRETS", "TOKEN", "APIKEY", "CREDENTIAL", "CREDENTIALS", "AUTH"];

/// Whether a value of this name is a secret.
fn is_sensitive(name: &str) -> bool {
    let flat: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    if PLACES.iter().any(|place| flat.ends_with(place)) {
        return false;
    }
    let variable = name.len() > 3 && !name.contains(|c: char| c.is_ascii_lowercase());
    ANYWHERE.iter().any(|word| flat.contains(word))
        || (LAST.iter().any(|word| flat.ends_with(word)) && flat != "pwd" && flat != "oldpwd")
        || (variable && name.split('_').any(|word| WORDS.contains(&word)))
        || (variable && name.ends_with("_KEY") && !name.contains("PUBLIC"))
}

fn values_of_sensitive_keys(line: &str) -> Vec<std::ops::Range<usize>> {
    let (head, _, tail) = parts(line);
    let end = line.len() - tail.len();
    let mut spans: Vec<std::ops::Range<usize>> = Vec::new();
    for found in KEY_COMPILED.iter().flat_map(|key| key.captures_iter(line)) {
        let (Some(whole), Some(name), Some(separator)) = (found.get(0), found.get(1), found.get(2)) else { continue };
        if !is_sensitive(name.as_str()) || spans.last().is_some_and(|span| whole.start() < span.end) {
            continue;
        }
        let before = line.get(head.len()..name.start()).unwrap_or_default();
        let first = ["", "\"", "'", "export ", "set ", "env "].contains(&before);
        let prose = !first && separator.as_str().starts_with(':') && before.ends_with(' ') && !before.ends_with(", ");
        if let Some(span) = value_span(line, whole.end(), end, first)
            && !(prose && is_word(name.as_str(), line.get(span.clone()).unwrap_or_default()))
        {
            spans.push(span);
        }
    }
    spans
}

/// Whether this is a sentence such as `could not load the secret: not found`, which errors are full of.
fn is_word(name: &str, value: &str) -> bool {
    !name.to_ascii_lowercase().contains("pass")
        && value.len() < 16
        && value.bytes().all(|byte| byte.is_ascii_lowercase() || b".-".contains(&byte))
}

/// Where the value that starts at `start` ends. `first`: nothing stands before its name, so it has the rest of the line.
fn value_span(line: &str, start: usize, end: usize, first: bool) -> Option<std::ops::Range<usize>> {
    let rest = line.get(start..end)?;
    let escaped = rest.starts_with("\\\"");
    let (open, quote) = match rest.trim_start_matches('\\').chars().next()? {
        quote @ ('"' | '\'') => (usize::from(escaped) + 1, Some(quote)),
        '{' | '[' | '=' | '|' | '>' if rest.len() <= 2 || !first => return None,
        '{' | '[' => return None,
        _ => (0, None),
    };
    let body = rest.get(open..)?;
    let length = match quote {
        Some(quote) => {
            let mut previous = ' ';
            body.char_indices()
                .find(|(_, c)| {
                    let closes = *c == quote && (previous != '\\' || escaped);
                    previous = *c;
                    closes
                })
                .map_or(body.len(), |(at, _)| if escaped { at.saturating_sub(1) } else { at })
        }
        None if first => body.len(),
        None => {
            let token = token_end(body);
            let scheme = body
                .get(..token)
                .is_some_and(|token| ["bearer", "basic", "token", "digest"].contains(&token.to_ascii_lowercase().as_str()));
            if scheme { body.find(['"', '\'']).unwrap_or(body.len()) } else { token }
        }
    };
    (length > 0).then(|| start + open..start + open + length)
}

/// The length of a word. A marker in it counts as a letter, so that what stands beside it goes with it.
fn token_end(text: &str) -> usize {
    let mut marker = false;
    text.char_indices()
        .find(|(at, c)| {
            marker |= text.get(*at..).is_some_and(|rest| rest.starts_with(MARK));
            let ends = !marker && [' ', '\t', ',', ';', '&', '}', ']', ')', '"', '\'', '\\'].contains(c);
            marker &= *c != '>';
            ends
        })
        .map_or(text.len(), |(at, _)| at)
}

/// Shortest run that is taken for a key by its looks alone: AWS' secret keys have 40 characters.
const BLOB: usize = 40;

fn is_key_material(line: &str, start: usize, text: &str) -> bool {
    let before = line.get(..start).unwrap_or_default();
    let after = line.get(start + text.len()..).unwrap_or_default();
    let bare = text.trim_end_matches('=');
    let has = |test: fn(&u8) -> bool| bare.as_bytes().iter().any(test);
    if before.ends_with(MARK) || bare.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return false;
    }
    // A short value that is base64 from its first character to its padding.
    if text.len() < BLOB {
        let whole = text.ends_with('=')
            && text.len().is_multiple_of(4)
            && (before.ends_with(": ") || before.ends_with('"'))
            && (after.trim_end().is_empty() || after.starts_with('"'));
        return whole && has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
    }
    // Public keys, and SHA-256 sums by their name: kOps' NodeupConfigHash, fingerprints.
    let public = ["ssh-rsa ", "ssh-ed25519 ", "SHA256:"].iter().any(|kind| before.ends_with(kind))
        || before.rsplit(' ').nth(1).is_some_and(|kind| before.ends_with(' ') && kind.starts_with("ecdsa-sha2-"));
    let label = before.trim_end_matches([' ', '"', ':']).to_ascii_lowercase();
    let sum = (43..=44).contains(&text.len()) && ["hash", "fingerprint", "digest", "checksum"].iter().any(|l| label.ends_with(l));
    if public || sum || !(has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_digit)) {
        return false;
    }
    text.contains(['+', '=']) || !bare.split(['-', '_', '/']).all(is_wordy)
}

/// A piece of a path or of a name in kebab, snake or camel case, or a hexadecimal number.
fn is_wordy(piece: &str) -> bool {
    let none = |test: fn(&u8) -> bool| !piece.as_bytes().iter().any(test);
    none(u8::is_ascii_uppercase) || none(u8::is_ascii_lowercase) || CAMEL_COMPILED.as_ref().is_some_and(|camel| camel.is_match(piece))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parse;

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(FORMS_COMPILED.len(), FORMS.len());
        assert!(KEY_COMPILED.is_some() && BASE64_COMPILED.is_some() && CAMEL_COMPILED.is_some());
    }

    #[test]
    fn secrets_go_and_the_rest_stays() {
        let secret = "hunter2hunter2";
        for text in [
            format!("S3_SECRET_ACCESS_KEY={secret}"),
            format!("+ S3_SECRET_ACCESS_KEY: {secret}"),
            format!("  \t                    \t+ export DB_PASSWORD={secret}"),
            format!("  \tAdminPassword       \t{secret}"),
            format!("export DATADOG_API_KEY='{secret}'"),
            format!("- SECRET_KEY_BASE={secret}"),
            format!("\"auth\": \"{secret}\""),
            format!("{{\\\"auths\\\": {{\\\"r.io\\\": {{\\\"auth\\\": \\\"{secret}\\\"}}}}}}"),
            format!("password: {secret}"),
            format!("password: correct, {secret} and more"),
            format!("password: |\n  first {secret}\n  second {secret}\nother: x"),
            format!("{{team: platform, token: {secret}, zone: a}}"),
            format!("a=b token={secret} c=d"),
            format!("foo=password={secret}"),
            format!("Authorization: Bearer {secret}"),
            format!("curl -H \"Authorization: Bearer {secret} x\" https://example.com"),
            format!("curl -u admin:{secret} https://example.com"),
            format!("login --password {secret} --region x"),
            format!("https://oauth2:{secret}@gitlab.example.com/x"),
            format!("-----BEGIN RSA PRIVATE KEY-----\n{secret}\n-----END RSA PRIVATE KEY-----"),
            format!("+ -----BEGIN PRIVATE KEY-----\n+ {secret}"),
            format!("  {secret}\n- -----END EC PRIVATE KEY-----"),
            format!("\"-----BEGIN PRIVATE KEY-----\\n{secret}\\n-----END PRIVATE KEY-----\\n\""),
            format!("apiVersion: v1\ndata:\n  keys: {secret}\nkind: Secret\nmetadata:\n  name: x"),
            format!("whsec_{secret}"),
            format!("glpat-{secret}abc"),
        ] {
            let clean = scrub(&text);
            assert!(!clean.contains("hunter2"), "{clean}");
            assert!(clean.contains(MARK), "{clean}");
            assert_eq!(clean.lines().count(), text.lines().count(), "{clean}");
            assert_eq!(scrub(&clean), clean, "a second time");
        }
    }

    #[test]
    fn keys_are_known_by_their_looks() {
        for text in [
            "AKIAIOSFODNN7EXAMPLE",
            "value wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY0",
            "  data: aHVudGVyMg==",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.sig",
            "  privateMaterial: LS0tLS1CRUdJTiBSU0E",
        ] {
            assert!(scrub(text).contains(MARK), "{text}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "NodeupConfigHash: tmWngvdO7J88FVGGg3U2iM/N4UeCRG2jfVL4+7o6s0U=",
            "InstanceType t3.medium -> t3.large",
            "manifestHash: 73769e5e351fc2f51fbab8bbafbb0e37dae748eb6ba3ce3019729a33e35b1e65",
            "    anonymousAuth: false",
            "secretName: cilium-ipsec-keys",
            "password: ${DB_PASSWORD}",
            "--service-account-signing-key-file=/srv/kubernetes/kube-controller-manager/service-account.key",
            "arn:aws:elasticloadbalancing:us-east-1:000000000000:targetgroup/tcp-main-example-com-4d5e6f/50dc6c495c0c9188",
            "Error: could not load the ciliumpassword secret: not found",
            "k8s.io/cluster-autoscaler/node-template/label/node.kubernetes.io/exclude-from-external-load-balancers: ",
            "registry.k8s.io/kube-apiserver:v1.35.4@sha256:9c5e717b774ee9b9285ce47e7d2150c29e84837eb19a7eaa24b60b1543c9d58f",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5kqNn0mVqz2Qn3eI1r9i0mGJm3R7gY4hX1u0o8pQ2Z",
        ] {
            assert_eq!(scrub(text), text);
        }
    }

    /// Real dry runs hold no secret but those of the sample's user data, so nothing else may be hidden.
    #[test]
    fn real_plans_stay_readable() {
        for text in [
            include_str!("../tests/fixtures/create.txt"),
            include_str!("../tests/fixtures/prune.txt"),
            include_str!("../tests/fixtures/delete.txt"),
            include_str!("../tests/fixtures/addcidr.txt"),
            include_str!("../tests/fixtures/upgrade.txt"),
            include_str!("../tests/fixtures/change.txt"),
        ] {
            let clean = scrub(text);
            let hidden: Vec<_> = text.lines().zip(clean.lines()).filter(|(before, after)| before != after).collect();
            assert_eq!(hidden, []);
        }
    }

    #[test]
    fn user_data_shows_only_what_kops_writes() {
        let plan = parse(include_str!("../tests/fixtures/ud.txt")).unwrap();
        let text = redact(&plan).to_text();
        for secret in ["hunter2", "correcthorse", "0123456789abcdef", "install-agent"] {
            assert!(plan.to_text().contains(secret) && !text.contains(secret), "{text}");
        }
        assert_eq!(text.matches(MARK).count(), 2, "{text}");
        let change = parse(include_str!("../tests/fixtures/change.txt")).unwrap();
        let text = redact(&change).to_text();
        assert!(text.contains("+ NodeupConfigHash: tmWngvdO7J88FVGGg3U2iM/N4UeCRG2jfVL4+7o6s0U="), "{text}");
    }

    #[test]
    fn a_change_of_a_secret_is_still_seen() {
        assert_ne!(scrub("password: first-one"), scrub("password: second-one"));
    }

    proptest! {
        #[test]
        fn planted_secrets_never_survive(
            before in "[a-z \n]{0,40}",
            after in "[a-z \n]{0,40}",
            form in prop::sample::select(vec![
                "secret_key: @", "+ MY_TOKEN=@", "\"password\": \"@\"", "  - token: '@'", "x://u:@@h", "--api-key @",
                "-----BEGIN PRIVATE KEY-----\n@\n-----END PRIVATE KEY-----", "Authorization: Bearer @",
                "{a: b, clientSecret: @}",
            ]),
            key in "[A-Za-z0-9+]{24,60}",
        ) {
            let text = format!("{before}\n{}\n{after}", form.replacen('@', &key, 1));
            let clean = scrub(&text);
            prop_assert!(!clean.contains(&key), "{}", clean);
            prop_assert_eq!(clean.split('\n').count(), text.split('\n').count());
        }

        #[test]
        fn any_text_is_scrubbed_once(text in "(?s).{0,200}") {
            let once = scrub(&text);
            prop_assert_eq!(scrub(&once), once);
        }

        #[test]
        fn any_text_of_our_alphabet_is_scrubbed_once(text in r#"([-+ \t\n"'\\:={}|,]|token|password: |kind: Secret|-----(BEGIN|END) PRIVATE KEY-----|[A-Za-z0-9]{1,9}){0,30}"#) {
            let once = scrub(&text);
            prop_assert_eq!(scrub(&once), once);
        }
    }
}
