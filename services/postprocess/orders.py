"""What a request asks for, as a plan: protos to the domain's own words, each rule checked."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from rushes.v1 import finishing_pb2, postprocess_pb2
from services.chassis.errors import InvalidRequest
from services.postprocess.adjust import Adjustments
from services.postprocess.animation import AnimationFormat
from services.postprocess.captions import Captions
from services.postprocess.codecs import CRF, SOFTWARE, Codec, Effort, Quality, Rate
from services.postprocess.finish import Finish
from services.postprocess.fit import Fit
from services.postprocess.fonts import GlyphMissing, font_for
from services.postprocess.inspection import Action, Check, Rule
from services.postprocess.interpolate import interpolated_count
from services.postprocess.mp4 import Container, Encoding
from services.postprocess.overlay import Corner, Label, Logo, open_logo
from services.postprocess.plan import RenderPlan
from services.postprocess.provenance import Making
from services.postprocess.subtitles import Cue, SubtitleInvalid, parse_subtitles
from services.postprocess.upscale import PLAIN, Upscalers

EFFORTS: Final[Mapping[int, Effort]] = MappingProxyType(
    {
        postprocess_pb2.ENCODING_EFFORT_FASTEST: Effort.FASTEST,
        postprocess_pb2.ENCODING_EFFORT_FAST: Effort.FAST,
        postprocess_pb2.ENCODING_EFFORT_THOROUGH: Effort.THOROUGH,
    }
)
CODECS: Final[Mapping[int, Codec]] = MappingProxyType(
    {
        postprocess_pb2.VIDEO_CODEC_H264: Codec.H264,
        postprocess_pb2.VIDEO_CODEC_H265: Codec.H265,
        postprocess_pb2.VIDEO_CODEC_AV1: Codec.AV1,
        postprocess_pb2.VIDEO_CODEC_VP9: Codec.VP9,
    }
)
CONTAINERS: Final[Mapping[int, Container]] = MappingProxyType(
    {postprocess_pb2.CONTAINER_MP4: Container.MP4, postprocess_pb2.CONTAINER_WEBM: Container.WEBM}
)
QUALITIES: Final[Mapping[int, Quality]] = MappingProxyType(
    {
        postprocess_pb2.VIDEO_QUALITY_DRAFT: Quality.DRAFT,
        postprocess_pb2.VIDEO_QUALITY_STANDARD: Quality.STANDARD,
        postprocess_pb2.VIDEO_QUALITY_HIGH: Quality.HIGH,
        postprocess_pb2.VIDEO_QUALITY_MASTER: Quality.MASTER,
    }
)
ANIMATIONS: Final[Mapping[int, AnimationFormat]] = MappingProxyType(
    {
        postprocess_pb2.ARTIFACT_KIND_GIF: AnimationFormat.GIF,
        postprocess_pb2.ARTIFACT_KIND_ANIMATED_WEBP: AnimationFormat.WEBP,
    }
)
ASPECTS: Final[Mapping[int, tuple[int, int]]] = MappingProxyType(
    {
        finishing_pb2.ASPECT_16_9: (16, 9),
        finishing_pb2.ASPECT_9_16: (9, 16),
        finishing_pb2.ASPECT_1_1: (1, 1),
        finishing_pb2.ASPECT_4_5: (4, 5),
    }
)
FITS: Final[Mapping[int, Fit]] = MappingProxyType(
    {finishing_pb2.FIT_CROP: Fit.CROP, finishing_pb2.FIT_PAD: Fit.PAD, finishing_pb2.FIT_STRETCH: Fit.STRETCH}
)
CORNERS: Final[Mapping[int, Corner]] = MappingProxyType(
    {
        finishing_pb2.CORNER_TOP_LEFT: Corner.TOP_LEFT,
        finishing_pb2.CORNER_TOP_RIGHT: Corner.TOP_RIGHT,
        finishing_pb2.CORNER_BOTTOM_LEFT: Corner.BOTTOM_LEFT,
        finishing_pb2.CORNER_BOTTOM_RIGHT: Corner.BOTTOM_RIGHT,
    }
)
CHECKS: Final[Mapping[int, Check]] = MappingProxyType(
    {
        finishing_pb2.INSPECTION_CHECK_BLACK: Check.BLACK,
        finishing_pb2.INSPECTION_CHECK_FROZEN: Check.FROZEN,
        finishing_pb2.INSPECTION_CHECK_FLICKER: Check.FLICKER,
        finishing_pb2.INSPECTION_CHECK_UNDEREXPOSED: Check.UNDEREXPOSED,
        finishing_pb2.INSPECTION_CHECK_OVEREXPOSED: Check.OVEREXPOSED,
        finishing_pb2.INSPECTION_CHECK_BLUR: Check.BLUR,
        finishing_pb2.INSPECTION_CHECK_BLOCKING: Check.BLOCKING,
        finishing_pb2.INSPECTION_CHECK_FACE: Check.FACE,
        finishing_pb2.INSPECTION_CHECK_NOT_FINITE: Check.NOT_FINITE,
    }
)
ACTIONS: Final[Mapping[int, Action]] = MappingProxyType(
    {
        finishing_pb2.FINDING_ACTION_NOTE: Action.NOTE,
        finishing_pb2.FINDING_ACTION_WARN: Action.WARN,
        finishing_pb2.FINDING_ACTION_FAIL: Action.FAIL,
        finishing_pb2.FINDING_ACTION_RETRY: Action.RETRY,
    }
)

_MAX_EDGE: Final = 7680
_FRAGMENT_FRAMES: Final = 4
_FINISH: Final = "start.finish"


def plan_rendering(
    start: postprocess_pb2.RenderStart,
    *,
    fps: Fraction,
    encoders: Mapping[Codec, str] = SOFTWARE,
    upscalers: Upscalers = PLAIN,
) -> RenderPlan:
    """The plan that `start` orders for a clip at `fps`; `encoders` work, by codec; `upscalers` are loaded.

    Raises `InvalidRequest` naming field and rule.
    """
    shape, order = start.shape, start.finish
    target_fps = Fraction(order.target_fps) if order.target_fps else fps
    if order.upscaler not in ("", *upscalers.ids):
        raise InvalidRequest.of(f"{_FINISH}.upscaler", f"must be {', '.join(upscalers.ids)} or empty")
    upscale = order.upscale or 1
    width, height = _finished_size(order, shape.width * upscale, shape.height * upscale)
    if max(shape.width, shape.height) * upscale > _MAX_EDGE:
        raise InvalidRequest.of(f"{_FINISH}.upscale", f"must leave both edges at most {_MAX_EDGE} pixels")
    encoding = _encoding(start.video, speed=target_fps / fps, encoders=encoders)
    frames = interpolated_count(shape.num_frames, source_fps=fps, target_fps=target_fps)
    loop_frames = _loop_frames(order, frames, target_fps)
    duration = float((frames - loop_frames) / target_fps)
    as_track = order.subtitle_use == finishing_pb2.SUBTITLE_USE_TRACK
    cues = _cues(order.subtitles, duration, burned=not as_track) if order.subtitles else ()
    captions = Captions(cues=cues, duration=duration, language=order.subtitle_language)
    return RenderPlan(
        width=shape.width,
        height=shape.height,
        num_frames=shape.num_frames,
        fps=fps,
        target_fps=target_fps,
        upscale=upscale,
        upscaler=order.upscaler or upscalers.preferred,
        finish=_finish(order, width=width, height=height, duration=duration, cues=() if as_track else cues),
        encoding=encoding,
        mark_id=order.watermark_id if order.HasField("watermark_id") else None,
        rules=_rules(start.inspection),
        loop_frames=loop_frames,
        captions=captions if as_track and cues else None,
        poster=postprocess_pb2.ARTIFACT_KIND_POSTER in start.artifacts,
        contact_sheet=postprocess_pb2.ARTIFACT_KIND_CONTACT_SHEET in start.artifacts,
        sprite=postprocess_pb2.ARTIFACT_KIND_SPRITE in start.artifacts,
        animations=frozenset(form for kind, form in ANIMATIONS.items() if kind in start.artifacts),
        video=postprocess_pb2.ARTIFACT_KIND_VIDEO in start.artifacts,
        hls=postprocess_pb2.ARTIFACT_KIND_HLS in start.artifacts,
        container=_container(start.video, encoding.codec),
        making=_making(start),
    )


def _making(start: postprocess_pb2.RenderStart) -> Making:
    told = start.making
    return Making(
        generation_id=start.generation_id,
        seed=told.seed if told.HasField("seed") else None,
        settings_sha256=told.settings_sha256,
        prompt=told.prompt,
    )


def _encoding(video: postprocess_pb2.VideoSettings, *, speed: Fraction, encoders: Mapping[Codec, str]) -> Encoding:
    """`speed` is the number of finished frames for each denoised one: fragments last as long either way."""
    defaults = Encoding()
    codec = CODECS.get(video.codec, Codec.H264)
    if codec not in encoders:
        here = ", ".join(one.value[0] for one in encoders)
        raise InvalidRequest.of("start.video.codec", f"has no encoder here; there are {here}")
    if video.crf > codec.max_crf:
        raise InvalidRequest.of("start.video.crf", f"must be at most {codec.max_crf} for this codec")
    if video.HasField("crf") and video.bits_per_second:
        raise InvalidRequest.of("start.video.bits_per_second", "must be 0 where crf is set")
    named = CRF[codec][QUALITIES.get(video.quality, Quality.HIGH)]
    return Encoding(
        codec=codec,
        encoder=encoders[codec],
        rate=Rate(crf=video.crf if video.HasField("crf") else named, bits_per_second=video.bits_per_second),
        effort=EFFORTS.get(video.effort, defaults.effort),
        fragment_frames=video.fragment_frames or max(1, round(_FRAGMENT_FRAMES * speed)),
    )


def _container(video: postprocess_pb2.VideoSettings, codec: Codec) -> Container:
    container = CONTAINERS.get(video.container, Container.WEBM if codec is Codec.VP9 else Container.MP4)
    if container is Container.WEBM and codec not in (Codec.AV1, Codec.VP9):
        raise InvalidRequest.of("start.video.container", "must be MP4 for this codec: WebM holds AV1 and VP9")
    return container


def _finished_size(order: finishing_pb2.FinishPlan, width: int, height: int) -> tuple[int, int]:
    """The size in pixels of a finished clip whose pictures are `width` x `height` before."""
    if order.aspect not in ASPECTS:
        return order.width or width, order.height or height
    if order.width:
        raise InvalidRequest.of(f"{_FINISH}.aspect", "must not be set where width and height are")
    across, down = ASPECTS[order.aspect]
    wider = width * down > height * across
    if wider == (order.fit == finishing_pb2.FIT_PAD):
        height = round(width * down / across)
    else:
        width = round(height * across / down)
    return max(2, width // 2 * 2), max(2, height // 2 * 2)


def _loop_frames(order: finishing_pb2.FinishPlan, frames: int, fps: Fraction) -> int:
    overlap = round(Fraction(order.loop_seconds) * fps)
    if overlap > frames // 2:
        most = float(frames // 2 / fps)
        raise InvalidRequest.of(f"{_FINISH}.loop_seconds", f"must be at most {most:g}, half of the clip")
    return overlap


def _adjustments(order: finishing_pb2.Adjustments) -> Adjustments | None:
    given = {field.name: value for field, value in order.ListFields()}
    return Adjustments(**given) if given else None


def _finish(
    order: finishing_pb2.FinishPlan, *, width: int, height: int, duration: float, cues: Sequence[Cue]
) -> Finish:
    if order.fade_in_seconds + order.fade_out_seconds > duration:
        raise InvalidRequest.of(f"{_FINISH}.fade_out_seconds", f"the fades must fit into the clip's {duration:g} s")
    return Finish(
        width=width,
        height=height,
        fit=FITS.get(order.fit, Fit.CROP),
        fade_in=order.fade_in_seconds,
        fade_out=order.fade_out_seconds,
        label=_label(order.label) if order.HasField("label") else None,
        logo=_logo(order.logo) if order.HasField("logo") else None,
        adjustments=_adjustments(order.adjustments),
        cues=cues,
    )


def _label(order: finishing_pb2.Label) -> Label:
    defaults = Label(text=order.text)
    if not order.text.isprintable() or not order.text.strip():
        raise InvalidRequest.of(f"{_FINISH}.label.text", "must be one line of visible text")
    _check_letters(f"{_FINISH}.label.text", order.text)
    return Label(
        text=order.text,
        corner=CORNERS.get(order.corner, defaults.corner),
        opacity=order.opacity if order.HasField("opacity") else defaults.opacity,
    )


def _logo(order: finishing_pb2.Logo) -> Logo:
    try:
        image = open_logo(order.image)
    except ValueError as refused:
        raise InvalidRequest.of(f"{_FINISH}.logo.image", str(refused)) from refused
    defaults = Logo(image=image)
    return Logo(
        image=image,
        corner=CORNERS.get(order.corner, defaults.corner),
        opacity=order.opacity if order.HasField("opacity") else defaults.opacity,
        width_share=order.width_share if order.HasField("width_share") else defaults.width_share,
    )


def _cues(text: str, duration: float, *, burned: bool) -> tuple[Cue, ...]:
    field = f"{_FINISH}.subtitles"
    try:
        cues = parse_subtitles(text, duration=duration)
    except SubtitleInvalid as refused:
        raise InvalidRequest.of(field, str(refused)) from refused
    if burned:
        _check_letters(field, "".join(cue.text for cue in cues))
    return cues


def _check_letters(field: str, text: str) -> None:
    try:
        font_for(text, 16)
    except GlyphMissing as missing:
        raise InvalidRequest.of(field, str(missing)) from missing


def _rules(policy: finishing_pb2.InspectionPolicy) -> dict[Check, Rule]:
    rules: dict[Check, Rule] = {}
    for index, order in enumerate(policy.rules):
        check = CHECKS[order.check]
        if check in rules:
            raise InvalidRequest.of(f"start.inspection.rules[{index}].check", "must have one rule only")
        rules[check] = Rule(
            action=ACTIONS.get(order.action, Action.NOTE),
            threshold=order.threshold if order.HasField("threshold") else None,
        )
    return rules
