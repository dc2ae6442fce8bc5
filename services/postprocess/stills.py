"""Stills of a clip, taken from its frames as they pass: a poster, and a contact sheet."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from services.postprocess.frames import Frames, Pixels

_COLUMNS, _ROWS = 4, 3
_CELL = 232
_GAP = 4
_PAPER = 24
_POSTER_EDGE = 1280


@dataclass(frozen=True, kw_only=True, slots=True)
class Still:
    """An encoded picture: `format` is `JPEG` or `PNG`, the size is in pixels."""

    format: str
    width: int
    height: int
    data: bytes


class Taker(Protocol):
    """Keeps what it wants of the frames that pass."""

    def take(self, index: int, picture: Pixels) -> None:
        """See frame `index` of the clip."""
        ...


class StillTaker:
    """Stage `still`: lets all frames through and keeps the few that the poster and the contact sheet show.

    It holds one frame at full size and at most twelve small ones, however long the clip of `total` frames is. `poster`
    and `contact_sheet` say what is wanted; `flush` makes it, while the encoder is still at work. The `takers` take
    what they want on the way.
    """

    name = "still"

    def __init__(
        self, *, total: int, poster: bool = True, contact_sheet: bool = True, takers: Sequence[Taker] = ()
    ) -> None:
        self._takers = takers
        self._middle = total // 2 if poster else -1
        shown = min(total, _COLUMNS * _ROWS) if contact_sheet else 0
        self._shown = {round(index * (total - 1) / max(1, shown - 1)) for index in range(shown)}
        self._frame: Image.Image | None = None
        self._cells: list[Image.Image] = []
        self.poster: Still | None = None
        self.contact_sheet: Still | None = None

    def push(self, item: Frames) -> Iterator[Frames]:
        """Keep what is wanted of these frames, and pass them on as they are."""
        for offset, picture in enumerate(item.pixels):
            for taker in self._takers:
                taker.take(item.first + offset, picture)
            if item.first + offset == self._middle:
                self._frame = _fitted(picture, _POSTER_EDGE)
            if item.first + offset in self._shown:
                self._cells.append(_fitted(picture, _CELL))
        yield item

    def flush(self) -> Iterator[Frames]:
        """Make the stills; no frames are held back.

        The poster is the middle frame as JPEG, its longer edge at most 1280 pixels; the contact sheet shows up to
        twelve frames spread evenly over the clip, in reading order, as PNG of at most 2 MiB.
        """
        if self._frame is not None:
            self.poster = _encoded(self._frame, "JPEG", quality=92, subsampling=0)
        if self._cells:
            self.contact_sheet = _encoded(_sheet(self._cells), "PNG")
        yield from ()


def _sheet(cells: list[Image.Image]) -> Image.Image:
    width, height = cells[0].size
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, (_PAPER, _PAPER, _PAPER))
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (column * (width + _GAP), row * (height + _GAP)))
    return sheet


def _fitted(picture: Pixels, edge: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return image


def _encoded(image: Image.Image, image_format: str, **options: int) -> Still:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return Still(format=image_format, width=image.width, height=image.height, data=buffer.getvalue())
