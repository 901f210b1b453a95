//! Short-lived client certificates from a cluster's own authority, as `kops export kubecfg --admin` mints them
//! (kOps 1.36 `pkg/kubeconfig/create_kubecfg.go`, `pkg/pki/issue.go`, `pkg/pki/csr.go`).

use std::fmt;
use std::str::FromStr as _;
use std::time::Duration;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::PrivateKeyDer;
use secrecy::SecretString;
use x509_cert::Certificate;
use x509_cert::der::asn1::GeneralizedTime;
use x509_cert::der::asn1::{Any, AnyRef, BitStringRef, OctetString, UintRef, UtcTime};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::oid::db::rfc5280::ID_KP_CLIENT_AUTH;
use x509_cert::der::oid::db::rfc5912::{ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, SHA_256_WITH_RSA_ENCRYPTION};
use x509_cert::der::{self, Decode as _, Encode, Tag, TagNumber};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::spki::{AlgorithmIdentifierOwned, ObjectIdentifier};
use x509_cert::time::{Time, Validity};
use zeroize::Zeroizing;

use crate::keyset::Keyset;

/// The group that Kubernetes lets do everything.
const ADMINISTRATORS: &str = "system:masters";
/// The name that Kopsline has in the API's audit log; kOps writes `kubecfg-` and the user's own name.
pub(crate) const USER: &str = "kubecfg-kopsline";
/// How far before now a certificate is valid, for clocks that go wrong.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(48);
const SERIAL_BYTES: usize = 16;

/// A client certificate and its key.
pub struct ClientCertificate {
    /// The certificate, as PEM.
    pub certificate: String,
    /// Its private key, as PEM of PKCS#8.
    pub key: SecretString,
    /// When it expires.
    pub not_after: Timestamp,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A certificate that cannot be minted. No message quotes key material.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The signer's private key is of a kind that is not known.
    #[error("the CA's private key is neither RSA of at least 2048 bits nor EC on P-256, P-384 or P-521")]
    Key,
    /// The signer's certificate cannot be read.
    #[error("the CA's certificate cannot be read: {reason}")]
    Authority {
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate cannot be put together.
    #[error("the certificate cannot be put together: {reason}")]
    Encoding {
        /// What is wrong.
        reason: String,
    },
    /// The machine has no randomness, or signing failed.
    #[error("the machine's cryptography failed at {step}")]
    Cryptography {
        /// What was to be done.
        step: &'static str,
    },
}

impl From<der::Error> for MintError {
    fn from(error: der::Error) -> Self {
        Self::Encoding { reason: error.to_string() }
    }
}

/// An administrator's client certificate, valid from 48 hours ago until `lifetime` from `now`.
///
/// Its key is on P-256 where kOps takes RSA: only the API server ever sees it, every Kubernetes accepts it, and making an
/// RSA key takes a small Lambda function seconds.
pub fn mint(keyset: &Keyset, lifetime: SignedDuration, now: Timestamp) -> Result<ClientCertificate, MintError> {
    let authority = Certificate::from_der(keyset.signer()).map_err(|error| MintError::Authority { reason: error.to_string() })?;
    let signer = Signer::new(keyset.key())?;
    let failed = |step| move |_| MintError::Cryptography { step };
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(failed("making a key"))?;
    let not_after = later(now, lifetime)?;
    let public_key = key.public_key().as_der().map_err(failed("encoding a key"))?;
    let to_sign = sequence(&[
        explicit(0, &2_u8.to_der()?)?,
        UintRef::new(&serial_number()?)?.to_der()?,
        signer.algorithm().to_der()?,
        authority.tbs_certificate().subject().to_der()?,
        Validity::<x509_cert::certificate::Rfc5280>::new(time(later(now, -CLOCK_SKEW)?)?, time(not_after)?).to_der()?,
        Name::from_str(&format!("CN={USER},O={ADMINISTRATORS}"))?.to_der()?,
        public_key.as_ref().to_vec(),
        explicit(3, &extensions(&authority)?.to_der()?)?,
    ])?;
    let signature = signer.sign(&to_sign)?;
    let certificate = sequence(&[to_sign, signer.algorithm().to_der()?, BitStringRef::from_bytes(&signature)?.to_der()?])?;
    let private_key = key.to_pkcs8v1().map_err(failed("encoding a key"))?;
    Ok(ClientCertificate {
        certificate: pem("CERTIFICATE", &certificate),
        key: SecretString::from(pem("PRIVATE KEY", private_key.as_ref())),
        not_after,
    })
}

/// A CA's private key.
enum Signer {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, ObjectIdentifier),
}

