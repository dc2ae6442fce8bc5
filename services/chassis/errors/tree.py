"""The suite's errors: one tree, one table from class to gRPC code.

RushesError
├── InvalidRequest        INVALID_ARGUMENT     the request itself is wrong; names each field and rule
│   └── OutOfRange        OUT_OF_RANGE         a cursor or an offset beyond the end
├── Unauthenticated       UNAUTHENTICATED      nobody vouches for the caller
├── PermissionDenied      PERMISSION_DENIED    the caller is known, and may not
├── NotFound              NOT_FOUND            there is no such thing
├── AlreadyExists         ALREADY_EXISTS       there is such a thing, and it is another one
├── FailedPrecondition    FAILED_PRECONDITION  right request, wrong state; a retry alone does not help
├── Aborted               ABORTED              lost a race; start again from a fresh read
├── Exhausted             RESOURCE_EXHAUSTED   no room at this moment; says when to come back
├── Unavailable           UNAVAILABLE          not at this moment, for no fault of the caller; retry
├── Cancelled             CANCELLED            the work was given up
├── DeadlineExceeded      DEADLINE_EXCEEDED    the work did not end in time
├── DataLoss              DATA_LOSS            bytes arrived other than they were sent
├── Unimplemented         UNIMPLEMENTED        this server does not do that
└── Internal              INTERNAL             a fault of ours; the cause is in the log, under the incident's id

A service raises these; anything else that leaves a handler reaches the caller as `Internal`, without its text. So a
message here is for the caller: one sentence, no path, no internal name, no secret.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Final, Self

import grpc

DOMAIN: Final = "rushes.dev"
"""The domain of every reason (google.rpc.ErrorInfo)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldViolation:
    """One broken rule: the field's path in the request (`settings.num_frames`) and the rule in words."""

    field: str
    rule: str


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaViolation:
    """One exhausted quota: whose (`tenant:acme`) and which, in words."""

    subject: str
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """The thing that an error is about: its kind (`generation`) and its public name or id."""

    kind: str
    name: str


class RushesError(Exception):
    """The request failed."""

    reason: str = "RUSHES_ERROR"
    """Stable, UPPER_SNAKE, at most 63 characters: what a program switches on."""

    def __init__(
        self, message: str | None = None, *, reason: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        """`message` is one sentence for the caller, else the class's docstring; `metadata` goes with the reason."""
        super().__init__(message or cleandoc(self.__doc__ or ""))
        if reason is not None:
            self.reason = reason
        self.metadata: Mapping[str, str] = dict(metadata or {})

    @property
    def message(self) -> str:
        """The sentence for the caller."""
        return str(self.args[0])


class InvalidRequest(RushesError):
    """The request is invalid."""

    reason = "INVALID_REQUEST"

    def __init__(
        self,
        message: str | None = None,
        *,
        violations: Sequence[FieldViolation] = (),
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Without a message the violations make the sentence."""
        sentence = message or "; ".join(f"{violation.field}: {violation.rule}" for violation in violations) or None
        super().__init__(sentence, reason=reason, metadata=metadata)
        self.violations: tuple[FieldViolation, ...] = tuple(violations)

    @classmethod
    def of(cls, field: str, rule: str, *, reason: str | None = None) -> Self:
        """The refusal of one field."""
        return cls(violations=[FieldViolation(field=field, rule=rule)], reason=reason)


class OutOfRange(InvalidRequest):
    """The request asks for what lies beyond the end."""

    reason = "OUT_OF_RANGE"


class Unauthenticated(RushesError):
    """The call carries no valid credentials."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(RushesError):
    """The caller may not do this."""

    reason = "PERMISSION_DENIED"


class _AboutResource(RushesError):
    """An error about one thing."""

    def __init__(
        self,
        message: str | None = None,
        *,
        resource: Resource | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.resource = resource


class NotFound(_AboutResource):
    """There is no such thing."""

    reason = "NOT_FOUND"


class AlreadyExists(_AboutResource):
    """There already is such a thing."""

    reason = "ALREADY_EXISTS"


class FailedPrecondition(RushesError):
    """The state of things does not allow this."""

    reason = "FAILED_PRECONDITION"


class Aborted(RushesError):
    """Another writer was faster."""

    reason = "ABORTED"


class Exhausted(RushesError):
    """There is no room at this moment."""

    reason = "EXHAUSTED"

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after_seconds: float | None = None,
        quota: QuotaViolation | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """`retry_after_seconds` is when to come back (None: not known); `quota` names an exhausted quota."""
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after_seconds = retry_after_seconds
        self.quota = quota


class Unavailable(RushesError):
    """The service is not available at this moment."""

    reason = "UNAVAILABLE"

    def __init__(
        self,
        message: str | None = None,
        *,
        retry_after_seconds: float | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """`retry_after_seconds` is when to come back; None leaves it to the caller's own backoff."""
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after_seconds = retry_after_seconds


class Cancelled(RushesError):
    """The work was cancelled."""

    reason = "CANCELLED"


class DeadlineExceeded(RushesError):
    """The work did not end before its deadline."""

    reason = "DEADLINE_EXCEEDED"


class DataLoss(RushesError):
    """Data arrived damaged."""

    reason = "DATA_LOSS"


class Unimplemented(RushesError):
    """This server does not offer that."""

    reason = "UNIMPLEMENTED"


class Internal(RushesError):
    """An internal error occurred."""

    reason = "INTERNAL"


CODES: Final[Mapping[type[RushesError], grpc.StatusCode]] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    Aborted: grpc.StatusCode.ABORTED,
    Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Cancelled: grpc.StatusCode.CANCELLED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    DataLoss: grpc.StatusCode.DATA_LOSS,
    Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    Internal: grpc.StatusCode.INTERNAL,
}
"""The one table from error class to gRPC code; a subclass of a row has the row's code."""


def code_of(error: RushesError) -> grpc.StatusCode:
    """The gRPC code of `error`: the row of the nearest class in its line of descent."""
    return next((CODES[cls] for cls in type(error).__mro__ if cls in CODES), grpc.StatusCode.INTERNAL)
