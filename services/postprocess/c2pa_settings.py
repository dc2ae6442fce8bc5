"""What those who sign and those who verify tell the C2PA library alike."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

PURPOSES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "1.3.6.1.5.5.7.3.4": "e-mail protection",
        "1.3.6.1.5.5.7.3.36": "document signing",
        "1.3.6.1.4.1.62558.2.1": "C2PA claim signing",
    }
)
"""Extended key usages, any one of which a signer's certificate must have."""

DEVELOPMENT_ORGANISATION: Final = "Rushes development certificate, not to be trusted"
"""The organisation of certificates that an embedded suite makes for itself; no other may call itself so."""


def library_settings(anchors: str = "") -> dict[str, Any]:
    """No thumbnails, nothing from the network, the purposes above, and trust in the authorities of `anchors` (PEM)."""
    trust = {"trust_config": "\n".join(PURPOSES)} | ({"trust_anchors": anchors} if anchors else {})
    return {
        "builder": {"thumbnail": {"enabled": False}},
        "trust": trust,
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    }
