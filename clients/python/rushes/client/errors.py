"""What can go wrong, as the caller sees it.

RushesError
├── InvalidRequest        a field breaks a rule; `violations` names both
├── Unauthenticated       the API key is missing, unknown or expired
├── PermissionDenied      the API key does not allow this
├── NotFound              there is nothing of that id
├── AlreadyExists         the request id was used with another request
├── FailedPrecondition    not in this state: for example a clip that is not ready
├── OutOfRange            a cursor or an offset beyond the end
├── Exhausted             too much at once; `retry_after_seconds` says when to try again
├── Unavailable           nobody answers; trying again may help
├── Aborted               another writer was faster; trying again may help
├── DeadlineExceeded      the time allowed for the call is over
├── Cancelled             the server gave the call up
├── DataLoss              bytes or events are missing or damaged
├── Unimplemented         the server does not know the method
├── Internal              a fault of the server
├── GenerationFailed      the generation ended in FAILED
└── GenerationCancelled   the generation ended in CANCELLED
"""

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from rushes.v1.generation_pb2 import Generation

STATUS_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldViolation:
    """The path of a field of the request, and the rule that its value breaks."""

    field: str
    rule: str


class RushesError(Exception):
    """Any failure of a call.

    `message` is one sentence, `reason` a stable word in UPPER_SNAKE_CASE to branch on, `metadata` further facts.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: tuple[FieldViolation, ...] = (),
        retry_after_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.violations = violations
        self.retry_after_seconds = retry_after_seconds
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        if self.violations:
            return "; ".join(f"{violation.field}: {violation.rule}" for violation in self.violations)
        return self.message


class InvalidRequest(RushesError):
    """A field of the request breaks a rule."""


class Unauthenticated(RushesError):
    """The API key is missing, unknown or expired."""


class PermissionDenied(RushesError):
    """The API key does not allow this."""


class NotFound(RushesError):
    """There is nothing of that id."""


class AlreadyExists(RushesError):
    """The request id was used with another request."""


class FailedPrecondition(RushesError):
    """The thing asked for is not in a state that allows this."""


class OutOfRange(RushesError):
    """A cursor or an offset lies beyond the end."""


class Exhausted(RushesError):
    """Too much at once; `retry_after_seconds` says when to try again."""


class Unavailable(RushesError):
    """Nobody answers; trying again may help."""


class Aborted(RushesError):
    """Another writer was faster; trying again may help."""


class DeadlineExceeded(RushesError):
    """The time allowed for the call is over."""


class Cancelled(RushesError):
    """The server gave the call up."""


class DataLoss(RushesError):
    """Bytes or events are missing or damaged."""


class Unimplemented(RushesError):
    """The server does not know the method."""


class Internal(RushesError):
    """A fault of the server."""


class GenerationFailed(RushesError):
    """The generation ended in FAILED; `generation` is how it ended."""

    def __init__(self, generation: Generation) -> None:
        failure = generation.failure
        super().__init__(
            f"{failure.stage}: {failure.message}" if failure.stage else failure.message, reason=failure.reason
        )
        self.generation = generation


class GenerationCancelled(RushesError):
    """The generation ended in CANCELLED; `generation` is how it ended."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(f"generation {generation.id} was cancelled", reason="GENERATION_CANCELLED")
        self.generation = generation


ERROR_OF_CODE: Mapping[grpc.StatusCode, type[RushesError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}

TRANSPORT_CODES = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})
"""What a reset of the HTTP/2 stream turns into when no application wrote a status."""


def from_rpc_error(failure: grpc.aio.AioRpcError) -> RushesError:
    """The error of the tree for a failed call, with the details of its `google.rpc.Status`."""
    details = failure.details() or ""
    status = _status(failure)
    if status is None:
        if failure.code() in TRANSPORT_CODES or "Stream removed" in details:
            return Unavailable("the connection was lost", reason="CONNECTION_LOST")
        kind = ERROR_OF_CODE.get(failure.code(), Internal)
        return kind(details or failure.code().name.lower().replace("_", " "), reason=failure.code().name)
    reason, metadata = "", {}
    violations: list[FieldViolation] = []
    retry_after_seconds = None
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations += [FieldViolation(field=one.field, rule=one.description) for one in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    kind = ERROR_OF_CODE.get(failure.code(), Internal)
    return kind(
        status.message or details,
        reason=reason or failure.code().name,
        violations=tuple(violations),
        retry_after_seconds=retry_after_seconds,
        metadata=metadata,
    )


def _status(failure: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in failure.trailing_metadata():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None
