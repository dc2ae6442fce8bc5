"""What becomes of the frames and how the clip is encoded, from plain Python values."""

from collections.abc import Mapping, Sequence

from rushes.client.errors import FieldViolation, InvalidRequest
from rushes.v1.finishing_pb2 import Aspect, Corner, FinishPlan, Fit, SubtitleUse
from rushes.v1.postprocess_pb2 import ArtifactKind, Container, EncodingEffort, VideoCodec, VideoQuality, VideoSettings

FITS: Mapping[str, int] = {"crop": Fit.FIT_CROP, "pad": Fit.FIT_PAD, "stretch": Fit.FIT_STRETCH}
ASPECTS: Mapping[str, int] = {
    "16:9": Aspect.ASPECT_16_9,
    "9:16": Aspect.ASPECT_9_16,
    "1:1": Aspect.ASPECT_1_1,
    "4:5": Aspect.ASPECT_4_5,
}
SUBTITLE_USES: Mapping[str, int] = {"burn": SubtitleUse.SUBTITLE_USE_BURN, "track": SubtitleUse.SUBTITLE_USE_TRACK}
CORNERS: Mapping[str, int] = {
    "top-left": Corner.CORNER_TOP_LEFT,
    "top-right": Corner.CORNER_TOP_RIGHT,
    "bottom-left": Corner.CORNER_BOTTOM_LEFT,
    "bottom-right": Corner.CORNER_BOTTOM_RIGHT,
}
CODECS: Mapping[str, int] = {
    "h264": VideoCodec.VIDEO_CODEC_H264,
    "h265": VideoCodec.VIDEO_CODEC_H265,
    "av1": VideoCodec.VIDEO_CODEC_AV1,
    "vp9": VideoCodec.VIDEO_CODEC_VP9,
}
CONTAINERS: Mapping[str, int] = {"mp4": Container.CONTAINER_MP4, "webm": Container.CONTAINER_WEBM}
EFFORTS: Mapping[str, int] = {
    "fastest": EncodingEffort.ENCODING_EFFORT_FASTEST,
    "fast": EncodingEffort.ENCODING_EFFORT_FAST,
    "thorough": EncodingEffort.ENCODING_EFFORT_THOROUGH,
}
QUALITIES: Mapping[str, int] = {
    "draft": VideoQuality.VIDEO_QUALITY_DRAFT,
    "standard": VideoQuality.VIDEO_QUALITY_STANDARD,
    "high": VideoQuality.VIDEO_QUALITY_HIGH,
    "master": VideoQuality.VIDEO_QUALITY_MASTER,
}
ARTIFACTS: Mapping[str, ArtifactKind.ValueType] = {
    "poster": ArtifactKind.ARTIFACT_KIND_POSTER,
    "contact-sheet": ArtifactKind.ARTIFACT_KIND_CONTACT_SHEET,
    "sprite": ArtifactKind.ARTIFACT_KIND_SPRITE,
    "hls": ArtifactKind.ARTIFACT_KIND_HLS,
    "gif": ArtifactKind.ARTIFACT_KIND_GIF,
    "webp": ArtifactKind.ARTIFACT_KIND_ANIMATED_WEBP,
}