impl Signer {
    fn new(key: &PrivateKeyDer<'_>) -> Result<Self, MintError> {
        let rsa = match key {
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()).ok(),
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).ok(),
            _ => None,
        };
        if let Some(rsa) = rsa {
            return Ok(Self::Rsa(rsa));
        }
        let curves: [(&'static EcdsaSigningAlgorithm, ObjectIdentifier); 3] = [
            (&ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_WITH_SHA_256),
            (&ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_WITH_SHA_384),
            (&ECDSA_P521_SHA512_ASN1_SIGNING, ECDSA_WITH_SHA_512),
        ];
        let on = |curve: &'static EcdsaSigningAlgorithm| match key {
            PrivateKeyDer::Sec1(key) => EcdsaKeyPair::from_private_key_der(curve, key.secret_sec1_der()).ok(),
            PrivateKeyDer::Pkcs8(key) => EcdsaKeyPair::from_pkcs8(curve, key.secret_pkcs8_der()).ok(),
            _ => None,
        };
        let mut found = curves.into_iter().filter_map(|(curve, name)| Some(Self::Ec(on(curve)?, name)));
        found.next().ok_or(MintError::Key)
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        match self {
            Self::Rsa(_) => AlgorithmIdentifierOwned { oid: SHA_256_WITH_RSA_ENCRYPTION, parameters: Some(AnyRef::NULL.into()) },
            Self::Ec(_, oid) => AlgorithmIdentifierOwned { oid: *oid, parameters: None },
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, MintError> {
        let random = SystemRandom::new();
        let failed = |_| MintError::Cryptography { step: "signing" };
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).map_err(failed)?;
                Ok(signature)
            }
            Self::Ec(key, _) => Ok(key.sign(&random, message).map_err(failed)?.as_ref().to_vec()),
        }
    }
}

/// 128 random bits, as kOps takes them.
fn serial_number() -> Result<[u8; SERIAL_BYTES], MintError> {
    let mut bytes = [0; SERIAL_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| MintError::Cryptography { step: "finding a serial number" })?;
    Ok(bytes)
}

fn extensions(authority: &Certificate) -> Result<Vec<Extension>, MintError> {
    let mut extensions = vec![
        extension(true, &KeyUsage(KeyUsages::DigitalSignature.into()))?,
        extension(false, &ExtendedKeyUsage(vec![ID_KP_CLIENT_AUTH]))?,
        extension(true, &BasicConstraints { ca: false, path_len_constraint: None })?,
    ];
    let identifier = authority.tbs_certificate().get_extension::<SubjectKeyIdentifier>();
    if let Some((_, identifier)) = identifier.map_err(|error| MintError::Authority { reason: error.to_string() })? {
        let of_signer = AuthorityKeyIdentifier { key_identifier: Some(identifier.0), ..AuthorityKeyIdentifier::default() };
        extensions.push(extension(false, &of_signer)?);
    }
    Ok(extensions)
}

fn extension<T: AssociatedOid + Encode>(critical: bool, value: &T) -> der::Result<Extension> {
    Ok(Extension { extn_id: T::OID, critical, extn_value: OctetString::new(value.to_der()?)? })
}

fn sequence(parts: &[Vec<u8>]) -> der::Result<Vec<u8>> {
    Any::new(Tag::Sequence, parts.concat())?.to_der()
}

fn explicit(number: u32, inner: &[u8]) -> der::Result<Vec<u8>> {
    Any::new(Tag::ContextSpecific { constructed: true, number: TagNumber(number) }, inner)?.to_der()
}

fn later(moment: Timestamp, by: SignedDuration) -> Result<Timestamp, MintError> {
    moment.checked_add(by).map_err(|error| MintError::Encoding { reason: error.to_string() })
}

