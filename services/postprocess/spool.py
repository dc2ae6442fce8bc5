"""A clip's fragments on disk: what its files are made of once the last one is encoded."""

from dataclasses import dataclass
from pathlib import Path

from services.postprocess.fragments import Fragment


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Where a fragment lies in the spooled file, and which frames it holds.

    It is `independent` if it begins with a key frame.
    """

    offset: int
    size: int
    first_frame: int
    frame_count: int
    independent: bool


class Spool:
    """The fragments of one clip in `folder`, so that memory does not grow with the clip."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "stream.mp4"
        self.pieces: list[Piece] = []
        self._file = self.path.open("wb")
        self._size = 0

    def append(self, fragment: Fragment) -> None:
        """Keep the next fragment."""
        self._file.write(fragment.data)
        self.pieces.append(
            Piece(
                offset=self._size,
                size=len(fragment.data),
                first_frame=fragment.first_frame,
                frame_count=fragment.frame_count,
                independent=fragment.independent,
            )
        )
        self._size += len(fragment.data)

    def close(self) -> None:
        """No more fragments come; what came can be read."""
        self._file.close()
