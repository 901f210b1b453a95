//! A certificate authority as kOps keeps it in the state store (kOps 1.36 `upup/pkg/fi/clientset_castore.go`, `ca.go`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer};
use zeroize::{Zeroize as _, Zeroizing};

/// The certificates of an authority that clients trust, and the one that signs. Its private key is wiped from memory
/// when it is dropped, and nothing shows it.
pub struct Keyset {
    /// All certificates that are not distrusted, in the order of their ids.
    trusted: Vec<CertificateDer<'static>>,
    signer: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// A keyset that cannot be used. No message quotes it.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum KeysetError {
    /// It is not YAML, or not of the shape that kOps writes.
    #[error("it is not a Keyset as kOps writes it (line {line}, column {column})")]
    Shape {
        /// Where reading ended; 0 where that is unknown.
        line: u64,
        /// Where reading ended.
        column: u64,
    },
    /// All its keys are distrusted, or it has none.
    #[error("it has no key that is trusted")]
    Empty,
    /// A certificate is missing or cannot be read.
    #[error("the certificate of its key {id} cannot be read")]
    Certificate {
        /// The key's id.
        id: String,
    },
    /// The signer's private key is missing or cannot be read.
    #[error("the private key of its key {id}, which signs, cannot be read; it must be PEM of PKCS#1, SEC 1 or PKCS#8")]
    PrivateKey {
        /// The key's id.
        id: String,
    },
}

#[derive(Deserialize)]
struct Document {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    primary_id: Option<String>,
    #[serde(default)]
    keys: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    id: String,
    #[serde(default)]
    distrust_timestamp: Option<String>,
    #[serde(default)]
    public_material: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    private_material: Option<SecretString>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
}

impl Keyset {
    /// Reads `keyset.yaml`. The signer is the primary key unless it is distrusted, else the newest that is trusted; keys
    /// whose id is not a number do not count.
    pub fn parse(text: &str) -> Result<Self, KeysetError> {
        // The reader's own messages quote what they could not read.
        let document: Document = serde_saphyr::from_str(text).map_err(|error| {
            let place = error.location();
            KeysetError::Shape { line: place.map_or(0, |place| place.line()), column: place.map_or(0, |place| place.column()) }
        })?;
        let primary = document.spec.primary_id;
        let mut items: Vec<Item> =
            document.spec.keys.into_iter().filter(|item| item.distrust_timestamp.is_none() && is_number(&item.id)).collect();
        items.sort_by(|a, b| magnitude(&a.id).cmp(&magnitude(&b.id)));
        let signer = items.iter().find(|item| Some(&item.id) == primary.as_ref()).or(items.last()).ok_or(KeysetError::Empty)?;
        // kOps may keep a certificate alone, of a key that others hold.
        let trusted = items.iter().filter(|item| item.public_material.is_some()).map(Item::certificate).collect::<Result<_, _>>()?;
        Ok(Self { trusted, signer: signer.certificate()?, key: signer.private_key()? })
    }

    /// What clients trust, in the order in which kOps writes it into a kubeconfig.
    pub fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }

    /// The certificate that signs.
    pub fn signer(&self) -> &CertificateDer<'static> {
        &self.signer
    }

    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }
}

impl Drop for Keyset {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for Keyset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyset").field("trusted", &self.trusted.len()).finish_non_exhaustive()
    }
}

impl Item {
    fn certificate(&self) -> Result<CertificateDer<'static>, KeysetError> {
        let pem = self.public_material.as_deref().and_then(|material| STANDARD.decode(without_spaces(material)).ok());
        pem.and_then(|pem| CertificateDer::from_pem_slice(&pem).ok()).ok_or_else(|| KeysetError::Certificate { id: self.id.clone() })
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, KeysetError> {
        let material = self.private_material.as_ref().map(|material| Zeroizing::new(without_spaces(material.expose_secret())));
        let pem = material.and_then(|material| STANDARD.decode(material.as_bytes()).ok()).map(Zeroizing::new);
        pem.and_then(|pem| PrivateKeyDer::from_pem_slice(&pem).ok()).ok_or_else(|| KeysetError::PrivateKey { id: self.id.clone() })
    }
}

