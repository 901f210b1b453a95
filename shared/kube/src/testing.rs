//! Certificate authorities and keysets for tests, made by rcgen and not by this crate.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, RsaKeySize};
use rustls_pki_types::CertificateDer;
use x509_cert::der::asn1::{AnyRef, OctetStringRef};
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader, Tag};

/// The kind of an authority's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// How its private key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// PKCS#1 for RSA, SEC 1 for EC.
    Own,
    Pkcs8,
}

pub(crate) struct Authority {
    pub(crate) certificate: CertificateDer<'static>,
    key: KeyPair,
    kind: Keys,
}

impl Authority {
    pub(crate) fn new(keys: Keys, name: &str) -> Self {
        Self::with_names(keys, &[("CN", name)])
    }

    /// rcgen takes each kind of name once: a second `DC` is made as a `UID`, whose OID differs in its last byte.
    pub(crate) fn with_names(keys: Keys, names: &[(&str, &str)]) -> Self {
        let key = match keys {
            Keys::Rsa => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
            Keys::P256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Keys::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Keys::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        }
        .unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            let kind = match *kind {
                "O" => DnType::OrganizationName,
                "CN" => DnType::CommonName,
                "DC" => DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 25]),
                "DC again" => DnType::CustomDnType(vec![0, 9, 2342, 19_200_300, 100, 1, 1]),
                other => panic!("no kind of name {other}"),
            };
            parameters.distinguished_name.push(kind, *value);
        }
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut certificate = parameters.self_signed(&key).unwrap().der().to_vec();
        let (uid, dc) = ([0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], [0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25]);
        for at in 0..certificate.len() - uid.len() {
            if certificate[at..].starts_with(&uid) {
                certificate[at..at + dc.len()].copy_from_slice(&dc);
            }
        }
        Self { certificate: certificate.into(), key, kind: keys }
    }

    fn private_key(&self, form: Form) -> String {
        let pkcs8 = self.key.serialize_der();
        match (form, self.kind) {
            (Form::Pkcs8, _) | (_, Keys::Ed25519) => pem("PRIVATE KEY", &pkcs8),
            (Form::Own, Keys::Rsa) => pem("RSA PRIVATE KEY", &inner(&pkcs8)),
            // SEC 1 must name its curve, which PKCS#8 has outside.
            (Form::Own, Keys::P256) => pem("EC PRIVATE KEY", &with_curve(&inner(&pkcs8), &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7])),
            (Form::Own, Keys::P384) => pem("EC PRIVATE KEY", &with_curve(&inner(&pkcs8), &[0x2b, 0x81, 4, 0, 0x22])),
        }
    }
}

/// A keyset of kOps with these keys: id, whether it is distrusted, authority.
pub(crate) fn keyset(primary: Option<&str>, keys: &[(&str, bool, &Authority)], form: Form) -> String {
    let mut text = "apiVersion: kops.k8s.io/v1alpha2\nkind: Keyset\nmetadata:\n  name: kubernetes-ca\nspec:\n  type: Keypair\n".to_owned();
    if let Some(primary) = primary {
        writeln!(text, "  primaryId: \"{primary}\"").unwrap();
    }
    text.push_str("  keys:\n");
    for (id, distrusted, authority) in keys {
        let material = |pem: &str| STANDARD.encode(pem);
        writeln!(text, "  - id: \"{id}\"").unwrap();
        if *distrusted {
            text.push_str("    distrustTimestamp: \"2026-11-01T00:00:00Z\"\n");
        }
        writeln!(text, "    publicMaterial: {}", material(&pem("CERTIFICATE", &authority.certificate))).unwrap();
        writeln!(text, "    privateMaterial: {}", material(&authority.private_key(form))).unwrap();
    }
    text
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// The key inside PKCS#8: `SEQUENCE { version, algorithm, OCTET STRING, ... }`.
fn inner(pkcs8: &[u8]) -> Vec<u8> {
    let outer = AnyRef::from_der(pkcs8).unwrap();
    let mut reader = SliceReader::new(outer.value()).unwrap();
    reader.decode::<AnyRef<'_>>().unwrap();
    reader.decode::<AnyRef<'_>>().unwrap();
    reader.decode::<&OctetStringRef>().unwrap().as_bytes().to_vec()
}

/// `ECPrivateKey` with its `parameters [0]` between `privateKey` and `publicKey [1]`.
fn with_curve(sec1: &[u8], curve: &[u8]) -> Vec<u8> {
    let outer = AnyRef::from_der(sec1).unwrap();
    let mut reader = SliceReader::new(outer.value()).unwrap();
    reader.decode::<AnyRef<'_>>().unwrap();
    reader.decode::<AnyRef<'_>>().unwrap();
    let (front, rest) = outer.value().split_at(usize::try_from(u32::from(reader.position())).unwrap());
    assert_ne!(rest.first(), Some(&0xa0), "it names its curve already");
    let length = u8::try_from(curve.len()).unwrap();
    let body = [front, &[0xa0, length + 2, 6, length], curve, rest].concat();
    AnyRef::new(Tag::Sequence, &body).unwrap().to_der().unwrap()
}