/// Whole seconds; two-digit years until 2049, as RFC 5280 wants it.
fn time(moment: Timestamp) -> der::Result<Time> {
    let since_epoch = Duration::from_secs(u64::try_from(moment.as_second()).unwrap_or(0));
    UtcTime::from_unix_duration(since_epoch)
        .map(Time::UtcTime)
        .or_else(|_| GeneralizedTime::from_unix_duration(since_epoch).map(Time::GeneralTime))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = Zeroizing::new(STANDARD.encode(der));
    // As long as it will be: growing would leave copies of a key behind.
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 2 * label.len() + 40);
    pem.extend(["-----BEGIN ", label, "-----\n"]);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(64).unwrap_or((rest, ""));
        pem.extend([line, "\n"]);
        rest = after;
    }
    pem.extend(["-----END ", label, "-----\n"]);
    pem
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
    };
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::testing::{Authority, Form, Keys, keyset};

    fn now() -> Timestamp {
        "2026-11-25T12:00:00.75Z".parse().unwrap()
    }

    fn minted(authority: &Authority, form: Form, lifetime: SignedDuration, now: Timestamp) -> (ClientCertificate, Certificate) {
        let keyset = Keyset::parse(&keyset(None, &[("1", false, authority)], form)).unwrap();
        let minted = mint(&keyset, lifetime, now).unwrap();
        let der = CertificateDer::from_pem_slice(minted.certificate.as_bytes()).unwrap();
        (minted, Certificate::from_der(&der).unwrap())
    }

    #[test]
    fn the_certificate_is_an_administrators() {
        let authority = Authority::new(Keys::Rsa, "kubernetes-ca");
        let (minted, certificate) = minted(&authority, Form::Own, SignedDuration::from_hours(1), now());
        let tbs = certificate.tbs_certificate();
        // RFC 4514 writes the last name first.
        assert_eq!(tbs.subject().to_string(), "CN=kubecfg-kopsline,O=system:masters");
        let at = |time: Time| Timestamp::try_from(time.to_system_time()).unwrap().to_string();
        assert_eq!(
            (at(tbs.validity().not_before), at(tbs.validity().not_after)),
            ("2026-11-23T12:00:00Z".into(), "2026-11-25T13:00:00Z".into())
        );
        assert_eq!(minted.not_after.as_second(), "2026-11-25T13:00:00Z".parse::<Timestamp>().unwrap().as_second());
        let (critical, usage) = tbs.get_extension::<KeyUsage>().unwrap().unwrap();
        assert_eq!((critical, usage), (true, KeyUsage(KeyUsages::DigitalSignature.into())));
        let (critical, usage) = tbs.get_extension::<ExtendedKeyUsage>().unwrap().unwrap();
        assert_eq!((critical, usage.0), (false, vec![ID_KP_CLIENT_AUTH]));
        let (critical, constraints) = tbs.get_extension::<BasicConstraints>().unwrap().unwrap();
        assert_eq!((critical, constraints.ca), (true, false));
        let issuer = Certificate::from_der(&authority.certificate).unwrap();
        let (_, of_issuer) = issuer.tbs_certificate().get_extension::<SubjectKeyIdentifier>().unwrap().unwrap();
        let (_, of_signer) = tbs.get_extension::<AuthorityKeyIdentifier>().unwrap().unwrap();
        assert_eq!(of_signer.key_identifier, Some(of_issuer.0));
        assert!(tbs.serial_number().as_bytes().len() > 8);
    }

    #[test]
    fn every_kind_of_authority_signs() {
        let algorithms: [(Keys, &'static dyn VerificationAlgorithm); 3] =
            [(Keys::Rsa, &RSA_PKCS1_2048_8192_SHA256), (Keys::P256, &ECDSA_P256_SHA256_ASN1), (Keys::P384, &ECDSA_P384_SHA384_ASN1)];
        for (keys, algorithm) in algorithms {
            let authority = Authority::new(keys, "kubernetes-ca");
            for form in [Form::Own, Form::Pkcs8] {
                let (_, certificate) = minted(&authority, form, SignedDuration::from_hours(1), now());
                let issuer = Certificate::from_der(&authority.certificate).unwrap();
                let public_key = issuer.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes().to_vec();
                let signed = certificate.tbs_certificate().to_der().unwrap();
                let verified = UnparsedPublicKey::new(algorithm, public_key).verify(&signed, certificate.signature().raw_bytes());
                assert!(verified.is_ok(), "{keys:?} {form:?}");
                assert_eq!(certificate.signature_algorithm(), certificate.tbs_certificate().signature());
            }
        }
    }

    #[test]
    fn the_issuer_is_the_authoritys_subject_byte_for_byte() {
        // As an enterprise's CA has it: one kind of name twice.
        let authority = Authority::with_names(
            Keys::P256,
            &[("DC", "com"), ("DC again", "example"), ("O", "Beispiel & Söhne"), ("CN", "kubernetes-ca")],
        );
        let (_, certificate) = minted(&authority, Form::Own, SignedDuration::from_hours(1), now());
        let issuer = Certificate::from_der(&authority.certificate).unwrap();
        let subject = issuer.tbs_certificate().subject().to_der().unwrap();
        assert_eq!(certificate.tbs_certificate().issuer().to_der().unwrap(), subject);
        assert!(authority.certificate.windows(subject.len()).any(|bytes| bytes == subject));
    }

    #[test]
    fn dates_after_2049_have_four_digits() {
        let authority = Authority::new(Keys::P256, "a");
        let (_, certificate) = minted(&authority, Form::Own, SignedDuration::from_hours(24), "2049-12-31T12:00:00Z".parse().unwrap());
        assert!(matches!(certificate.tbs_certificate().validity().not_before, Time::UtcTime(_)));
        assert!(matches!(certificate.tbs_certificate().validity().not_after, Time::GeneralTime(_)));
    }

    #[test]
    fn keys_are_never_shown_and_never_the_same() {
        let authority = Authority::new(Keys::P256, "a");
        let (first, one) = minted(&authority, Form::Own, SignedDuration::from_hours(1), now());
        let (second, other) = minted(&authority, Form::Own, SignedDuration::from_hours(1), now());
        assert_ne!(first.key.expose_secret(), second.key.expose_secret());
        assert_ne!(one.tbs_certificate().serial_number(), other.tbs_certificate().serial_number());
        let shown = format!("{first:?}");
        assert!(!shown.contains("BEGIN") && !shown.contains("key"), "{shown}");
    }

    #[test]
    fn a_key_of_another_kind_is_refused() {
        let keyset = keyset(None, &[("1", false, &Authority::new(Keys::Ed25519, "a"))], Form::Pkcs8);
        let error = mint(&Keyset::parse(&keyset).unwrap(), SignedDuration::from_hours(1), now()).unwrap_err();
        assert_eq!(error, MintError::Key);
    }
}
