"""A certificate authority, as kOps keeps one in its state store: a keyset with a signer and all that is trusted."""

import base64
import datetime
from dataclasses import dataclass

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KEY_BITS = 2048
"""What kOps uses unless told otherwise (pkg/pki/csr.go)."""
_CLOCK_SKEW = datetime.timedelta(hours=48)
_AUTHORITY_LIFETIME = datetime.timedelta(days=3650)
_CERTIFICATE_LIFETIME = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: str
    key: str


class KeysetError(Exception):
    """A keyset cannot be used; the message says why."""


@dataclass(frozen=True)
class Authority:
    """Signs with one certificate and trusts it and perhaps others."""

    signer: x509.Certificate
    key: object
    trusted: list[x509.Certificate]

    @classmethod
    def create(cls, common_name: str = "kubernetes-ca", lifetime: datetime.timedelta = _AUTHORITY_LIFETIME) -> "Authority":
        """A new one, with an RSA key as kOps makes them."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key, [certificate])

    @classmethod
    def from_keyset(cls, text: str) -> "Authority":
        """The signer of a kOps keyset, and all its certificates that are not distrusted
        (kOps 1.36 upup/pkg/fi/clientset_castore.go, upup/pkg/fi/ca.go)."""
        spec = (yaml.safe_load(text) or {}).get("spec") or {}
        keys = [key for key in spec.get("keys") or [] if str(key["id"]).isdecimal() and not key.get("distrustTimestamp")]
        keys.sort(key=lambda key: int(key["id"]))
        if not keys:
            raise KeysetError("the keyset has no key that is trusted")
        signer = next((key for key in keys if key["id"] == spec.get("primaryId")), keys[-1])
        certificates = [x509.load_pem_x509_certificate(base64.b64decode(key["publicMaterial"])) for key in keys]
        private = serialization.load_pem_private_key(base64.b64decode(signer["privateMaterial"]), None)
        return cls(certificates[keys.index(signer)], private, certificates)

    def keyset(self) -> str:
        """This authority as kOps would store it."""
        identifier = str(self.signer.serial_number)
        pair = Pair(pem(self.signer), _key_pem(self.key))
        material = {name: base64.b64encode(text.encode()).decode() for name, text in vars(pair).items()}
        return yaml.safe_dump(
            {
                "apiVersion": "kops.k8s.io/v1alpha2",
                "kind": "Keyset",
                "metadata": {"name": "kubernetes-ca"},
                "spec": {
                    "type": "Keypair",
                    "primaryId": identifier,
                    "keys": [
                        {"id": identifier, "publicMaterial": material["certificate"], "privateMaterial": material["key"]}
                    ],
                },
            }
        )

    def bundle(self) -> str:
        """All that is trusted, as PEM."""
        return "".join(pem(certificate) for certificate in self.trusted)

    def server(self, names: list[str], addresses: list, key=None) -> Pair:
        """A server's certificate for host names and IP addresses; `key` is kept where one is given."""
        alternatives = [x509.DNSName(name) for name in names] + [x509.IPAddress(address) for address in addresses]
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")]
        return self._issue(subject, ExtendedKeyUsageOID.SERVER_AUTH, alternatives, key)

    def client(self, user: str, group: str) -> Pair:
        """A client's certificate; Kubernetes reads its user and group from the subject."""
        subject = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, group),
            x509.NameAttribute(NameOID.COMMON_NAME, user),
        ]
        return self._issue(subject, ExtendedKeyUsageOID.CLIENT_AUTH, [], None)

    def _issue(self, subject: list, usage, alternatives: list, key) -> Pair:
        key = key or rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self.signer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _CERTIFICATE_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True, key_encipherment=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return Pair(pem(builder.sign(self.key, hashes.SHA256())), _key_pem(key))


def pem(certificate: x509.Certificate) -> str:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def signing_pair() -> tuple[str, str]:
    """A private and a public key, for service account tokens."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return _key_pem(key), public.decode()


def _key_pem(key) -> str:
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _key_usage(**wanted: bool) -> x509.KeyUsage:
    usages = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{usage: wanted.get(usage, False) for usage in usages})
