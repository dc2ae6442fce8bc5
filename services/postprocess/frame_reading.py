"""RenderFrames: a clip in, its frames out as pictures."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rushes.v1 import postprocess_pb2, sampling_pb2
from services.chassis.errors import InvalidRequest, OutOfRange
from services.model.device import DeviceThread
from services.postprocess.clip_frames import ClipUnreadable, FramePicture, FrameRange, PictureFormat, clip_frames

Requests = AsyncIterator[postprocess_pb2.RenderFramesRequest]

_PART_BYTES: Final = 2**20
_MAX_CLIP_BYTES: Final = 2**32
_DEFAULT_QUALITY: Final = 92
_FORMATS: Final[Mapping[int, PictureFormat]] = MappingProxyType(
    {
        sampling_pb2.IMAGE_FORMAT_PNG: PictureFormat.PNG,
        sampling_pb2.IMAGE_FORMAT_JPEG: PictureFormat.JPEG,
        sampling_pb2.IMAGE_FORMAT_WEBP: PictureFormat.WEBP,
    }
)
_NUMBERS: Final = {form: sampling_pb2.ImageFormat.ValueType(number) for number, form in _FORMATS.items()}


async def render_frames(requests: Requests) -> AsyncGenerator[postprocess_pb2.RenderFramesResponse, None]:
    """The answers of one call; the clip lies on disk while it is decoded, on a thread of its own.

    Raises `InvalidRequest`, `OutOfRange`.
    """
    wanted = await _start(requests)
    with tempfile.TemporaryDirectory(prefix="rushes-frames-") as folder:
        path = Path(folder) / "clip"
        await _receive(requests, path)
        found = False
        async with DeviceThread.open("frames") as thread:
            try:
                async with aclosing(thread.iterate(clip_frames(path, wanted))) as pictures:
                    async for picture in pictures:
                        found = True
                        for part in _parts(picture):
                            yield postprocess_pb2.RenderFramesResponse(frame=part)
            except ClipUnreadable as refused:
                raise InvalidRequest.of("data", str(refused)) from refused
        if not found:
            raise OutOfRange.of("start.first_frame", "must not lie beyond the last frame")


async def _start(requests: Requests) -> FrameRange:
    async for request in requests:
        if request.HasField("start"):
            order = request.start
            return FrameRange(
                first=order.first_frame,
                count=order.frame_count,
                form=_FORMATS.get(order.format, PictureFormat.PNG),
                quality=order.quality or _DEFAULT_QUALITY,
                max_edge=order.max_edge,
            )
        break
    raise InvalidRequest.of("start", "must be the first message")


async def _receive(requests: Requests, path: Path) -> None:
    size = 0
    with await asyncio.to_thread(path.open, "wb") as file:
        async for request in requests:
            if not request.HasField("data"):
                raise InvalidRequest.of("data", "every message after the first must be bytes of the clip")
            size += len(request.data)
            if size > _MAX_CLIP_BYTES:
                raise InvalidRequest.of("data", "must be a clip of at most 4 GiB")
            await asyncio.to_thread(file.write, request.data)


def _parts(picture: FramePicture) -> Iterator[postprocess_pb2.FramePart]:
    for begin in range(0, len(picture.data), _PART_BYTES):
        data = picture.data[begin : begin + _PART_BYTES]
        yield postprocess_pb2.FramePart(
            index=picture.index,
            time_seconds=picture.seconds,
            format=_NUMBERS[picture.form],
            width=picture.width,
            height=picture.height,
            data=data,
            last_part=begin + len(data) == len(picture.data),
        )
