"""Reads the C2PA manifest of a file, and what has become of the file since."""

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import c2pa

from services.postprocess.c2pa_settings import DEVELOPMENT_ORGANISATION, library_settings
from services.postprocess.claim import GENERATION_LABEL, MARK_ALGORITHM

_UNTRUSTED: Final = "signingCredential.untrusted"
_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "assertion.bmffHash.mismatch": "bytes of the file were changed after it was signed",
        "assertion.dataHash.mismatch": "bytes of the file were changed after it was signed",
        "assertion.boxesHash.mismatch": "bytes of the file were changed after it was signed",
        "assertion.hashedURI.mismatch": "the manifest was changed after it was signed",
        "claimSignature.mismatch": "the signature does not belong to the manifest",
        "claimSignature.outsideValidity": "it was signed outside the time for which the certificate holds",
        "signingCredential.expired": "the certificate has expired",
        "signingCredential.revoked": "the certificate was revoked",
        "signingCredential.invalid": "the certificate must not sign manifests",
    }
)


class Trust(enum.Enum):
    """What is known of the signer."""

    TRUSTED = "trusted"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A manifest, and what is wrong with it or with the file that it is about; `problems` is empty for a whole one.

    `made` holds what Rushes writes of the making, `mark` the watermark's id as 16 hexadecimal digits.
    """

    problems: tuple[str, ...]
    trust: Trust = Trust.UNKNOWN
    signer: str = ""
    organisation: str = ""
    algorithm: str = ""
    software: str = ""
    source_type: str = ""
    mark: str = ""
    made: Mapping[str, str] = field(default_factory=dict)

    @property
    def development(self) -> bool:
        """Whether it was signed with a certificate that an embedded suite made for itself."""
        return self.organisation == DEVELOPMENT_ORGANISATION


def read_manifest(path: Path, content_type: str, anchors: str = "") -> Manifest | None:
    """The manifest of the file, None for a file without one; the authorities of `anchors` (PEM) are trusted.

    Raises `ValueError` for anchors that are none.
    """
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(library_settings(anchors)))
    except c2pa.C2paError as refused:
        raise ValueError("must be PEM certificates") from refused
    try:
        with context, path.open("rb") as file, c2pa.Reader(content_type, file, context=context) as reader:
            return _manifest(json.loads(reader.json()))
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError:
        return Manifest(problems=("the manifest, or the structure of the file around it, is damaged",))


def _manifest(said: Mapping[str, Any]) -> Manifest:
    active = said["manifests"][said["active_manifest"]]
    results = said.get("validation_results", {}).get("activeManifest", {})
    failures = [one["code"] for one in results.get("failure", [])]
    signature = active.get("signature_info", {})
    assertions = {one["label"]: one.get("data") or {} for one in active.get("assertions", [])}
    created = next((one for one in _actions(assertions) if one.get("action") == "c2pa.created"), {})
    agent = created.get("softwareAgent") or {}
    return Manifest(
        problems=tuple(dict.fromkeys(_WORDS.get(one, one) for one in failures if one != _UNTRUSTED)),
        trust=Trust.TRUSTED if said.get("validation_state") == "Trusted" else Trust.UNKNOWN,
        signer=str(signature.get("common_name", "")),
        organisation=str(signature.get("issuer", "")),
        algorithm=str(signature.get("alg", "")).lower(),
        software=str(agent.get("name", "")) if isinstance(agent, Mapping) else str(agent),
        source_type=str(created.get("digitalSourceType", "")),
        mark=_mark(assertions.get("c2pa.soft-binding", {})),
        made={str(name): str(value) for name, value in assertions.get(GENERATION_LABEL, {}).items()},
    )


def _actions(assertions: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [
        action
        for label, data in assertions.items()
        if label.startswith("c2pa.actions")
        for action in data.get("actions", [])
    ]


def _mark(binding: Mapping[str, Any]) -> str:
    blocks = binding.get("blocks") or [{}]
    return str(blocks[0].get("value", "")) if binding.get("alg") == MARK_ALGORITHM else ""
