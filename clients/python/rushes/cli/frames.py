"""`rushes frames`: frames of a finished clip as pictures."""

import asyncio
import re
import sys
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from rushes.cli.endpoint import Endpoint
from rushes.cli.refusal import CommandRefused
from rushes.cli.reports.json_lines import print_json
from rushes.client.frames import FRAME_FORMATS

_RANGE = re.compile(r"(\d{0,7})(?::(\d{0,7}))?")
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which frames, and as what; a `count` of 0 means all that follow."""

    first: int
    count: int
    form: str
    quality: int
    max_edge: int

    @classmethod
    def of(cls, text: str, *, form: str, quality: int, max_edge: int) -> "Wanted":
        """From `FIRST:END`, `FIRST:`, `:END`, `:` or one number. Raises `CommandRefused`."""
        if form not in FRAME_FORMATS:
            raise CommandRefused("--format", f"must be one of {', '.join(FRAME_FORMATS)}")
        found = _RANGE.fullmatch(text)
        if not found or not text:
            raise CommandRefused("--range", "must be FIRST:END, for example 0:16")
        first = int(found[1] or 0)
        single = found[2] is None
        count = 1 if single else int(found[2]) - first if found[2] else 0
        if not single and found[2] and count < 1:
            raise CommandRefused("--range", "must end after it begins")
        return cls(first=first, count=count, form=form, quality=quality, max_edge=max_edge)


async def save_frames(endpoint: Endpoint, generation_id: str, wanted: Wanted, out: Path, *, as_json: bool) -> None:
    """Write `frame-000000.png` and so on, and print the names."""
    await asyncio.to_thread(out.mkdir, parents=True, exist_ok=True)
    async with endpoint.client() as client:
        stream = client.frames(
            generation_id,
            first=wanted.first,
            count=wanted.count,
            form=wanted.form,
            quality=wanted.quality,
            max_edge=wanted.max_edge,
        )
        async with aclosing(stream) as frames:
            async for frame in frames:
                path = out / f"frame-{frame.index:06d}{_SUFFIXES[wanted.form]}"
                await asyncio.to_thread(path.write_bytes, frame.data)
                if as_json:
                    print_json("saved", what="frame", index=frame.index, seconds=frame.seconds, path=str(path))
                else:
                    sys.stdout.write(f"{path}\n")
