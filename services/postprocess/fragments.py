"""A fragmented MP4 while it is being written: its bytes, cut where a player may take them."""

from collections.abc import Iterator
from dataclasses import dataclass

_HEADER = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """One piece of a fragmented MP4; all pieces in order are a file, and every prefix of them plays as far as it goes.

    Number 0 is the initialisation segment (`ftyp`, `moov`) and holds no frames; every later one is a `moof` with its
    `mdat`, and `independent` if it begins with a key frame.
    """

    index: int
    first_frame: int
    frame_count: int
    data: bytes
    independent: bool = False


class FragmentSink:
    """The write-only, non-seekable file of a muxer (ISO/IEC 14496-12 boxes); `take` gives what is complete."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._boxes: list[bytes] = []
        self._index = 0
        self._frames = 0

    def write(self, data: bytes) -> int:
        """Called by the muxer."""
        self._pending += data
        return len(data)

    @property
    def pending(self) -> bytes:
        """What was written and is not part of a complete fragment."""
        return b"".join(self._boxes) + bytes(self._pending)

    def take(self) -> Iterator[Fragment]:
        """The fragments that were completed since the last call."""
        while box := self._next_box():
            self._boxes.append(box)
            if box[4:8] in (b"moov", b"mdat"):
                data = b"".join(self._boxes)
                count = sum(_samples(box) for box in self._boxes)
                yield Fragment(index=self._index, first_frame=self._frames, frame_count=count, data=data)
                self._index += 1
                self._frames += count
                self._boxes.clear()

    def _next_box(self) -> bytes | None:
        if len(self._pending) < _HEADER:
            return None
        size = int.from_bytes(self._pending[:4], "big")
        if size < _HEADER:
            raise ValueError(f"the muxer wrote a box of size {size}, which has no end in a stream")
        if len(self._pending) < size:
            return None
        box = bytes(self._pending[:size])
        del self._pending[:size]
        return box


def _samples(box: bytes) -> int:
    """The samples that a `moof` announces in its `trun` boxes."""
    kind, body = box[4:8], memoryview(box)[_HEADER:]
    if kind == b"trun":
        return int.from_bytes(body[4:8], "big")
    if kind not in (b"moof", b"traf"):
        return 0
    total, offset = 0, 0
    while offset < len(body):
        size = int.from_bytes(body[offset : offset + 4], "big")
        total += _samples(bytes(body[offset : offset + size]))
        offset += size
    return total
