"""Postprocess' words in the language of the protos, and back."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Final, TypeVar

from rushes.v1 import finishing_pb2, latency_pb2, postprocess_pb2, sampling_pb2
from services.postprocess.chain import SOURCE, Work
from services.postprocess.credentials import Credentials
from services.postprocess.fragments import Fragment
from services.postprocess.inspection import Finding
from services.postprocess.mp4 import Mp4Encoder
from services.postprocess.orders import ACTIONS, CHECKS, CODECS, CONTAINERS, CORNERS, EFFORTS, FITS
from services.postprocess.outputs import OutputKind, OutputPart
from services.postprocess.plan import RenderPlan
from services.postprocess.rendering import ContactSheet, Finished, Poster
from services.postprocess.scaler_choice import ScalerChoice
from services.postprocess.stills import Still
from services.postprocess.timing import busy_seconds, tail_seconds
from services.postprocess.upscale import Upscalers

T = TypeVar("T")

_PART_BYTES: Final = 2**20
_FORMATS: Final[Mapping[str, sampling_pb2.ImageFormat.ValueType]] = MappingProxyType(
    {"JPEG": sampling_pb2.IMAGE_FORMAT_JPEG, "PNG": sampling_pb2.IMAGE_FORMAT_PNG}
)
_KINDS: Final[Mapping[OutputKind, postprocess_pb2.ArtifactKind.ValueType]] = MappingProxyType(
    {
        OutputKind.VIDEO: postprocess_pb2.ARTIFACT_KIND_VIDEO,
        OutputKind.SPRITE: postprocess_pb2.ARTIFACT_KIND_SPRITE,
        OutputKind.HLS: postprocess_pb2.ARTIFACT_KIND_HLS,
        OutputKind.SUBTITLES: postprocess_pb2.ARTIFACT_KIND_SUBTITLES,
        OutputKind.GIF: postprocess_pb2.ARTIFACT_KIND_GIF,
        OutputKind.ANIMATED_WEBP: postprocess_pb2.ARTIFACT_KIND_ANIMATED_WEBP,
    }
)
_ENCODER: Final = Mp4Encoder.name


def accepted_message(plan: RenderPlan, content_type: str, tile_edge: int) -> postprocess_pb2.RenderResponse:
    """The settings in force, every field set."""
    return postprocess_pb2.RenderResponse(
        accepted=postprocess_pb2.RenderAccepted(
            width=plan.finish.width,
            height=plan.finish.height,
            num_frames=plan.finished_frames,
            fps=int(plan.target_fps),
            video=postprocess_pb2.VideoSettings(
                codec=postprocess_pb2.VideoCodec.ValueType(_number(CODECS, plan.encoding.codec)),
                crf=None if plan.encoding.rate.bits_per_second else plan.encoding.rate.crf,
                bits_per_second=plan.encoding.rate.bits_per_second,
                effort=postprocess_pb2.EncodingEffort.ValueType(_number(EFFORTS, plan.encoding.effort)),
                fragment_frames=plan.encoding.fragment_frames,
                container=postprocess_pb2.Container.ValueType(_number(CONTAINERS, plan.container)),
            ),
            content_type=content_type,
            finish=_finish_message(plan),
            tile_edge=tile_edge,
        )
    )


def _finish_message(plan: RenderPlan) -> finishing_pb2.FinishPlan:
    """The plan in force. The logo's picture and the subtitles' text, which the caller has, are not repeated."""
    finish = plan.finish
    message = finishing_pb2.FinishPlan(
        target_fps=int(plan.target_fps),
        upscale=plan.upscale,
        upscaler=plan.upscaler,
        width=finish.width,
        height=finish.height,
        fit=finishing_pb2.Fit.ValueType(_number(FITS, finish.fit)),
        fade_in_seconds=finish.fade_in,
        fade_out_seconds=finish.fade_out,
        loop_seconds=float(plan.loop_frames / plan.target_fps),
    )
    if plan.captions is not None:
        message.subtitle_use = finishing_pb2.SUBTITLE_USE_TRACK
        message.subtitle_language = plan.captions.language
    if finish.adjustments:
        message.adjustments.CopyFrom(finishing_pb2.Adjustments(**asdict(finish.adjustments)))
    if plan.mark_id is not None:
        message.watermark_id = plan.mark_id
    if finish.label:
        message.label.text, message.label.opacity = finish.label.text, finish.label.opacity
        message.label.corner = finishing_pb2.Corner.ValueType(_number(CORNERS, finish.label.corner))
    if finish.logo:
        message.logo.opacity, message.logo.width_share = finish.logo.opacity, finish.logo.width_share
        message.logo.corner = finishing_pb2.Corner.ValueType(_number(CORNERS, finish.logo.corner))
    return message


def progress_message(done: int, total: int, seconds: float) -> postprocess_pb2.RenderResponse:
    """How many frames are decoded, and how long the last chunk took."""
    return postprocess_pb2.RenderResponse(
        progress=postprocess_pb2.RenderProgress(frames_decoded=done, frames_total=total, seconds=seconds)
    )


def fragment_messages(fragment: Fragment, offset: int) -> Iterator[postprocess_pb2.RenderResponse]:
    """One fragment in parts of at most 1 MiB; `offset` is where it begins in the clip."""
    for begin in range(0, len(fragment.data), _PART_BYTES):
        data = fragment.data[begin : begin + _PART_BYTES]
        yield postprocess_pb2.RenderResponse(
            fragment=postprocess_pb2.Fragment(
                index=fragment.index,
                offset=offset + begin,
                data=data,
                last_part=begin + len(data) == len(fragment.data),
                first_frame=fragment.first_frame,
                frame_count=fragment.frame_count,
            )
        )


def artifact_message(artifact: Poster | ContactSheet) -> postprocess_pb2.RenderResponse:
    """A finished still."""
    still: Still = artifact.still
    kind = (
        postprocess_pb2.ARTIFACT_KIND_POSTER
        if isinstance(artifact, Poster)
        else postprocess_pb2.ARTIFACT_KIND_CONTACT_SHEET
    )
    return postprocess_pb2.RenderResponse(
        artifact=postprocess_pb2.Artifact(
            kind=kind, format=_FORMATS[still.format], width=still.width, height=still.height, data=still.data
        )
    )


def output_message(part: OutputPart) -> postprocess_pb2.RenderResponse:
    """A piece of a file."""
    output = part.output
    return postprocess_pb2.RenderResponse(
        output=postprocess_pb2.OutputPart(
            kind=_KINDS[output.kind],
            name=output.name,
            content_type=output.content_type,
            offset=part.offset,
            data=part.data,
            sha256=part.sha256,
        )
    )


def result_message(
    finished: Finished, plan: RenderPlan, intervals: Iterable[Work], origin: float
) -> postprocess_pb2.RenderResponse:
    """The end of the stream. `intervals` were measured beside the chain; `origin` is when the call was received."""
    work = finished.work
    return postprocess_pb2.RenderResponse(
        result=postprocess_pb2.RenderResult(
            num_frames=finished.num_frames,
            duration_seconds=float(finished.num_frames / plan.target_fps),
            size_bytes=finished.size_bytes,
            sha256=finished.sha256,
            decode_seconds=busy_seconds(work, SOURCE),
            encode_seconds=busy_seconds(work, _ENCODER),
            encode_tail_seconds=tail_seconds(work, _ENCODER, beside=SOURCE),
            findings=[_finding_message(finding) for finding in finished.findings],
            stage_seconds={stage: busy_seconds(work, stage) for stage in sorted({each.stage for each in work})},
            spans=[_span(each, origin) for each in sorted([*intervals, *work], key=lambda each: each.start)],
        )
    )


def network_messages(upscalers: Upscalers) -> list[postprocess_pb2.UpscalerDescription]:
    """The upscaling networks, the preferred one first."""
    return [
        postprocess_pb2.UpscalerDescription(
            id=loaded.network.id,
            name=loaded.network.name,
            scale=loaded.network.scale,
            architecture=loaded.network.architecture,
            runtime=loaded.runtime.name,
            runtime_seconds=loaded.runtime.seconds,
        )
        for loaded in upscalers.networks.values()
    ]


def signing_message(credentials: Credentials) -> postprocess_pb2.SigningDescription:
    """The certificate that files are signed with."""
    message = postprocess_pb2.SigningDescription(
        subject=credentials.subject, algorithm=credentials.algorithm, development=credentials.development
    )
    message.expire_time.FromDatetime(credentials.not_after)
    return message


def scaler_message(choice: ScalerChoice) -> postprocess_pb2.FrameScalerDescription:
    """What scales and colours frames."""
    return postprocess_pb2.FrameScalerDescription(id=choice.scaler.name, seconds=choice.seconds)


def _span(work: Work, origin: float) -> latency_pb2.Span:
    return latency_pb2.Span(
        name=f"render.{work.stage}",
        stage="postprocess",
        start_seconds=max(0.0, work.start - origin),
        duration_seconds=work.duration,
        attributes={"frames": str(work.frames)},
    )


def _finding_message(finding: Finding) -> finishing_pb2.Finding:
    return finishing_pb2.Finding(
        check=finishing_pb2.InspectionCheck.ValueType(_number(CHECKS, finding.check)),
        action=finishing_pb2.FindingAction.ValueType(_number(ACTIONS, finding.action)),
        start_seconds=finding.start,
        end_seconds=finding.end,
        score=finding.score,
        threshold=finding.threshold,
    )


def _number(table: Mapping[int, T], word: T) -> int:
    """The proto's number of one of the domain's words."""
    return next(number for number, known in table.items() if known == word)
