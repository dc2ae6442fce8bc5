"""Video codecs and their encoders: which are here, and what each is told for an effort and a rate factor."""

import contextlib
import enum
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from types import MappingProxyType
from typing import Final, cast

import av
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

_PROBE_SIZE: Final = (256, 256)


class Codec(enum.Enum):
    """What a clip is encoded in; the value is the greatest rate factor."""

    H264 = ("h264", 51)
    H265 = ("h265", 51)
    AV1 = ("av1", 63)
    VP9 = ("vp9", 63)

    @property
    def max_crf(self) -> int:
        """The greatest constant rate factor, which gives the worst picture."""
        return self.value[1]


class Effort(enum.Enum):
    """What encoding time is spent."""

    FASTEST = "fastest"
    FAST = "fast"
    THOROUGH = "thorough"


class Quality(enum.Enum):
    """What a rate factor is good for."""

    DRAFT = "draft"
    STANDARD = "standard"
    HIGH = "high"
    MASTER = "master"


CRF: Final[Mapping[Codec, Mapping[Quality, int]]] = MappingProxyType(
    {
        codec: MappingProxyType(dict(zip(Quality, factors, strict=True)))
        for codec, factors in {
            Codec.H264: (28, 23, 18, 12),
            Codec.H265: (31, 26, 21, 14),
            Codec.AV1: (45, 35, 26, 18),
            Codec.VP9: (44, 35, 27, 18),
        }.items()
    }
)
"""Constant rate factor by codec and quality."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A constant rate factor, or where `bits_per_second` is not 0 an average rate."""

    crf: int
    bits_per_second: int = 0


ENCODERS: Final[Mapping[Codec, Sequence[str]]] = MappingProxyType(
    {
        Codec.H264: ("h264_nvenc", "libx264"),
        Codec.H265: ("hevc_nvenc", "libx265"),
        Codec.AV1: ("av1_nvenc", "libsvtav1"),
        Codec.VP9: ("libvpx-vp9",),
    }
)
"""FFmpeg's encoders of each codec, hardware first."""

SOFTWARE: Final[Mapping[Codec, str]] = MappingProxyType({codec: names[-1] for codec, names in ENCODERS.items()})
"""The encoder of each codec that needs no particular hardware."""

_NVENC_PRESETS: Final = {Effort.FASTEST: "p1", Effort.FAST: "p4", Effort.THOROUGH: "p7"}
_X264_PRESETS: Final = {Effort.FASTEST: "ultrafast", Effort.FAST: "veryfast", Effort.THOROUGH: "medium"}
_X265_PRESETS: Final = {Effort.FASTEST: "ultrafast", Effort.FAST: "superfast", Effort.THOROUGH: "medium"}
_SVT_PRESETS: Final = {Effort.FASTEST: "12", Effort.FAST: "10", Effort.THOROUGH: "6"}
_VPX_SPEEDS: Final = {
    Effort.FASTEST: ("realtime", "8"),
    Effort.FAST: ("realtime", "6"),
    Effort.THOROUGH: ("good", "2"),
}
_LOOK_AHEAD: Final = 16


def options(encoder: str, effort: Effort, rate: Rate, *, key_interval: int) -> dict[str, str]:
    """What FFmpeg's `encoder` is told.

    No B-frames and no look-ahead unless the effort is THOROUGH, so that pictures leave at once and in order; key frames
    every `key_interval` frames and nowhere else. The average rate itself is the codec context's to know.
    """
    factor = {} if rate.bits_per_second else {"crf": str(rate.crf)}
    thorough = effort is Effort.THOROUGH
    if encoder.endswith("_nvenc"):
        constant = {} if rate.bits_per_second else {"rc": "vbr", "cq": str(rate.crf), "b": "0"}
        return {"preset": _NVENC_PRESETS[effort], "bf": "0", "zerolatency": "1", "no-scenecut": "1", **constant}
    if encoder == "libx264":
        # With x264's macroblock tree equal frames give different bytes now and then.
        steady = {"bf": "0", "sc_threshold": "0", "mbtree": "0"}
        ahead = {"rc-lookahead": str(_LOOK_AHEAD)} if thorough else {"tune": "zerolatency"}
        return {"preset": _X264_PRESETS[effort], **factor, **steady, **ahead}
    if encoder == "libx265":
        keys = f"keyint={key_interval}:min-keyint={key_interval}:scenecut=0:open-gop=0"
        steady_params = f"bframes=0:frame-threads=1:pools=none:log-level=none:{keys}"
        ahead = {} if thorough else {"tune": "zerolatency"}
        return {"preset": _X265_PRESETS[effort], **factor, **ahead, "x265-params": steady_params}
    if encoder == "libsvtav1":
        low_delay = "lp=1:pred-struct=1:scd=0:lookahead=0"
        return {"preset": _SVT_PRESETS[effort], **factor, "svtav1-params": low_delay}
    deadline, speed = _VPX_SPEEDS[effort]
    constant = {} if rate.bits_per_second else {**factor, "b": "0"}
    return {"deadline": deadline, "cpu-used": speed, "lag-in-frames": "0", "auto-alt-ref": "0", **constant}


def present_encoders(*, hardware: bool) -> dict[Codec, str]:
    """The preferred encoder of each codec that works here: opened, and given a picture."""
    # SVT-AV1 prints its settings to the standard error stream otherwise.
    os.environ.setdefault("SVT_LOG", "1")
    found: dict[Codec, str] = {}
    for codec, names in ENCODERS.items():
        for name in names if hardware else names[-1:]:
            if codec not in found and works(name):
                found[codec] = name
    return found


@cache
def works(encoder: str) -> bool:
    """Whether FFmpeg's `encoder` is part of this build and encodes a picture on this machine."""
    if encoder not in av.codecs_available:
        return False
    with contextlib.suppress(FFmpegError, ValueError):
        context = cast("VideoCodecContext", av.CodecContext.create(encoder, "w"))
        context.width, context.height = _PROBE_SIZE
        context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, 16), Fraction(16)
        context.thread_count = 1
        context.options = options(encoder, Effort.FAST, Rate(crf=30), key_interval=int(context.framerate))
        context.open()
        frame = av.VideoFrame(*_PROBE_SIZE, "yuv420p")
        frame.pts = 0
        return bool([*context.encode(frame), *context.encode(None)])
    return False
