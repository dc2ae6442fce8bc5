"""Bars for each stage, and the waterfall at the end."""

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column

from rushes.cli.charts import print_parts
from rushes.cli.reports import wording
from rushes.cli.reports.steps import Pace
from rushes.client.errors import RushesError
from rushes.v1.generation_pb2 import Generation, GenerationEvent

DETAIL_WIDTH = 72
"""Columns that the longest line needs beside its bar."""


class TerminalReport:
    """A live table of bars; lines that must stay are printed above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=max(8, min(32, console.width - DETAIL_WIDTH))),
            TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
        )
        self._bars: dict[str, TaskID] = {}
        self._pace = Pace()
        self._loading: list[str] = []
        self._bytes = self._frames = self._all_frames = 0
        self._files: list[str] = []

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def loading(self, what: str, seconds: float | None) -> None:
        """See `Report`."""
        if what == "suite":
            if seconds is not None:
                self._show("load", 1, 1, f"ready in {wording.seconds(seconds)}")
            return
        if seconds is None:
            self._loading.append(what)
        elif what in self._loading:
            self._loading.remove(what)
        self._show("load", None, 0, ", ".join(self._loading))

    def notice(self, text: str) -> None:
        """See `Report`."""
        self._console.print(text, style="yellow")

    def event(self, event: GenerationEvent) -> None:
        """See `Report`."""
        kind = event.WhichOneof("event")
        if kind == "queued":
            self._show("queue", None, 0, wording.queued(event.queued))
        elif kind == "started":
            self._show("queue", 1, 1, f"waited {wording.seconds(event.started.queue_seconds)}")
            self._show("encode", None, 0, "")
        elif kind == "encoded":
            self._show("encode", 1, 1, wording.encoded(event.encoded))
        elif kind == "denoising":
            self._show("denoise", event.denoising.total_steps, event.denoising.first_step, "")
        elif kind == "step":
            self._pace.take(event.step)
            self._show("denoise", event.step.total, event.step.index + 1, self._pace.now(event.step))
        elif kind == "rendering":
            self._show("denoise", self._pace.total, self._pace.total, self._pace.summary())
            self._all_frames = event.rendering.num_frames
            self._show_render()
        elif kind == "rendered":
            self._frames, self._all_frames = event.rendered.frames_decoded, event.rendered.frames_total
            self._show_render()
        elif kind == "fragment":
            self._bytes += len(event.fragment.data)
            self._show_render()
        elif kind == "resumed":
            self.notice(f"going on from step {event.resumed.next_step}: {event.resumed.reason}")
        elif kind == "retaken":
            self._pace, self._bytes, self._frames = Pace(), 0, 0
            self.notice(wording.retaken(event.retaken))

    def reconnecting(self, failure: RushesError) -> None:
        """See `Report`."""
        self.notice(f"connecting again: {failure}")

    def saved(self, kind: str, path: Path) -> None:
        """See `Report`."""
        if kind != "preview":
            self._files.append(str(path))

    def finished(self, generation: Generation) -> None:
        """See `Report`."""
        self._progress.stop()
        for path in self._files:
            self._console.print(path, style="bold")
        clip = f"{wording.video(generation.video)}, " if generation.HasField("video") else ""
        for found in generation.video.findings:
            self._console.print(f"finding: {wording.finding(found)}", style="yellow")
        self._console.print(f"{wording.state(generation)}: {clip}{wording.made_with(generation)}, {generation.id}")
        if generation.HasField("latency"):
            print_parts(self._console, generation.latency)

    def _show_render(self) -> None:
        detail = f"{self._frames}/{self._all_frames} frames  {wording.size(self._bytes)}"
        self._show("render", self._all_frames, self._frames, detail)

    def _show(self, stage: str, total: float | None, completed: float, detail: str) -> None:
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=total, detail=detail)
        self._progress.update(self._bars[stage], total=total, completed=completed, detail=detail)
