"""`rushes generate --batch`: many prompts, one progress bar."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rushes.cli.fetching import fetch_files
from rushes.cli.recording import Recording
from rushes.cli.refusal import CommandRefused
from rushes.cli.reports.json_lines import JsonReport
from rushes.cli.reports.lines import LineReport
from rushes.cli.reports.report import Report
from rushes.client import (
    Client,
    InvalidRequest,
    RushesError,
    finish_plan,
    generation_at_end,
    generation_spec,
    succeeded,
    video_settings,
)
from rushes.v1.generation_pb2 import Generation, GenerationEvent, GenerationSpec

WATCHED_AT_ONCE = 8
"""Generations of a batch run in order: more watchers would only wait."""

DENOISING_SHARE = 0.8


def read_batch(path: Path, settings: Mapping[str, object]) -> list[GenerationSpec]:
    """One generation a line: a JSON string, which is a prompt, or an object with `prompt` and any setting.

    The names of the settings are those of `rushes.client.generation_spec`; `finish` and `video` are objects of the
    settings of `finish_plan` and `video_settings`. What a line leaves out is taken from `settings`. Raises
    `CommandRefused` naming the line.
    """
    specs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            said = {"prompt": said} if isinstance(said, str) else dict(said)
            for name, made in (("finish", finish_plan), ("video", video_settings)):
                if name in said:
                    said[name] = made(**said[name])
            specs.append(generation_spec(**{**settings, **said}))
        except InvalidRequest as refused:
            raise CommandRefused(f"--batch, line {number}", str(refused)) from None
        except (ValueError, TypeError):
            rule = "must be a JSON string or an object with `prompt` and settings by their names"
            raise CommandRefused(f"--batch, line {number}", rule) from None
    if not specs:
        raise CommandRefused("--batch", f"{path} has no line")
    return specs


class Batch:
    """Generations that were handed in together, followed to their ends."""

    def __init__(
        self,
        client: Client,
        folder: Path | None,
        report: Report,
        bar: "Bar | None",
        formats: tuple[str, ...] = ("mp4",),
    ) -> None:
        self._formats = formats
        self._client = client
        self._folder = folder
        self._report = report
        self._bar = bar
        self._room = asyncio.Semaphore(WATCHED_AT_ONCE)
        self._unfinished: set[str] = set()
        self._failures = 0

    async def make(self, specs: list[GenerationSpec]) -> None:
        """Make every clip and write its files. An interrupt cancels what has not ended.

        Raises `CommandRefused` with exit code 4 if any failed; the others are made all the same.
        """
        generations = await self._client.create_many(specs)
        self._unfinished = {generation.id for generation in generations}
        try:
            async with asyncio.TaskGroup() as group:
                for generation in generations:
                    group.create_task(self._follow(generation))
        except asyncio.CancelledError:
            for generation_id in self._unfinished:
                with suppress(RushesError):
                    await self._client.cancel(generation_id)
            raise
        if self._failures:
            raise CommandRefused("", f"{self._failures} of {len(generations)} generations failed", code=4)

    async def _follow(self, generation: Generation) -> None:
        async with self._room:
            recording = Recording(self._folder, None, self._report, formats=self._formats)
            try:
                await self._record(generation, recording)
            except RushesError as failure:
                recording.discard()
                self._failures += 1
                self._report.notice(f"{generation.id}: {failure}")
            finally:
                if self._bar is not None:
                    self._bar.advance(generation.id, 1.0)
            self._unfinished.discard(generation.id)

    async def _record(self, generation: Generation, recording: Recording) -> None:
        recording.name(generation.spec)
        finished = generation
        async with aclosing(self._client.watch(generation.id)) as events:
            async for event in events:
                recording.take(event)
                if isinstance(self._report, JsonReport):
                    self._report.event(event)
                if self._bar is not None:
                    self._bar.advance(generation.id, _share(event))
                ended = generation_at_end(event)
                if ended is not None:
                    finished = succeeded(ended)
        await fetch_files(self._client, finished, recording, self._report)


class Bar:
    """One bar for all clips; each counts by the share of its work that is done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("clips", total=total)
        self._shares: dict[str, float] = {}

    def advance(self, generation_id: str, share: float) -> None:
        """Note the share of a generation; it never goes back."""
        self._shares[generation_id] = max(self._shares.get(generation_id, 0.0), share)
        self._progress.update(self._task, completed=sum(self._shares.values()))


@contextmanager
def open_batch_report(total: int, *, as_json: bool) -> Iterator[tuple[Report, Bar | None]]:
    """JSON, a bar on a terminal, or a line a clip."""
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        yield JsonReport(), None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            yield LineReport(), Bar(progress, total)
    else:
        yield LineReport(), None


def _share(event: GenerationEvent) -> float:
    kind = event.WhichOneof("event")
    if kind == "step":
        return DENOISING_SHARE * (event.step.index + 1) / max(event.step.total, 1)
    if kind == "rendered":
        done = event.rendered.frames_decoded / max(event.rendered.frames_total, 1)
        return DENOISING_SHARE + (1 - DENOISING_SHARE) * done
    return 0.0
