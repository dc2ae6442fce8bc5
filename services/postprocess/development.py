"""A certificate chain that an embedded suite makes for itself, so that its files are signed like an operator's.

C2PA refuses certificates that sign themselves, so there is an authority, whose key is thrown away, and one certificate
below it. Both say in their names what they are; a verifier trusts them only where it is told to.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.postprocess.c2pa_settings import DEVELOPMENT_ORGANISATION
from services.postprocess.credentials import CredentialsRefused, load_credentials

_LIFE: Final = timedelta(days=365)
_LEAST_LIFE: Final = timedelta(days=7)
_SKEW: Final = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DevelopmentFiles:
    """PEM files: the chain to sign with, its key, and the authority for verifiers that are to trust it."""

    certificate: Path
    key: Path
    anchor: Path


def development_files(folder: Path) -> DevelopmentFiles:
    """The files in `folder`, written where there are none and where they soon expire; only the user can read them."""
    files = DevelopmentFiles(
        certificate=folder / "certificate.pem", key=folder / "key.pem", anchor=folder / "anchor.pem"
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = datetime.now(UTC)
    try:
        load_credentials(files.certificate, files.key, None, now=now + _LEAST_LIFE)
    except CredentialsRefused:
        _write(files, now)
    return files


def _write(files: DevelopmentFiles, now: datetime) -> None:
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = (
        _builder("authority", "authority", key=authority_key, now=now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .sign(authority_key, SHA256())
    )
    certificate = (
        _builder("signer", "authority", key=key, now=now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, SHA256())
    )
    anchor = authority.public_bytes(Encoding.PEM)
    for path, content in (
        (files.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
        (files.certificate, certificate.public_bytes(Encoding.PEM) + anchor),
        (files.anchor, anchor),
    ):
        _write_private(path, content)


def _builder(name: str, issuer: str, *, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(what: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, DEVELOPMENT_ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Rushes development {what}"),
        ]
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _write_private(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    unfinished.replace(path)
