//! SSH public keys as kOps names them (kOps 1.36 pkg/sshcredentials/fingerprint.go).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kopsline_core::{Classify, FailureKind};
use md5::{Digest as _, Md5};

/// Why a text is not a public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No line of it has a key's type and its base64.
    #[error("no line has the form `<type> <base64> [comment]`")]
    Form,
    /// The base64 belongs to another type of key than the line says.
    #[error("the key is not of the type {0} that is written before it")]
    Type(String),
}

impl Classify for KeyError {
    fn kind(&self) -> FailureKind {
        FailureKind::BadInput
    }
}

/// The MD5 fingerprint of a key in the form of an `authorized_keys` line, without colons: the name of its object at
/// `pki/ssh/public/admin/`.
///
/// # Errors
/// The text holds no key.
pub fn fingerprint(public_key: &str) -> Result<String, KeyError> {
    // As ssh.ParseAuthorizedKey: the first line that has a key, with or without options before it.
    let mut failure = KeyError::Form;
    for line in public_key.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut words = line.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let Some(blob) = words.peek().and_then(|next| STANDARD.decode(next).ok()) else {
                continue;
            };
            // The blob begins with its own type, after four bytes of length.
            let length = u32::try_from(word.len()).unwrap_or(u32::MAX).to_be_bytes();
            let head = [&length, word.as_bytes()].concat();
            if blob.starts_with(&head) && blob.len() > head.len() {
                let digest = Md5::digest(&blob);
                return Ok(hex::encode(digest));
            }
            if word.starts_with("ssh-") || word.starts_with("ecdsa-") || word.starts_with("sk-") {
                failure = KeyError::Type(word.into());
            }
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIITyOpPZQIRQtQ1t9kDEbaoVOEr0xldTMTu0b+QKKJD3 me@x";

    #[test]
    fn fingerprints_are_those_of_kops() {
        // The names under which kOps 1.36.2 stored these keys.
        let rsa = include_str!("../tests/fixtures/rsa.pub");
        assert_eq!(fingerprint(rsa).unwrap(), "f1690d8d20c326564189df12be87ff58");
        for text in [ED25519.to_owned(), format!("\n# mine\n  {ED25519}\n"), format!("no-pty,command=\"echo a\" {ED25519}")] {
            assert_eq!(fingerprint(&text).unwrap(), "5d605523fb764307564da25dcd894fc8");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in ["", "ssh-rsa", "ssh-rsa @@@", "AAAA", "-----BEGIN OPENSSH PRIVATE KEY-----"] {
            assert_eq!(fingerprint(text), Err(KeyError::Form), "{text}");
        }
        let other = ED25519.replace("ssh-ed25519", "ssh-rsa");
        assert_eq!(fingerprint(&other), Err(KeyError::Type("ssh-rsa".into())));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,60}") {
            let _ = fingerprint(&text);
        }
    }
}