def finish_plan(
    *,
    target_fps: int | None = None,
    upscale: int | None = None,
    upscaler: str | None = None,
    width: int | None = None,
    height: int | None = None,
    fit: str | None = None,
    aspect: str | None = None,
    brightness: float | None = None,
    contrast: float | None = None,
    saturation: float | None = None,
    gamma: float | None = None,
    sharpness: float | None = None,
    loop_seconds: float | None = None,
    fade_in_seconds: float | None = None,
    fade_out_seconds: float | None = None,
    label: str | None = None,
    label_corner: str | None = None,
    label_opacity: float | None = None,
    logo: bytes | None = None,
    logo_corner: str | None = None,
    logo_opacity: float | None = None,
    logo_width_share: float | None = None,
    subtitles: str | None = None,
    subtitle_use: str | None = None,
    subtitle_language: str | None = None,
    watermark_id: int | None = None,
) -> FinishPlan:
    """What happens to the frames before they are encoded; what is None does not happen.

    `fit` is one of `FITS`, `aspect` of `ASPECTS`, `subtitle_use` of `SUBTITLE_USES`, corners are of `CORNERS`, `logo`
    is an encoded picture, `subtitles` the text of a SubRip or WebVTT file. Raises `InvalidRequest` for a value that the
    wire cannot carry; all other rules are the server's.
    """
    plan = FinishPlan()
    values: Mapping[str, str | float | None] = {
        "target_fps": target_fps,
        "upscale": upscale,
        "upscaler": upscaler,
        "width": width,
        "height": height,
        "fit": choice("finish.fit", fit, FITS),
        "aspect": choice("finish.aspect", aspect, ASPECTS),
        "loop_seconds": loop_seconds,
        "fade_in_seconds": fade_in_seconds,
        "fade_out_seconds": fade_out_seconds,
        "subtitles": subtitles,
        "subtitle_use": choice("finish.subtitle_use", subtitle_use, SUBTITLE_USES),
        "subtitle_language": subtitle_language,
        "watermark_id": watermark_id,
    }
    for field, value in values.items():
        put(plan, "finish.", field, value)
    adjustments = {
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "gamma": gamma,
        "sharpness": sharpness,
    }
    for field, number in adjustments.items():
        if number is not None:
            put(plan.adjustments, "finish.adjustments.", field, number)
    if label is not None:
        put(plan.label, "finish.label.", "text", label)
        put(plan.label, "finish.label.", "corner", choice("finish.label.corner", label_corner, CORNERS))
        put(plan.label, "finish.label.", "opacity", label_opacity)
    if logo is not None:
        put(plan.logo, "finish.logo.", "image", logo)
        put(plan.logo, "finish.logo.", "corner", choice("finish.logo.corner", logo_corner, CORNERS))
        put(plan.logo, "finish.logo.", "opacity", logo_opacity)
        put(plan.logo, "finish.logo.", "width_share", logo_width_share)
    return plan


def video_settings(
    *,
    codec: str | None = None,
    container: str | None = None,
    quality: str | None = None,
    crf: int | None = None,
    bits_per_second: int | None = None,
    effort: str | None = None,
) -> VideoSettings:
    """How the clip is encoded; names are those of `CODECS`, `CONTAINERS`, `QUALITIES` and `EFFORTS`.

    Raises `InvalidRequest` for a value that the wire cannot carry.
    """
    settings = VideoSettings()
    values = {
        "codec": choice("video.codec", codec, CODECS),
        "container": choice("video.container", container, CONTAINERS),
        "quality": choice("video.quality", quality, QUALITIES),
        "crf": crf,
        "bits_per_second": bits_per_second,
        "effort": choice("video.effort", effort, EFFORTS),
    }
    for field, value in values.items():
        put(settings, "video.", field, value)
    return settings


def artifact_kinds(names: Sequence[str]) -> list[ArtifactKind.ValueType]:
    """What to make beside the clip, by the names of `ARTIFACTS`. Raises `InvalidRequest` for another name."""
    for index, name in enumerate(names):
        choice(f"artifacts[{index}]", name, ARTIFACTS)
    return [ARTIFACTS[name] for name in dict.fromkeys(names)]


def put(message: object, prefix: str, field: str, value: str | float | bytes | None) -> None:
    """Set a field unless the value is None. Raises `InvalidRequest` for a value that the field cannot hold."""
    if value is None:
        return
    try:
        setattr(message, field, value)
    except (ValueError, TypeError) as unfit:
        raise InvalidRequest(
            f"{prefix}{field}: {unfit}",
            reason="INVALID_ARGUMENT",
            violations=(FieldViolation(field=prefix + field, rule="must fit the field's type and range"),),
        ) from None


def choice(field: str, name: str | None, values: Mapping[str, int]) -> int | None:
    """The number that a name stands for; None for None. Raises `InvalidRequest` for a name that is not there."""
    if name is None:
        return None
    if name not in values:
        rule = f"must be one of {', '.join(values)}"
        raise InvalidRequest(
            f"{field}: {rule}", reason="INVALID_ARGUMENT", violations=(FieldViolation(field=field, rule=rule),)
        )
    return values[name]
