"""Stage `finish`: the exact size, fades, and what is laid over the pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from services.postprocess.adjust import Adjuster, Adjustments
from services.postprocess.fit import Fit, fitted
from services.postprocess.fonts import font_for
from services.postprocess.frames import Frames, Pixels
from services.postprocess.overlay import Label, Logo, Overlay, label_overlay, logo_overlay, subtitle_overlay
from services.postprocess.scaling import OPENCV, Scaler
from services.postprocess.subtitles import Cue


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """How frames are finished: the size in pixels, fades in seconds, overlays."""

    width: int
    height: int
    fit: Fit = Fit.CROP
    adjustments: Adjustments | None = None
    fade_in: float = 0.0
    fade_out: float = 0.0
    label: Label | None = None
    logo: Logo | None = None
    cues: Sequence[Cue] = ()

    def changes(self, width: int, height: int) -> bool:
        """Whether pictures of this size would come out other than they went in."""
        resized = (self.width, self.height) != (width, height)
        return resized or bool(
            self.adjustments or self.fade_in or self.fade_out or self.label or self.logo or self.cues
        )


class Finisher:
    """Brings `total` frames at `fps` to their final form; it holds nothing but the subtitles that are on show.

    Fades lie under the overlays: a label is to be seen on every frame. Raises `GlyphMissing` when a text cannot be set.
    """

    name = "finish"

    def __init__(self, finish: Finish, *, total: int, fps: Fraction, scaler: Scaler = OPENCV) -> None:
        self._finish = finish
        self._scaler = scaler
        self._total = total
        self._adjuster = Adjuster(finish.adjustments, scaler) if finish.adjustments is not None else None
        self._fps = fps
        size = (finish.width, finish.height)
        self._lasting = [
            *([label_overlay(finish.label, *size)] if finish.label else []),
            *([logo_overlay(finish.logo, *size)] if finish.logo else []),
        ]
        for cue in finish.cues:
            font_for(cue.text, 1)
        self._on_show: dict[Cue, Overlay] = {}

    def push(self, item: Frames) -> Iterator[Frames]:
        """The same frames, finished."""
        finish = self._finish
        pixels = fitted(item.pixels, finish.width, finish.height, finish.fit, self._scaler)
        if self._adjuster is not None:
            pixels = self._adjuster.adjusted(pixels)
        pictures = [self._finished(picture, item.first + offset) for offset, picture in enumerate(pixels)]
        yield Frames(first=item.first, pixels=np.stack(pictures))

    def flush(self) -> Iterator[Frames]:
        """Nothing is held back."""
        yield from ()

    def _finished(self, picture: Pixels, index: int) -> Pixels:
        light = self._light(index)
        overlays = [*self._lasting, *self._subtitles(float(index / self._fps))]
        if light < 1:
            picture = np.rint(picture * light).astype(np.uint8)
        if overlays:
            picture = picture.copy()
            for overlay in overlays:
                overlay.lay_over(picture)
        return picture

    def _light(self, index: int) -> float:
        """1 outside the fades; 0 on the first frame of a clip that fades in and on the last of one that fades out."""
        into, out_of = float(index / self._fps), float((self._total - 1 - index) / self._fps)
        rising = into / self._finish.fade_in if self._finish.fade_in else 1.0
        falling = out_of / self._finish.fade_out if self._finish.fade_out else 1.0
        return min(1.0, rising, falling)

    def _subtitles(self, seconds: float) -> Iterator[Overlay]:
        size = (self._finish.width, self._finish.height)
        shown = {cue: self._on_show.get(cue) for cue in self._finish.cues if cue.start <= seconds < cue.end}
        self._on_show = {cue: overlay or subtitle_overlay(cue.text, *size) for cue, overlay in shown.items()}
        yield from self._on_show.values()
