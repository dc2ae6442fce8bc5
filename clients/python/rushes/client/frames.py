"""Frames of a clip out of the parts of a stream."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

from rushes.client.errors import DataLoss
from rushes.v1.generation_pb2 import DownloadFramesResponse
from rushes.v1.postprocess_pb2 import FrameRange
from rushes.v1.sampling_pb2 import ImageFormat

FRAME_FORMATS = {
    "png": ImageFormat.IMAGE_FORMAT_PNG,
    "jpeg": ImageFormat.IMAGE_FORMAT_JPEG,
    "webp": ImageFormat.IMAGE_FORMAT_WEBP,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFrame:
    """Frame `index` of a clip, shown at `seconds`, as an encoded picture of this size in pixels."""

    index: int
    seconds: float
    width: int
    height: int
    data: bytes


async def whole_frames(parts: AsyncIterable[DownloadFramesResponse]) -> AsyncIterator[ClipFrame]:
    """Every picture of the stream, put together. Raises `DataLoss` for one that is cut off."""
    waiting = bytearray()
    async for response in parts:
        part = response.frame
        waiting += part.data
        if part.last_part:
            yield ClipFrame(
                index=part.index,
                seconds=part.time_seconds,
                width=part.width,
                height=part.height,
                data=bytes(waiting),
            )
            waiting.clear()
    if waiting:
        raise DataLoss("the last frame is cut off", reason="FRAME_TRUNCATED")


def frame_range(first: int, count: int, form: str, quality: int, max_edge: int) -> FrameRange:
    """The message; `form` is a name of `FRAME_FORMATS`."""
    return FrameRange(
        first_frame=first, frame_count=count, format=FRAME_FORMATS[form], quality=quality, max_edge=max_edge
    )
