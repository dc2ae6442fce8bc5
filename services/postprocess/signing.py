"""Writes a signed C2PA manifest into a finished file."""

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import c2pa
from PIL import Image

from services.chassis.logs import logger
from services.postprocess.c2pa_settings import library_settings
from services.postprocess.claim import Claim
from services.postprocess.config import PostprocessConfig
from services.postprocess.credentials import (
    CERTIFICATE,
    Credentials,
    CredentialsRefused,
    load_credentials,
)
from services.postprocess.provenance import RUSHES

SIGNED_TYPES: Final = frozenset({"video/mp4", "image/gif", "image/webp"})
"""Content types of the files that get a manifest. The library knows no WebM, and no playlist of segments."""

_SOON_DAYS: Final = 30


def current_time() -> datetime:
    """The time now, in UTC."""
    return datetime.now(UTC)


class SigningFailed(Exception):
    """A file could not be signed: an expired certificate, for one."""


class Signer:
    """Signs files with an operator's certificate; may be used by many threads at once."""

    def __init__(self, credentials: Credentials, clock: Callable[[], datetime] = current_time) -> None:
        self.credentials = credentials
        self._clock = clock

    def sign(self, path: Path, content_type: str, claim: Claim) -> None:
        """Put the manifest of `claim` into the file at `path`. Raises `SigningFailed`; the file is whole either way.

        Two files of the same bytes are different when they are signed: a manifest has a number and salts of its own.
        """
        if self._clock() > self.credentials.not_after:
            raise SigningFailed("the certificate has expired")
        signed = path.with_name(f"{path.name}.signed")
        try:
            with path.open("rb") as source, signed.open("w+b") as target:
                self._sign(source, target, content_type, claim.definition(title=path.name, content_type=content_type))
        except c2pa.C2paError as refused:
            signed.unlink(missing_ok=True)
            raise SigningFailed(str(refused)) from refused
        signed.replace(path)

    def check(self) -> None:
        """Sign a picture in memory. Raises `CredentialsRefused` where the library does not take the certificate."""
        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        picture.seek(0)
        claim = Claim(maker=RUSHES, clip="", development=True)
        try:
            self._sign(picture, io.BytesIO(), "image/png", claim.definition(title="", content_type="image/png"))
        except c2pa.C2paError as refused:
            raise CredentialsRefused(CERTIFICATE, f"is not taken by the C2PA library: {refused}") from refused

    def _sign(self, source: io.IOBase, target: io.IOBase, content_type: str, definition: dict[str, object]) -> None:
        credentials = self.credentials
        info = c2pa.C2paSignerInfo(credentials.algorithm.encode(), credentials.chain, credentials.key, None)
        with (
            c2pa.Context(c2pa.Settings.from_dict(library_settings())) as context,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(definition, context=context) as builder,
        ):
            builder.sign(signer, content_type, source, target)


def open_signer(config: PostprocessConfig) -> Signer | None:
    """The signer that the configuration names, tried out; None where it names none. Raises `CredentialsRefused`."""
    if config.c2pa_certificate is None or config.c2pa_key is None:
        logger(__name__).warning("files_are_not_signed", rule=f"{CERTIFICATE} is not set: no file gets a C2PA manifest")
        return None
    now = current_time()
    credentials = load_credentials(config.c2pa_certificate, config.c2pa_key, config.c2pa_algorithm, now=now)
    signer = Signer(credentials)
    signer.check()
    facts = {
        "subject": credentials.subject,
        "algorithm": credentials.algorithm,
        "expires": credentials.not_after.isoformat(),
        "development": credentials.development,
    }
    if (credentials.not_after - now).days < _SOON_DAYS:
        logger(__name__).warning("certificate_expires_soon", **facts)
    else:
        logger(__name__).info("files_are_signed", **facts)
    return signer
