"""A small animated picture of a clip, for places that show no video."""

import enum
import io
from fractions import Fraction

import numpy as np
from PIL import Image

from services.postprocess.frames import Pixels

_EDGE = 320
_RATE = 10
_MOST = 100


class AnimationFormat(enum.Enum):
    """Pillow's name of the format, the file's name, its content type."""

    GIF = ("GIF", "preview.gif", "image/gif")
    WEBP = ("WEBP", "preview.webp", "image/webp")


class Animation:
    """Collects up to a hundred small frames of a clip of `total` frames, at most ten a second, spread evenly."""

    def __init__(self, *, total: int, fps: Fraction) -> None:
        count = max(1, min(total, _MOST, int(total / fps * _RATE)))
        self._starts = [index * total // count for index in range(count)]
        self._wanted = frozenset(self._starts)
        ends = [*self._starts[1:], total]
        # From rounded times, so that the whole lasts as long as the clip.
        self._milliseconds = [
            round(end / fps * 100) * 10 - round(start / fps * 100) * 10
            for start, end in zip(self._starts, ends, strict=True)
        ]
        self._frames: list[Image.Image] = []

    def take(self, index: int, picture: Pixels) -> None:
        """Keep the frame if it is one of those that are shown."""
        if index in self._wanted:
            image = Image.fromarray(np.ascontiguousarray(picture))
            image.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
            self._frames.append(image)

    def picture(self, form: AnimationFormat) -> bytes:
        """The frames as one animated picture that repeats for ever."""
        name = form.value[0]
        specific = {"quality": 75, "method": 2} if form is AnimationFormat.WEBP else {"disposal": 1}
        buffer = io.BytesIO()
        self._frames[0].save(
            buffer,
            name,
            save_all=True,
            append_images=self._frames[1:],
            duration=self._milliseconds,
            loop=0,
            **specific,
        )
        return buffer.getvalue()
