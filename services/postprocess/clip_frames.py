"""Single frames out of a finished clip, as pictures."""

import enum
import io
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError
from PIL import Image


class PictureFormat(enum.Enum):
    """How a frame is encoded; the value is Pillow's name of it."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameRange:
    """`count` frames from `first` on, 0 for all that follow, no longer than `max_edge` pixels where that is not 0."""

    first: int
    count: int
    form: PictureFormat
    quality: int = 92
    max_edge: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FramePicture:
    """Frame `index` of a clip, shown at `seconds`, as an encoded picture of this size."""

    index: int
    seconds: float
    form: PictureFormat
    width: int
    height: int
    data: bytes


class ClipUnreadable(ValueError):
    """The bytes are no video, or a damaged one."""


def clip_frames(path: Path, wanted: FrameRange) -> Generator[FramePicture, None, None]:
    """The frames of the clip at `path` that are wanted, in order; decoding begins at the key frame before them.

    Raises `ClipUnreadable`, also in the middle of a clip that is damaged there.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ClipUnreadable("has no video")
            stream = container.streams.video[0]
            rate = stream.average_rate
            if rate is None or stream.time_base is None:
                raise ClipUnreadable("has no frame rate")
            container.seek(int(wanted.first / rate / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None:
                    continue
                seconds = frame.pts * stream.time_base
                index = round(seconds * rate)
                if wanted.count and index >= wanted.first + wanted.count:
                    return
                if index >= wanted.first:
                    yield _picture(Image.fromarray(frame.to_ndarray(format="rgb24")), index, float(seconds), wanted)
    except FFmpegError as damaged:
        raise ClipUnreadable("cannot be decoded") from damaged


def _picture(image: Image.Image, index: int, seconds: float, wanted: FrameRange) -> FramePicture:
    if wanted.max_edge:
        image.thumbnail((wanted.max_edge, wanted.max_edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    specific = {} if wanted.form is PictureFormat.PNG else {"quality": wanted.quality}
    image.save(buffer, wanted.form.value, **specific)
    return FramePicture(
        index=index,
        seconds=seconds,
        form=wanted.form,
        width=image.width,
        height=image.height,
        data=buffer.getvalue(),
    )
