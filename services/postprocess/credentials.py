"""The certificate that finished files are signed with, and its key: read from files, and checked before anything is
served.

A refusal names the variable and the rule. What is checked is what the C2PA specification asks of a signing credential
(section "X.509 Certificates"), so that a wrong file stops the start and not the first clip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from services.chassis.errors import FailedPrecondition
from services.postprocess.c2pa_settings import DEVELOPMENT_ORGANISATION, PURPOSES

CERTIFICATE: Final = "RUSHES_C2PA_CERTIFICATE"
KEY: Final = "RUSHES_C2PA_KEY"
ALGORITHM: Final = "RUSHES_C2PA_ALGORITHM"

_CURVES: Final[Mapping[str, str]] = MappingProxyType({"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"})
_RSA: Final = ("ps256", "ps384", "ps512")
_LEAST_RSA_BITS: Final = 2048

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class CredentialsRefused(FailedPrecondition):
    """The certificate or its key must not be used; `variable` names which, `rule` says what is wrong with it."""

    reason = "C2PA_CREDENTIALS_REFUSED"

    def __init__(self, variable: str, rule: str) -> None:
        super().__init__(f"{variable}: {rule}")
        self.variable = variable
        self.rule = rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """A checked certificate chain (PEM, the signer's first), its key (PEM, PKCS 8), and what they say.

    `algorithm` is as C2PA names it; `not_after` is the earliest end of any certificate of the chain.
    """

    chain: bytes
    key: bytes
    algorithm: str
    subject: str
    not_after: datetime
    development: bool


def load_credentials(certificate: Path, key: Path, algorithm: str | None, *, now: datetime) -> Credentials:
    """The credentials in these files at the time `now`. Raises `CredentialsRefused`."""
    chain = _chain(_read(CERTIFICATE, certificate), now)
    private = _private_key(_read(KEY, key))
    if _public_bytes(private) != chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        raise CredentialsRefused(KEY, f"does not belong to the certificate of {CERTIFICATE}")
    organisations = chain[0].subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return Credentials(
        chain=b"".join(one.public_bytes(Encoding.PEM) for one in chain),
        key=private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        algorithm=_algorithm(private, algorithm),
        subject=chain[0].subject.rfc4514_string(),
        not_after=min(one.not_valid_after_utc for one in chain),
        development=DEVELOPMENT_ORGANISATION in [one.value for one in organisations],
    )


def _read(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as failed:
        raise CredentialsRefused(variable, f"the file cannot be read: {failed.strerror}") from None


def _chain(content: bytes, now: datetime) -> Sequence[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise CredentialsRefused(CERTIFICATE, "must be PEM certificates, the signer's first") from None
    for place, one in enumerate(chain, 1):
        which = "the certificate" if place == 1 else f"certificate {place} of the chain"
        if now > one.not_valid_after_utc:
            raise CredentialsRefused(CERTIFICATE, f"{which} expired on {one.not_valid_after_utc:%Y-%m-%d}")
        if now < one.not_valid_before_utc:
            raise CredentialsRefused(CERTIFICATE, f"{which} is not valid before {one.not_valid_before_utc:%Y-%m-%d}")
    _check_signer(chain[0])
    for place, (one, issuer) in enumerate(pairwise(chain), 2):
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            rule = f"certificate {place} of the chain did not issue the one before it"
            raise CredentialsRefused(CERTIFICATE, rule) from None
    return chain


def _check_signer(certificate: x509.Certificate) -> None:
    if certificate.issuer == certificate.subject:
        raise CredentialsRefused(CERTIFICATE, "is self-signed: the signer's certificate must come from an authority")
    extensions = certificate.extensions
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise CredentialsRefused(CERTIFICATE, "begins with an authority: the signer's certificate must come first")
    except x509.ExtensionNotFound:
        pass
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        raise CredentialsRefused(CERTIFICATE, "must state a key usage and an extended key usage") from None
    if not usage.digital_signature:
        raise CredentialsRefused(CERTIFICATE, "must be for digital signatures (key usage)")
    if not set(PURPOSES) & {one.dotted_string for one in purposes}:
        rule = f"must be for {' or '.join(PURPOSES.values())} (extended key usage)"
        raise CredentialsRefused(CERTIFICATE, rule)


def _private_key(content: bytes) -> PrivateKey:
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise CredentialsRefused(KEY, "is encrypted: give it without a passphrase") from None
    except ValueError:
        raise CredentialsRefused(KEY, "must be a PEM private key") from None
    if not isinstance(key, PrivateKey):
        raise CredentialsRefused(KEY, "must be an EC, RSA or Ed25519 key")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _LEAST_RSA_BITS:
        raise CredentialsRefused(KEY, f"must have at least {_LEAST_RSA_BITS} bits")
    return key


def _public_bytes(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _algorithm(key: PrivateKey, asked: str | None) -> str:
    if isinstance(key, rsa.RSAPrivateKey):
        offered: Sequence[str] = _RSA
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        offered = ("ed25519",)
    elif key.curve.name in _CURVES:
        offered = (_CURVES[key.curve.name],)
    else:
        raise CredentialsRefused(KEY, "must be on the curve P-256, P-384 or P-521")
    if asked is not None and asked not in offered:
        raise CredentialsRefused(ALGORITHM, f"must be {' or '.join(offered)} for this key")
    return asked or offered[0]
