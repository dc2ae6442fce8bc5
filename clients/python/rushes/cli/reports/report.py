"""The one interface of all reports, and the choice among them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rushes.client.errors import RushesError
from rushes.v1.generation_pb2 import Generation, GenerationEvent


class Report(Protocol):
    """Told what happens, in the order in which it happens."""

    def loading(self, what: str, seconds: float | None) -> None:
        """A part of the embedded suite begins to load, or has loaded in so many seconds."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""

    def event(self, event: GenerationEvent) -> None:
        """Something happened to the generation."""

    def reconnecting(self, failure: RushesError) -> None:
        """The stream was lost and is opened again."""

    def saved(self, kind: str, path: Path) -> None:
        """A file was written: `video`, `contact_sheet` or `preview`."""

    def finished(self, generation: Generation) -> None:
        """The generation ended and its files are written."""


@contextmanager
def open_report(*, as_json: bool) -> Iterator[Report]:
    """JSON where it is asked for; bars on a terminal; otherwise at most one line a stage."""
    if as_json:
        from rushes.cli.reports.json_lines import JsonReport  # noqa: PLC0415 - only the report in use is loaded

        yield JsonReport()
        return
    from rich.console import Console  # noqa: PLC0415 - as above

    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        from rushes.cli.reports.terminal import TerminalReport  # noqa: PLC0415 - as above

        with TerminalReport(console) as report:
            yield report
    else:
        from rushes.cli.reports.lines import LineReport  # noqa: PLC0415 - as above

        yield LineReport()