/// Go's YAML writes long base64 on one line, people fold it.
fn without_spaces(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

fn is_number(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit())
}

/// Ids are longer than any machine word: compared by length first, as numbers are.
fn magnitude(id: &str) -> (usize, &str) {
    let digits = id.trim_start_matches('0');
    (digits.len(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Authority, Form, Keys, keyset};

    #[test]
    fn every_form_of_key_that_kops_may_hold_is_read() {
        for (keys, form) in
            [(Keys::Rsa, Form::Own), (Keys::Rsa, Form::Pkcs8), (Keys::P256, Form::Own), (Keys::P256, Form::Pkcs8), (Keys::P384, Form::Own)]
        {
            let authority = Authority::new(keys, "kubernetes-ca");
            let text = keyset(Some("7"), &[("7", false, &authority)], form);
            let read = Keyset::parse(&text).unwrap();
            assert_eq!(
                (read.signer(), read.trusted()),
                (&authority.certificate, &[authority.certificate.clone()][..]),
                "{keys:?} {form:?}"
            );
        }
    }

    #[test]
    fn the_signer_is_the_primary_unless_it_is_distrusted() {
        let [a, b, c] = ["a", "b", "c"].map(|name| Authority::new(Keys::P256, name));
        // Longer than 64 bits, and 9 is not above 10.
        let (old, middle, new) = ("9", "10", "7214352134345435435345345");
        for (primary, distrusted, signer, trusted) in [
            (Some(old), &[][..], &a, vec![&a, &b, &c]),
            (Some(middle), &[old][..], &b, vec![&b, &c]),
            (Some(old), &[old][..], &c, vec![&b, &c]),
            (None, &[][..], &c, vec![&a, &b, &c]),
            (Some("unknown"), &[new][..], &b, vec![&a, &b]),
        ] {
            let item = |id: &'static str, authority| (id, distrusted.contains(&id), authority);
            let text = keyset(primary, &[item(new, &c), item(old, &a), item(middle, &b)], Form::Own);
            let read = Keyset::parse(&text).unwrap();
            assert_eq!(read.signer(), &signer.certificate, "{primary:?} {distrusted:?}");
            let expected: Vec<_> = trusted.iter().map(|authority| authority.certificate.clone()).collect();
            assert_eq!(read.trusted(), expected, "{primary:?} {distrusted:?}");
        }
    }

    #[test]
    fn ids_that_are_no_numbers_do_not_count() {
        let authority = Authority::new(Keys::P256, "a");
        assert_eq!(Keyset::parse(&keyset(Some("x"), &[("x", false, &authority)], Form::Own)).unwrap_err(), KeysetError::Empty);
    }

    #[test]
    fn what_cannot_be_used_is_said_without_quoting_it() {
        let authority = Authority::new(Keys::P256, "a");
        let good = keyset(Some("7"), &[("7", false, &authority)], Form::Own);
        let secret = good.lines().find_map(|line| line.trim().strip_prefix("privateMaterial: ")).unwrap().to_owned();
        let broken = |from: &str, to: &str| Keyset::parse(&good.replace(from, to)).unwrap_err();
        assert!(matches!(broken("spec:", "spec"), KeysetError::Shape { .. }));
        assert!(matches!(broken("- id: \"7\"", "- id: [7]"), KeysetError::Shape { .. }));
        assert_eq!(broken(&secret, "bm90IGEga2V5"), KeysetError::PrivateKey { id: "7".to_owned() });
        assert_eq!(broken("privateMaterial", "other"), KeysetError::PrivateKey { id: "7".to_owned() });
        assert_eq!(broken("publicMaterial", "other"), KeysetError::Certificate { id: "7".to_owned() });
        assert_eq!(Keyset::parse("spec: {keys: []}").unwrap_err(), KeysetError::Empty);
        let shape = Keyset::parse(&format!("spec: {{keys: {secret}}}")).unwrap_err();
        let read = Keyset::parse(&good).unwrap();
        for shown in [format!("{shape} {shape:?}"), format!("{read:?}")] {
            assert!(!shown.contains(&secret[..20]) && shown.len() < 200, "{shown}");
        }
    }
}
