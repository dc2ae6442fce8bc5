"""What a file declares of its origin in metadata that nobody signed: XMP, and the `AIGC` field of GB 45438-2025."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from xml.etree import ElementTree as ET

import av
from av.error import FFmpegError

from services.postprocess.provenance import AIGC_FIELD, XMP_UUID

PLAYLIST_SUFFIX: Final = ".m3u8"

_SOURCE_TYPE: Final = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
_AIGC: Final = "{http://www.tc260.org.cn/ns/AIGC/1.0/}AIGC"
_MAX_PACKET: Final = 2**20
_MAP: Final = re.compile(r'#EXT-X-MAP:URI="([A-Za-z0-9._-]+)"')


@dataclass(frozen=True, kw_only=True, slots=True)
class Declarations:
    """IPTC's digital source type ("" for none), the `AIGC` fields (None for none), and what is wrong with them."""

    source_type: str = ""
    aigc: Mapping[str, str] | None = None
    problems: tuple[str, ...] = ()


def read_declarations(path: Path) -> Declarations:
    """The declarations of a video; those of a playlist stand in its initialisation segment."""
    if path.suffix == PLAYLIST_SUFFIX:
        initial = _initialisation(path)
        return read_declarations(initial) if initial is not None else Declarations()
    problems: list[str] = []
    source_type, in_packet = "", None
    for packet in _packets(path):
        try:
            root = _parse(packet)
        except ValueError as malformed:
            problems.append(f"the XMP packet {malformed}")
            continue
        source_type = root.findtext(f".//{_SOURCE_TYPE}") or source_type
        in_packet = root.findtext(f".//{_AIGC}") or in_packet
    in_container = _container_field(path)
    if in_packet is not None and in_container is not None and in_packet != in_container:
        problems.append("the AIGC fields of the XMP packet and of the container differ")
    text = in_container if in_container is not None else in_packet
    aigc = None
    if text is not None:
        try:
            aigc = _fields(text)
        except ValueError as malformed:
            problems.append(f"the AIGC field {malformed}")
    return Declarations(source_type=source_type, aigc=aigc, problems=tuple(problems))


def _parse(packet: bytes) -> "ET.Element[str]":
    if b"<!DOCTYPE" in packet or b"\0" in packet:
        raise ValueError("is not plain XMP in UTF-8")
    try:
        # Without a document type there are no entities to expand.
        return ET.fromstring(packet)  # noqa: S314 - see above
    except (ET.ParseError, ValueError):
        raise ValueError("is not readable") from None


def _fields(text: str) -> Mapping[str, str]:
    try:
        content: Any = json.loads(text)
    except ValueError:
        raise ValueError("is not readable") from None
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ValueError("is not a list of texts by name")
    return content


def _packets(path: Path) -> Iterator[bytes]:
    """The XMP packets at the top level of an MP4; nothing for another kind of file, and for a damaged rest."""
    with path.open("rb") as file:
        for kind, size in _boxes(file):
            if kind == b"uuid" and len(XMP_UUID) < size <= _MAX_PACKET:
                body = file.read(size)
                if body.startswith(XMP_UUID):
                    yield body[len(XMP_UUID) :]


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind of each box and size of its body, the file standing at the body's beginning."""
    offset = 0
    while len(header := file.read(8)) == 8:
        size, kind, length = int.from_bytes(header[:4], "big"), header[4:], 8
        if size == 1:
            size, length = int.from_bytes(file.read(8), "big"), 16
        if size < length or (offset == 0 and kind != b"ftyp"):
            return
        yield kind, size - length
        offset += size
        file.seek(offset)


def _container_field(path: Path) -> str | None:
    try:
        with av.open(str(path)) as container:
            return next((value for name, value in container.metadata.items() if name.upper() == AIGC_FIELD), None)
    except (FFmpegError, ValueError):
        return None


def _initialisation(playlist: Path) -> Path | None:
    for one in sorted(playlist.parent.glob(f"*{PLAYLIST_SUFFIX}")):
        found = _MAP.search(one.read_text(encoding="utf-8", errors="replace"))
        if found and (playlist.parent / found[1]).is_file():
            return playlist.parent / found[1]
    return None
