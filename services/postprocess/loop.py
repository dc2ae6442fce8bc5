"""Stage `loop`: a cross-fade from the end into the beginning, so that a clip repeats without a seam."""

from collections.abc import Iterator

import numpy as np

from services.postprocess.frames import Frames, Pixels


class Looper:
    """Turns `total` frames into `total - overlap`: the first `overlap` frames come last, the end dissolving into them.

    It holds `overlap` frames. The last frame given is followed by the first one given. Raises `ValueError` unless the
    overlap is at most half of the clip.
    """

    name = "loop"

    def __init__(self, *, total: int, overlap: int) -> None:
        if not 0 < overlap <= total // 2:
            raise ValueError(f"the overlap must be 1 to {total // 2} frames, not {overlap}")
        self._overlap = overlap
        self._end = total - overlap
        self._beginning: list[Pixels] = []

    def push(self, item: Frames) -> Iterator[Frames]:
        """The frames after the beginning, moved to the front; at the end mixed with those of the beginning."""
        given = [
            made
            for offset, picture in enumerate(item.pixels)
            if (made := self._next(item.first + offset, picture)) is not None
        ]
        if given:
            first = max(0, item.first - self._overlap)
            yield Frames(first=first, pixels=np.stack(given))

    def flush(self) -> Iterator[Frames]:
        """Nothing is held back."""
        yield from ()

    def _next(self, index: int, picture: Pixels) -> Pixels | None:
        if index < self._overlap:
            self._beginning.append(picture.copy())
            return None
        place = index - self._end
        if place < 0:
            return picture
        share = (place + 1) / (self._overlap + 1)
        mixed = picture.astype(np.float32) * (1 - share) + self._beginning[place].astype(np.float32) * share
        return np.rint(mixed).astype(np.uint8)
