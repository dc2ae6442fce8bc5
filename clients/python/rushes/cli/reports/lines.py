"""At most one line a stage, for pipes and logs."""

import sys
from pathlib import Path

from rushes.cli.reports import wording
from rushes.cli.reports.steps import Pace
from rushes.client.errors import RushesError
from rushes.v1.generation_pb2 import Generation, GenerationEvent


class LineReport:
    """Says what is done, when it is done."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._decode_seconds = 0.0

    def loading(self, what: str, seconds: float | None) -> None:
        """See `Report`. Only the whole is worth a line."""
        if seconds is not None and what == "suite":
            _line("load", f"the suite in {wording.seconds(seconds)}")

    def notice(self, text: str) -> None:
        """See `Report`."""
        _line("note", text)

    def event(self, event: GenerationEvent) -> None:
        """See `Report`."""
        kind = event.WhichOneof("event")
        if kind == "queued":
            _line("queue", f"{event.generation_id}: {wording.queued(event.queued)}")
        elif kind == "encoded":
            _line("encode", wording.encoded(event.encoded))
        elif kind == "step":
            self._pace.take(event.step)
        elif kind == "rendering":
            _line("denoise", self._pace.summary())
        elif kind == "rendered":
            self._decode_seconds += event.rendered.seconds
            if event.rendered.frames_decoded == event.rendered.frames_total:
                _line("render", f"{event.rendered.frames_total} frames in {wording.seconds(self._decode_seconds)}")
        elif kind == "resumed":
            _line("resume", f"from step {event.resumed.next_step}: {event.resumed.reason}")
        elif kind == "retaken":
            self._pace, self._decode_seconds = Pace(), 0.0
            _line("retake", wording.retaken(event.retaken))

    def reconnecting(self, failure: RushesError) -> None:
        """See `Report`."""
        _line("retry", str(failure))

    def saved(self, kind: str, path: Path) -> None:
        """See `Report`."""
        if kind != "preview":
            _line("saved", str(path))

    def finished(self, generation: Generation) -> None:
        """See `Report`."""
        whole = wording.seconds(generation.latency.total_seconds)
        clip = f", {wording.video(generation.video)}" if generation.HasField("video") else ""
        for found in generation.video.findings:
            _line("finding", wording.finding(found))
        _line(wording.state(generation), f"{generation.id} in {whole}{clip}, {wording.made_with(generation)}")


def _line(stage: str, text: str) -> None:
    sys.stdout.write(f"{stage:<10} {text}\n")
    sys.stdout.flush()
