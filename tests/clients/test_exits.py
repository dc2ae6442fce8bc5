import pytest

from rushes.cli.exits import ending_of
from rushes.cli.refusal import CommandRefused
from rushes.client import DataLoss, DeadlineExceeded, Exhausted, Internal, NotFound, RushesError, Unauthenticated


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (NotFound("There is none."), 2, "There is none."),
        (Unauthenticated("Who is there?"), 2, "Who is there?"),
        (Exhausted("Full.", retry_after_seconds=3.0), 3, "Full. (try again in 3 s)"),
        (DeadlineExceeded("Too late."), 3, "Too late."),
        (DataLoss("A hole."), 4, "A hole."),
        (Internal("A fault."), 4, "A fault."),
        (CommandRefused("--state", "is in use", code=3), 3, "--state: is in use"),
        (PermissionError(13, "Permission denied", "clip.mp4"), 4, "clip.mp4: Permission denied"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "torch is not installed: pip install"),
        (KeyError("x\ny"), 4, "a fault of the program: KeyError: "),
    ],
)
def test_every_failure_is_a_code_and_one_line(failure: Exception, code: int, line: str) -> None:
    ending = ending_of(failure)

    assert ending.code == code
    assert ending.line.startswith(line)
    assert "\n" not in ending.line
    assert ending.facts["exit_code"] == code


def test_no_kind_of_failure_of_a_call_is_forgotten() -> None:
    for kind in RushesError.__subclasses__():
        if kind.__init__ is RushesError.__init__:
            assert ending_of(kind("why")).code in {2, 3, 4}
