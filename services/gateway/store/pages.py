"""Page tokens: opaque, and refused when anybody but a gateway of this database wrote them."""

import base64
import binascii
import hashlib
import hmac

from services.chassis.errors import FieldViolation, InvalidRequest

SIGNATURE_BYTES = 16


class BadPageToken(InvalidRequest):
    """The page token was not made by this service, or for another list."""

    reason = "PAGE_TOKEN_INVALID"

    def __init__(self) -> None:
        super().__init__(violations=[FieldViolation(field="page_token", rule="must be a next_page_token of this list")])


def _signature(key: bytes, scope: str, last: bytes) -> bytes:
    return hmac.digest(key, scope.encode() + b"\0" + last, hashlib.sha256)[:SIGNATURE_BYTES]


def page_token(key: bytes, scope: str, last: str) -> str:
    """The token of the page after the id `last`, valid for the list that `scope` names: tenant and filter."""
    return base64.urlsafe_b64encode(_signature(key, scope, last.encode()) + last.encode()).decode()


def last_of_page(key: bytes, scope: str, token: str) -> str:
    """The id after which the page begins. Raises `BadPageToken`."""
    try:
        content = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        last = content[SIGNATURE_BYTES:].decode()
    except (binascii.Error, UnicodeError):
        raise BadPageToken from None
    if not hmac.compare_digest(_signature(key, scope, last.encode()), content[:SIGNATURE_BYTES]):
        raise BadPageToken
    return last
