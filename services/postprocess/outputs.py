"""The files that are made of a finished clip, on disk until they are sent."""

import enum
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PART_BYTES = 2**20


class OutputKind(enum.Enum):
    """What a file belongs to."""

    VIDEO = "video"
    SPRITE = "sprite"
    HLS = "hls"
    SUBTITLES = "subtitles"
    GIF = "gif"
    ANIMATED_WEBP = "animated webp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One file: `name` is what it is called among the clip's files, `path` where it lies."""

    kind: OutputKind
    name: str
    content_type: str
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputPart:
    """At most 1 MiB of a file, from `offset`; `sha256` is that of the whole file, on its last part."""

    output: Output
    offset: int
    data: bytes
    sha256: str


def parts(output: Output) -> Iterator[OutputPart]:
    """The file in pieces."""
    size = output.path.stat().st_size
    digest = hashlib.sha256()
    offset = 0
    with output.path.open("rb") as file:
        while data := file.read(_PART_BYTES):
            digest.update(data)
            ended = offset + len(data) == size
            yield OutputPart(output=output, offset=offset, data=data, sha256=digest.hexdigest() if ended else "")
            offset += len(data)
