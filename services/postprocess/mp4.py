"""Frames to a fragmented MP4."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import cast

import av
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream

from services.postprocess.codecs import SOFTWARE, Codec, Effort, Rate, options
from services.postprocess.content_type import codecs_string
from services.postprocess.fragments import Fragment, FragmentSink
from services.postprocess.frames import Frames

_BT709 = 1
_FULL_SCALE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND


class Container(enum.Enum):
    """The format of a finished file: name of the muxer, suffix, content type."""

    MP4 = ("mp4", ".mp4", "video/mp4")
    WEBM = ("webm", ".webm", "video/webm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How a clip is encoded: codec and FFmpeg's encoder of it, rate, effort, frames per fragment."""

    codec: Codec = Codec.H264
    encoder: str = SOFTWARE[Codec.H264]
    rate: Rate = field(default_factory=lambda: Rate(crf=18))
    effort: Effort = Effort.FAST
    fragment_frames: int = 4


class EncoderRefused(ValueError):
    """An encoder cannot be opened for a clip of this size and rate."""


class Mp4Encoder:
    """Stage `encode`: frames in, fragments of an MP4 out, each as soon as the frame after its last one is encoded.

    One encoder thread by default, so that the same frames give the same bytes on every run. There are no B-frames:
    frames are shown in the order in which they leave. A fragment need not begin with a key frame; key frames stand at
    the first frame of a fragment, at most two seconds apart. Raises `EncoderRefused`, also for an odd size, which 4:2:0
    pictures cannot have.
    """

    name = "encode"

    def __init__(self, *, width: int, height: int, fps: Fraction, encoding: Encoding, threads: int = 1) -> None:
        if width % 2 or height % 2 or min(width, height) < 2:
            raise EncoderRefused(f"width and height must be even, not {width}x{height}")
        self._shape = (height, width, 3)
        self._time_base = 1 / fps
        self._sink = FragmentSink()
        self._keys: set[int] = set()
        length = encoding.fragment_frames
        self._container = av.open(
            self._sink,
            "w",
            format="mp4",
            options={
                "movflags": "empty_moov+default_base_moof+skip_trailer",
                # Half a frame short, so that rounding to microseconds never adds a frame.
                "frag_duration": str(int((length - Fraction(1, 2)) / fps * 1_000_000)),
            },
        )
        key_interval = length * max(1, round(2 * fps / length))
        told = options(encoding.encoder, encoding.effort, encoding.rate, key_interval=key_interval)
        self._stream = cast("VideoStream", self._container.add_stream(encoding.encoder, rate=fps, options=told))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = self._time_base
        context.thread_count = threads
        context.gop_size = key_interval
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        if encoding.codec is Codec.H265:
            # Apple's players take parameter sets from the sample entry only.
            context.codec_tag = "hvc1"
        if encoding.rate.bits_per_second:
            context.bit_rate = encoding.rate.bits_per_second
        try:
            context.open()
            self._container.start_encoding()
        except FFmpegError as refused:
            form = f"{width}x{height} at {float(fps):g} fps"
            raise EncoderRefused(f"{encoding.encoder} cannot encode {form}") from refused
        self.codecs = codecs_string(self._sink.pending)
        self.content_type = f'video/mp4; codecs="{self.codecs}"'

    def push(self, item: Frames) -> Iterator[Fragment]:
        """Encode RGB frames of the clip's size. Raises `ValueError` for another size."""
        if item.pixels.shape[1:] != self._shape:
            raise ValueError(f"frames must be {self._shape}, not {item.pixels.shape[1:]}")
        for offset, picture in enumerate(item.pixels):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format="yuv420p",
                src_colorspace=Colorspace.ITU709,
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=_FULL_SCALE,
                threads=1,
            )
            frame.pts, frame.time_base = item.first + offset, self._time_base
            self._mux(frame)
            yield from self._fragments()

    def flush(self) -> Iterator[Fragment]:
        """Encode what was held back, and close the file."""
        self._mux(None)
        self._container.close()
        yield from self._fragments()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            if packet.is_keyframe and packet.pts is not None and packet.time_base is not None:
                self._keys.add(round(packet.pts * packet.time_base / self._time_base))
            self._container.mux(packet)

    def _fragments(self) -> Iterator[Fragment]:
        for fragment in self._sink.take():
            independent = fragment.first_frame in self._keys and fragment.frame_count > 0
            yield replace(fragment, independent=independent)
            self._keys = {frame for frame in self._keys if frame >= fragment.first_frame + fragment.frame_count}
