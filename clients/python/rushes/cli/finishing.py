"""The options of finish and delivery as the messages that say the same, files read and names looked up."""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rushes.cli.refusal import CommandRefused
from rushes.client import FieldViolation, InvalidRequest, finish_plan, video_settings
from rushes.client.finishing import ARTIFACTS
from rushes.v1.finishing_pb2 import FinishPlan
from rushes.v1.postprocess_pb2 import VideoSettings

FORMATS = ("mp4", "webm", "hls", "gif", "webp", "sprite")

_MAX_FILE_BYTES = 2**20
_SIZE = re.compile(r"(\d{1,5})[x×](\d{1,5})")
_BITS = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([kKmM]?)")
_MARK = re.compile(r"(?:0[xX])?([0-9a-fA-F]{1,16})")
_FLAGS: Mapping[str, str] = {
    "finish.target_fps": "--fps",
    "finish.upscale": "--upscale",
    "finish.upscaler": "--upscaler",
    "finish.width": "--size",
    "finish.height": "--size",
    "finish.fit": "--fit",
    "finish.fade_in_seconds": "--fade-in",
    "finish.fade_out_seconds": "--fade-out",
    "finish.label.text": "--label",
    "finish.label.corner": "--label-corner",
    "finish.label.opacity": "--label-opacity",
    "finish.logo.image": "--logo",
    "finish.logo.corner": "--logo-corner",
    "finish.logo.opacity": "--logo-opacity",
    "finish.logo.width_share": "--logo-width",
    "finish.subtitles": "--subtitles",
    "finish.subtitle_use": "--subtitles-as",
    "finish.subtitle_language": "--subtitles-language",
    "finish.aspect": "--aspect",
    "finish.loop_seconds": "--loop",
    **{
        f"finish.adjustments.{name}": f"--{name}"
        for name in ("brightness", "contrast", "saturation", "gamma", "sharpness")
    },
    "finish.watermark_id": "--watermark-id",
    "inspection.retake_within_seconds": "--retake-within",
    "fps": "--source-fps",
    "video.codec": "--codec",
    "video.container": "--format",
    "video.bits_per_second": "--bitrate",
    "video.crf": "--crf",
    "video.quality": "--quality",
    "video.effort": "--effort",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishOptions:
    """What the options of finish say, as they were given."""

    upscale: int | None = None
    upscaler: str | None = None
    fps: int | None = None
    size: str | None = None
    fit: str | None = None
    aspect: str | None = None
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    gamma: float | None = None
    sharpness: float | None = None
    loop: float | None = None
    fade_in: float | None = None
    fade_out: float | None = None
    label: str | None = None
    label_corner: str | None = None
    label_opacity: float | None = None
    logo: Path | None = None
    logo_corner: str | None = None
    logo_opacity: float | None = None
    logo_width: float | None = None
    subtitles: Path | None = None
    subtitles_as: str | None = None
    subtitles_language: str | None = None
    watermark: bool = False
    watermark_id: str | None = None

    def plan(self) -> FinishPlan:
        """The same as a message. Raises `CommandRefused` naming the option, `InvalidRequest` naming the field."""
        for option, needed, missing in (
            ("--label-corner", self.label_corner, self.label is None and "--label"),
            ("--label-opacity", self.label_opacity, self.label is None and "--label"),
            ("--logo-corner", self.logo_corner, self.logo is None and "--logo"),
            ("--logo-opacity", self.logo_opacity, self.logo is None and "--logo"),
            ("--subtitles-as", self.subtitles_as, self.subtitles is None and "--subtitles"),
            ("--subtitles-language", self.subtitles_language, self.subtitles is None and "--subtitles"),
            ("--logo-width", self.logo_width, self.logo is None and "--logo"),
        ):
            if needed is not None and missing:
                raise CommandRefused(option, f"needs {missing}")
        width, height = _size(self.size) if self.size is not None else (None, None)
        return finish_plan(
            target_fps=self.fps,
            upscale=self.upscale,
            upscaler=self.upscaler,
            width=width,
            height=height,
            fit=self.fit,
            aspect=self.aspect,
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            gamma=self.gamma,
            sharpness=self.sharpness,
            loop_seconds=self.loop,
            fade_in_seconds=self.fade_in,
            fade_out_seconds=self.fade_out,
            label=self.label,
            label_corner=self.label_corner,
            label_opacity=self.label_opacity,
            logo=_read("--logo", self.logo) if self.logo is not None else None,
            logo_corner=self.logo_corner,
            logo_opacity=self.logo_opacity,
            logo_width_share=self.logo_width,
            subtitles=_text("--subtitles", self.subtitles) if self.subtitles is not None else None,
            subtitle_use=self.subtitles_as,
            subtitle_language=self.subtitles_language,
            watermark_id=self._mark_id(),
        )

    def _mark_id(self) -> int | None:
        if self.watermark_id is None:
            return secrets.randbits(64) if self.watermark else None
        found = _MARK.fullmatch(self.watermark_id)
        if not found:
            raise CommandRefused("--watermark-id", "must be up to 16 hexadecimal digits")
        return int(found[1], 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryOptions:
    """What the options of delivery say: the files that are wanted, and how the clip is encoded."""

    formats: Sequence[str] = ()
    codec: str | None = None
    quality: str | None = None
    bitrate: str | None = None
    effort: str | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The files to write; by default the clip. Raises `CommandRefused` for a format that there is not."""
        wanted = tuple(dict.fromkeys(self.formats)) or (("webm",) if self.codec == "vp9" else ("mp4",))
        for name in wanted:
            if name not in FORMATS:
                raise CommandRefused("--format", f"must be one of {', '.join(FORMATS)}, not {name}")
        if "mp4" in wanted and "webm" in wanted:
            raise CommandRefused("--format", "must be mp4 or webm, not both: a clip is encoded once")
        return wanted

    def video(self) -> VideoSettings:
        """The encoding as a message. Raises `CommandRefused` naming the option, `InvalidRequest` naming the field."""
        container = next((name for name in self.wanted if name in ("mp4", "webm")), None)
        return video_settings(
            # WebM holds no H.264, the codec that is meant where none is said.
            codec="vp9" if self.codec is None and container == "webm" else self.codec,
            container=container,
            quality=self.quality,
            bits_per_second=_bits(self.bitrate) if self.bitrate is not None else None,
            effort=self.effort,
        )

    def artifacts(self) -> list[str]:
        """What to make beside the clip, by the names of `rushes.client.finishing.ARTIFACTS`."""
        made = [name for name in self.wanted if name in ARTIFACTS]
        return ["poster", "contact-sheet", *made] if made else []


@contextmanager
def flags_named() -> Iterator[None]:
    """Name the option beside the field in a refusal that is raised within the block."""
    try:
        yield
    except InvalidRequest as refused:
        named = tuple(FieldViolation(field=_flagged(one.field), rule=one.rule) for one in refused.violations)
        if named == refused.violations:
            raise
        line = "; ".join(f"{one.field}: {one.rule}" for one in named)
        raise InvalidRequest(line, reason=refused.reason, violations=named, metadata=refused.metadata) from None


def _flagged(field: str) -> str:
    name = field.removeprefix("spec.")
    flag = "--gate" if name.startswith("inspection.rules") else _FLAGS.get(name)
    return f"{flag} ({field})" if flag else field


def _size(text: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise CommandRefused("--size", "must be WIDTHxHEIGHT, for example 1080x1920")
    return int(found[1]), int(found[2])


def _read(option: str, path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise CommandRefused(option, f"{path} must be at most 1 MiB")
        data = path.read_bytes()
    except OSError as failed:
        raise CommandRefused(option, f"{path} cannot be read: {failed.strerror}") from None
    if not data:
        raise CommandRefused(option, f"{path} is empty")
    return data


def _text(option: str, path: Path) -> str:
    try:
        return _read(option, path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CommandRefused(option, f"{path} must be text in UTF-8") from None


def _bits(text: str) -> int:
    found = _BITS.fullmatch(text)
    if not found:
        raise CommandRefused("--bitrate", "must be bits a second, for example 800k or 4M")
    return round(float(found[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[found[2].lower()])


def finish_settings(options: FinishOptions, delivery: DeliveryOptions) -> dict[str, Any]:
    """The keywords of `generation_spec` that say the same."""
    return {"finish": options.plan(), "video": delivery.video(), "artifacts": delivery.artifacts()}
