"""How a command ends: an exit code, and one line that says why."""

from dataclasses import dataclass

import typer.exceptions

from rushes.cli.refusal import CommandRefused
from rushes.client import errors

OK = 0
BAD_INPUT = 2
UNAVAILABLE = 3
FAILED = 4
BROKEN = 5
UNDECLARED = 6
CANCELLED = 130

_UNAVAILABLE = (errors.Unavailable, errors.Exhausted, errors.DeadlineExceeded, errors.Aborted, errors.Cancelled)
_FAILED = (errors.GenerationFailed, errors.DataLoss, errors.Internal)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """The exit code, the line for people, and the same facts for machines."""

    code: int
    line: str
    facts: dict[str, object]


def ending_of(failure: Exception) -> Ending:
    """How a command ends with this failure."""
    if isinstance(failure, errors.RushesError):
        return _of_call(failure)
    if isinstance(failure, CommandRefused):
        return _ending(failure.code, str(failure), "REFUSED", field=failure.field, rule=failure.rule)
    if isinstance(failure, typer.exceptions.TyperException):
        return _ending(BAD_INPUT, failure.format_message().rstrip("."), "BAD_USAGE")
    if isinstance(failure, OSError):
        where = f"{failure.filename}: " if failure.filename else ""
        return _ending(FAILED, f"{where}{failure.strerror or failure}", "FILE_OR_SOCKET")
    if isinstance(failure, ModuleNotFoundError):
        return _ending(BAD_INPUT, f"{failure.name} is not installed: pip install 'rushes[all]'", "NOT_INSTALLED")
    what = f"{type(failure).__name__}: {failure}".splitlines()[0]
    return _ending(FAILED, f"a fault of the program: {what} (RUSHES_DEBUG=1 shows where)", "FAULT")


def _of_call(failure: errors.RushesError) -> Ending:
    if isinstance(failure, errors.GenerationCancelled):
        code = CANCELLED
    elif isinstance(failure, _UNAVAILABLE):
        code = UNAVAILABLE
    elif isinstance(failure, _FAILED):
        code = FAILED
    else:
        code = BAD_INPUT
    line = str(failure)
    facts: dict[str, object] = {}
    if failure.violations:
        facts["violations"] = [{"field": one.field, "rule": one.rule} for one in failure.violations]
    if failure.retry_after_seconds is not None:
        facts["retry_after_seconds"] = failure.retry_after_seconds
        line = f"{line} (try again in {failure.retry_after_seconds:.0f} s)"
    return _ending(code, line, failure.reason, **facts)


def _ending(code: int, line: str, reason: str, **facts: object) -> Ending:
    return Ending(code=code, line=line, facts={"exit_code": code, "reason": reason, "message": line, **facts})
