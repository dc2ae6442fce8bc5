"""Faces over time: Haar cascades that come with OpenCV, looked for a few times a second."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import cv2
import cv2.data

from services.postprocess.measures import Gray

_LOOKS_PER_SECOND = 4
_LEAST_SHARE = 0.15
_LEAST_EYES_AT = 72
_LEAST_EDGE = 128
_LARGEST_EDGE = 480
_JUMP = 0.5
_GROWTH = 1.5
_LOST_LOOKS = 3
_MARGIN = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Face:
    """A face in pixels of the picture that was searched; `eyes` is None where it is too small to tell.

    `inside`: it is so far from the sides of the picture that it has hardly left before the next look.
    """

    x: float
    y: float
    size: float
    eyes: int | None
    inside: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceScore:
    """The share of steps between two looks that are not like a face, and the frames from the first face to the last."""

    value: float
    first: int
    last: int


class FaceTrack:
    """Follows the largest face of a clip. Clips that show one at fewer than three looks are not judged.

    Pictures whose shorter edge is below 128 pixels are not searched: the cascades need faces of 24 pixels and more.
    """

    def __init__(self, *, fps: Fraction) -> None:
        self._every = max(1, round(fps / _LOOKS_PER_SECOND))
        self._looks: list[tuple[int, Face | None]] = []

    def look(self, index: int, gray: Gray) -> None:
        """Search frame `index`, if it is one of those that are searched."""
        if index % self._every == 0 and min(gray.shape) >= _LEAST_EDGE:
            self._looks.append((index, self._largest(gray)))

    def score(self) -> FaceScore | None:
        """How the face behaved; None where there was none to follow."""
        seen = [position for position, (_, face) in enumerate(self._looks) if face is not None]
        if len(seen) < 3:
            return None
        # A face may leave; one that is gone from the middle of the picture, and does not come back, fell apart.
        farewell = self._looks[seen[-1]][1]
        lost = _LOST_LOOKS if farewell is not None and farewell.inside else 0
        looks = self._looks[seen[0] : seen[-1] + 1 + lost]
        bad = 0
        for (_, before), (_, after) in pairwise(looks):
            bad += after is None or before is None or _unlike(before, after)
        return FaceScore(value=float(bad) / (len(looks) - 1), first=looks[0][0], last=looks[-1][0])

    @cached_property
    def _frontal(self) -> cv2.CascadeClassifier:
        return cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"))

    @cached_property
    def _eye(self) -> cv2.CascadeClassifier:
        return cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / "haarcascade_eye.xml"))

    def _largest(self, gray: Gray) -> Face | None:
        scale = min(1.0, _LARGEST_EDGE / max(gray.shape))
        searched = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else gray
        least = max(24, round(_LEAST_SHARE * min(searched.shape)))
        found = self._frontal.detectMultiScale(searched, scaleFactor=1.1, minNeighbors=5, minSize=(least, least))
        if not len(found):
            return None
        x, y, size, _ = max(found, key=lambda box: int(box[2]))
        eyes = None
        if size >= _LEAST_EYES_AT:
            upper = searched[y : y + size * 6 // 10, x : x + size]
            eyes = len(self._eye.detectMultiScale(upper, scaleFactor=1.1, minNeighbors=4))
        inside = min(x, searched.shape[1] - x - size) > _MARGIN * size
        return Face(x=x + size / 2, y=y + size / 2, size=float(size), eyes=eyes, inside=bool(inside))


def _unlike(before: Face, after: Face) -> bool:
    """Whether the second face can hardly be the first one a moment later."""
    jump = max(abs(after.x - before.x), abs(after.y - before.y)) / before.size
    growth = max(after.size, before.size) / min(after.size, before.size)
    # In a soft picture one eye comes and goes; both at once do not.
    return jump > _JUMP or growth > _GROWTH or (after.eyes == 0 and (before.eyes or 0) > 1)
