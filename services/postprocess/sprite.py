"""Thumbnails over time, as players show them above the seek bar: one JPEG grid, and a WebVTT track into it."""

import io
from fractions import Fraction

import numpy as np
from PIL import Image

from services.postprocess.frames import Pixels

SPRITE_NAME = "sprite.jpg"
TRACK_NAME = "sprite.vtt"

_COLUMNS = 5
_LEAST, _MOST = 25, 100
_EDGE = 160


class Sprite:
    """Collects up to a hundred thumbnails of a clip of `total` frames, spread evenly, at least one a second."""

    def __init__(self, *, total: int, fps: Fraction) -> None:
        count = min(total, _MOST, max(_LEAST, int(total / fps)))
        self._fps = fps
        self._total = total
        self._starts = [index * total // count for index in range(count)]
        self._wanted = frozenset(self._starts)
        self._cells: list[Image.Image] = []

    def take(self, index: int, picture: Pixels) -> None:
        """Keep the frame's thumbnail if it is one of those that are shown."""
        if index in self._wanted:
            image = Image.fromarray(np.ascontiguousarray(picture))
            image.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
            self._cells.append(image)

    def picture(self) -> bytes:
        """The grid, in reading order, as JPEG."""
        width, height = self._cells[0].size
        rows = -(-len(self._cells) // _COLUMNS)
        grid = Image.new("RGB", (min(len(self._cells), _COLUMNS) * width, rows * height))
        for index, cell in enumerate(self._cells):
            row, column = divmod(index, _COLUMNS)
            grid.paste(cell, (column * width, row * height))
        buffer = io.BytesIO()
        grid.save(buffer, "JPEG", quality=80)
        return buffer.getvalue()

    def track(self) -> str:
        """Where in the grid the thumbnail of each time lies (WebVTT with media fragments)."""
        width, height = self._cells[0].size
        ends = [*self._starts[1:], self._total]
        cues = []
        for index, (start, end) in enumerate(zip(self._starts, ends, strict=True)):
            row, column = divmod(index, _COLUMNS)
            place = f"{SPRITE_NAME}#xywh={column * width},{row * height},{width},{height}"
            cues.append(f"{timestamp(start / self._fps)} --> {timestamp(end / self._fps)}\n{place}\n")
        return "WEBVTT\n\n" + "\n".join(cues)


def timestamp(seconds: Fraction | float) -> str:
    """A time as WebVTT writes it, to the millisecond."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
