"""An authority that issues certificates, right ones and wrong ones."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.now(UTC)
KEYS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@dataclass(frozen=True, kw_only=True)
class Files:
    """PEM files of an operator."""

    certificate: Path
    key: Path
    anchor: Path


def name(common: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Studio"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
    )


def usage(*, signs: bool, issues: bool) -> x509.KeyUsage:
    return x509.KeyUsage(signs, False, False, False, False, issues, issues, False, False)


def certificate(
    subject: str,
    issuer: str,
    key: Any,
    issuing_key: Any,
    *,
    begins: datetime = NOW - timedelta(days=1),
    ends: datetime = NOW + timedelta(days=90),
    authority: bool = False,
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage(signs=not authority, issues=authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing_key.public_key()), critical=False)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(issuing_key, SHA256())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def key_pem(key: Any, passphrase: bytes | None = None) -> bytes:
    shut = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, shut))


def issue(folder: Path, *, algorithm: str = "es256", **changes: Any) -> Files:
    """A certificate with its chain and key, signed by an authority of its own; `changes` are of the certificate."""
    folder.mkdir(parents=True, exist_ok=True)
    root_key, key = KEYS["es256"](), KEYS[algorithm]()
    root = certificate("Studio Root", "Studio Root", root_key, root_key, authority=True)
    leaf = certificate("Studio Signer", "Studio Root", key, root_key, **changes)
    files = Files(certificate=folder / "certificate.pem", key=folder / "key.pem", anchor=folder / "anchor.pem")
    files.certificate.write_bytes(pem(leaf, root))
    files.key.write_bytes(key_pem(key))
    files.anchor.write_bytes(pem(root))
    return files
