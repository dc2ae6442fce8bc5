"""The files that a renderer makes of a clip, put together and stored as they come."""

import hashlib

from rushes.v1 import postprocess_pb2
from services.chassis.errors import DataLoss
from services.gateway.artifacts import Artifacts, md5_of
from services.gateway.chain import StageFailed


class Outputs:
    """The files of one clip. `files` and `keys`, in the order in which they came, are of those that are stored."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._data = bytearray()
        self.files: list[postprocess_pb2.OutputFile] = []
        self.keys: list[str] = []

    def begin(self) -> None:
        """A renderer begins, for the first time or again."""
        self._data.clear()
        self.files.clear()
        self.keys.clear()

    async def take(self, part: postprocess_pb2.OutputPart) -> None:
        """The next piece. Raises `StageFailed` for a piece out of place and for a file that came damaged."""
        if part.offset != len(self._data):
            raise StageFailed("postprocess", DataLoss("A piece of a file is missing.", reason="OUTPUT_TRUNCATED"))
        self._data += part.data
        if not part.sha256:
            return
        if hashlib.sha256(self._data).hexdigest() != part.sha256:
            raise StageFailed("postprocess", DataLoss("A file arrived damaged.", reason="OUTPUT_DAMAGED"))
        self.keys.append(await self._artifacts.put("clips", self._data))
        self.files.append(
            postprocess_pb2.OutputFile(
                kind=part.kind,
                name=part.name,
                content_type=part.content_type,
                size_bytes=len(self._data),
                sha256=part.sha256,
                md5=md5_of(self._data),
            )
        )
        self._data.clear()

    @property
    def video(self) -> tuple[postprocess_pb2.OutputFile, str] | None:
        """The clip as one file, with its key, if the renderer made one."""
        for file, key in zip(self.files, self.keys, strict=True):
            if file.kind == postprocess_pb2.ARTIFACT_KIND_VIDEO:
                return file, key
        return None
