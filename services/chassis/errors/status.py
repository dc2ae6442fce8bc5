"""A `RushesError` as `google.rpc.Status`, and back on the caller's side."""

from collections.abc import Iterable
from typing import Final, TypeVar

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from services.chassis.errors.tree import (
    CODES,
    DOMAIN,
    AlreadyExists,
    Exhausted,
    FieldViolation,
    Internal,
    InvalidRequest,
    NotFound,
    QuotaViolation,
    Resource,
    RushesError,
    Unavailable,
    code_of,
)

_DETAILS_KEY: Final = "grpc-status-details-bin"
# Codes that no row of the table has: what a caller makes of a peer that is not of this suite.
_NEAREST: Final = {grpc.StatusCode.UNKNOWN: Internal}
_CLASSES: Final = {code: cls for cls, code in CODES.items()} | _NEAREST
# A status travels in trailers, of which gRPC takes 8 KiB; a larger one would arrive as another error.
_MAX_VIOLATIONS: Final = 8
_M = TypeVar("_M", bound=Message)


def to_status(error: BaseException) -> Status:
    """The status that a caller sees: code, sentence, `ErrorInfo`, and the details that the class has.

    A failed call to another service is translated by `from_rpc_error`. Anything outside the tree becomes `Internal`
    with its bland sentence: text of an unknown exception may hold a path, an address or a secret.
    """
    if isinstance(error, grpc.aio.AioRpcError):
        error = from_rpc_error(error)
    if not isinstance(error, RushesError):
        error = Internal()
    status = Status(code=code_of(error).value[0], message=_short(error.message, 500))
    for detail in _details(error):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_rpc_error(error: grpc.aio.AioRpcError) -> RushesError:
    """The error that a failed call stands for, with the details that the server sent.

    Without details of this suite the peer was a proxy, the transport or a foreign server: the class follows the code,
    and the sentence is the class's own, because theirs names addresses and sockets.
    """
    cls = _CLASSES.get(error.code(), Internal)
    status = _sent_status(error)
    info = _find(status, error_details_pb2.ErrorInfo) if status is not None else None
    if status is None or info is None or info.domain != DOMAIN:
        return cls()
    found = cls(status.message, reason=info.reason, metadata=dict(info.metadata))
    if isinstance(found, InvalidRequest) and (bad := _find(status, error_details_pb2.BadRequest)):
        found.violations = tuple(
            FieldViolation(field=each.field, rule=each.description) for each in bad.field_violations
        )
    if isinstance(found, Exhausted | Unavailable) and (retry := _find(status, error_details_pb2.RetryInfo)):
        found.retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    if isinstance(found, Exhausted) and (failure := _find(status, error_details_pb2.QuotaFailure)):
        found.quota = next(
            (QuotaViolation(subject=v.subject, description=v.description) for v in failure.violations), None
        )
    if isinstance(found, NotFound | AlreadyExists) and (about := _find(status, error_details_pb2.ResourceInfo)):
        found.resource = Resource(kind=about.resource_type, name=about.resource_name)
    return found


def _details(error: RushesError) -> Iterable[Message]:
    yield error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    if isinstance(error, InvalidRequest) and error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_short(violation.field, 100), description=_short(violation.rule, 200)
            )
            for violation in error.violations[:_MAX_VIOLATIONS]
        ]
        yield error_details_pb2.BadRequest(field_violations=violations)
    if isinstance(error, Exhausted | Unavailable) and error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        yield error_details_pb2.RetryInfo(retry_delay=delay)
    if isinstance(error, Exhausted) and error.quota is not None:
        violation = error_details_pb2.QuotaFailure.Violation(
            subject=error.quota.subject, description=error.quota.description
        )
        yield error_details_pb2.QuotaFailure(violations=[violation])
    if isinstance(error, NotFound | AlreadyExists) and error.resource is not None:
        yield error_details_pb2.ResourceInfo(resource_type=error.resource.kind, resource_name=error.resource.name)


def _short(text: str, limit: int) -> str:
    """`text` in at most about `limit` bytes of UTF-8."""
    encoded = text.encode()
    return text if len(encoded) <= limit else encoded[:limit].decode(errors="ignore") + "…"


def _sent_status(error: grpc.aio.AioRpcError) -> Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                return None
    return None


def _find(status: Status, cls: type[_M]) -> _M | None:
    for packed in status.details:
        if packed.Is(cls.DESCRIPTOR):
            detail = cls()
            return detail if packed.Unpack(detail) else None
    return None
