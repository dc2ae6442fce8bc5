"""Reads everything that a clip says of its origin, and whether the parts agree: watermark, manifest, metadata."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageSequence, UnidentifiedImageError

from services.postprocess.claim import mark_text
from services.postprocess.declarations import Declarations, read_declarations
from services.postprocess.frames import Pixels
from services.postprocess.manifest_reading import Manifest, Trust, read_manifest
from services.postprocess.mark_reading import UNREAD, Reading, read_mark
from services.postprocess.provenance import SOURCE_TYPE

_MP4: Final = "video/mp4"
_PICTURES: Final = frozenset({"image/gif", "image/webp"})
_MOST_FRAMES: Final = 600


class NotAVideo(ValueError):
    """The file is none, or one that cannot be decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was found, None for what is not there. `problems` contradict, `notes` only restrict."""

    mark: Reading
    manifest: Manifest | None
    declarations: Declarations
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether the file says anything of its origin."""
        declared = self.declarations
        signs = (self.manifest, self.mark.mark_id, declared.aigc, declared.source_type or None)
        return bool(self.problems) or any(one is not None for one in signs)


def verify(path: Path, anchors: str = "") -> Verification:
    """Everything that the clip at `path` says; signers that the authorities of `anchors` (PEM) vouch for are trusted.

    Raises `NotAVideo`, `OSError` for a file that cannot be read, and `ValueError` for anchors that are none.
    """
    content_type = _content_type(path)
    manifest = read_manifest(path, content_type, anchors) if content_type else None
    declarations = Declarations() if content_type in _PICTURES else read_declarations(path)
    damage: list[str] = []
    try:
        mark = read_mark(islice(_undamaged(_frames(path, content_type), damage), _MOST_FRAMES))
    except ValueError as unreadable:
        if (manifest is None or not manifest.signer) and declarations == Declarations():
            raise NotAVideo("is not a video that can be decoded") from unreadable
        mark = UNREAD
    problems, notes = _judged(mark, manifest, declarations, trusting=bool(anchors))
    return Verification(
        mark=mark,
        manifest=manifest,
        declarations=declarations,
        problems=(*problems, *damage),
        notes=tuple(notes),
    )


def _content_type(path: Path) -> str:
    """What the file is, by its first bytes; empty for a kind that carries no manifest."""
    with path.open("rb") as file:
        begin = file.read(12)
    if begin[4:8] == b"ftyp":
        return _MP4
    if begin.startswith(b"GIF8"):
        return "image/gif"
    return "image/webp" if begin[:4] == b"RIFF" and begin[8:] == b"WEBP" else ""


def _undamaged(frames: Iterator[Pixels], damage: list[str]) -> Iterator[Pixels]:
    """`frames` up to where they cannot be decoded, which `damage` then tells."""
    try:
        yield from frames
    except (FFmpegError, UnidentifiedImageError, Image.DecompressionBombError):
        damage.append("the pictures cannot be decoded to the end")


def _frames(path: Path, content_type: str) -> Iterator[Pixels]:
    if content_type in _PICTURES:
        with Image.open(path) as animation:
            for picture in ImageSequence.Iterator(animation):
                yield np.asarray(picture.convert("RGB"))
        return
    with av.open(str(path)) as container:
        if container.streams.video:
            for frame in container.decode(container.streams.video[0]):
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def _judged(
    mark: Reading, manifest: Manifest | None, declarations: Declarations, *, trusting: bool
) -> tuple[list[str], list[str]]:
    problems, notes = list(declarations.problems), list[str]()
    seen = None if mark.mark_id is None else mark_text(mark.mark_id)
    aigc = declarations.aigc
    if aigc is not None and aigc.get("Label") not in ("1", "2", "3"):
        problems.append("the AIGC field has no label that the standard knows")
    if aigc is not None and declarations.source_type not in ("", SOURCE_TYPE):
        problems.append("XMP names another source than a trained model, and the AIGC field does not")
    if manifest is None:
        return problems, notes
    problems += manifest.problems
    if manifest.mark and seen is not None and manifest.mark != seen:
        problems.append(f"the manifest is about a clip with the watermark {manifest.mark}")
    if manifest.mark and seen is None:
        notes.append(f"the manifest names the watermark {manifest.mark}, which the pictures no longer show")
    number = manifest.made.get("produce_id")
    if number and aigc is not None and aigc.get("ProduceID", number) != number:
        problems.append("the AIGC field and the manifest are about different clips")
    if manifest.development:
        notes.append("a development certificate: nobody vouches for the signer")
    if manifest.trust is not Trust.TRUSTED and manifest.signer:
        if trusting:
            problems.append("none of the trusted authorities vouches for the signer")
        else:
            notes.append("whether the signer is to be trusted was not looked at: no authorities are named (--trust)")
    return problems, notes
