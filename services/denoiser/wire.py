"""The denoiser's words in the language of the protos, and back."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from rushes.v1 import denoiser_pb2, latency_pb2, sampling_pb2, tensors_pb2
from services.chassis.bundles import chunks
from services.denoiser.acceleration import Acceleration
from services.denoiser.experts import Expert
from services.denoiser.guidance_batch import GuidanceBatch
from services.denoiser.outbox import Ending, Item, Parcel, Reason, StepReport
from services.denoiser.plan import Plan
from services.denoiser.pool import ExpertPool
from services.denoiser.presets import presets
from services.denoiser.previews import Developer, Picture
from services.denoiser.schedule import SigmaRule, Solver
from services.denoiser.settings import Settings
from services.denoiser.spans import Spans
from services.model.manifest import Source
from services.model.presets import PresetEntry

SOLVERS: Final[Mapping[Solver, sampling_pb2.Solver.ValueType]] = MappingProxyType(
    {
        Solver.UNIPC: sampling_pb2.SOLVER_UNIPC,
        Solver.EULER: sampling_pb2.SOLVER_EULER,
        Solver.DPMPP_2M: sampling_pb2.SOLVER_DPMPP_2M,
    }
)
SIGMA_RULES: Final[Mapping[SigmaRule, sampling_pb2.SigmaRule.ValueType]] = MappingProxyType(
    {SigmaRule.WAN: sampling_pb2.SIGMA_RULE_WAN, SigmaRule.DIFFUSERS: sampling_pb2.SIGMA_RULE_DIFFUSERS}
)
EXPERTS: Final[Mapping[Expert, sampling_pb2.Expert.ValueType]] = MappingProxyType(
    {Expert.HIGH: sampling_pb2.EXPERT_HIGH_NOISE, Expert.LOW: sampling_pb2.EXPERT_LOW_NOISE}
)
REASONS: Final[Mapping[Reason, denoiser_pb2.BundleReason.ValueType]] = MappingProxyType(
    {
        Reason.COMPLETED: denoiser_pb2.BUNDLE_REASON_COMPLETED,
        Reason.CHECKPOINT: denoiser_pb2.BUNDLE_REASON_CHECKPOINT,
        Reason.BOUNDARY: denoiser_pb2.BUNDLE_REASON_BOUNDARY,
        Reason.RANGE_END: denoiser_pb2.BUNDLE_REASON_RANGE_END,
        Reason.DRAINED: denoiser_pb2.BUNDLE_REASON_DRAINED,
        Reason.PREEMPTED: denoiser_pb2.BUNDLE_REASON_PREEMPTED,
    }
)
SOURCES: Final[Mapping[Source, denoiser_pb2.DefaultSource.ValueType]] = MappingProxyType(
    {
        Source.MANIFEST: denoiser_pb2.DEFAULT_SOURCE_MANIFEST,
        Source.WAN_REFERENCE: denoiser_pb2.DEFAULT_SOURCE_WAN_REFERENCE,
        Source.SCHEDULER_CONFIG: denoiser_pb2.DEFAULT_SOURCE_MODEL_CONFIG,
    }
)
STEP_CACHES: Final[Mapping[str, sampling_pb2.StepCache.ValueType]] = MappingProxyType(
    {"off": sampling_pb2.STEP_CACHE_OFF, "first_block": sampling_pb2.STEP_CACHE_FIRST_BLOCK}
)
PREVIEW_SOURCES: Final[Mapping[str, sampling_pb2.PreviewSource.ValueType]] = MappingProxyType(
    {
        "projection": sampling_pb2.PREVIEW_SOURCE_PROJECTION,
        "tiny": sampling_pb2.PREVIEW_SOURCE_TINY_DECODER,
        "vae": sampling_pb2.PREVIEW_SOURCE_DECODER,
    }
)
ENCODINGS: Final[Mapping[str, sampling_pb2.ImageFormat.ValueType]] = MappingProxyType(
    {"webp": sampling_pb2.IMAGE_FORMAT_WEBP, "jpeg": sampling_pb2.IMAGE_FORMAT_JPEG}
)


def sampling_message(settings: Settings) -> sampling_pb2.SamplingSettings:
    """`settings`, every field set."""
    return sampling_pb2.SamplingSettings(
        solver=SOLVERS[settings.solver],
        sigma_rule=SIGMA_RULES[settings.sigma_rule],
        steps=settings.steps,
        flow_shift=settings.flow_shift,
        boundary_ratio=settings.boundary_ratio,
        guidance_scale_high=settings.guidance.high,
        guidance_scale_low=settings.guidance.low,
        guidance_timestep_min=settings.guidance.timestep_min,
        guidance_timestep_max=settings.guidance.timestep_max,
        step_cache=STEP_CACHES["off" if settings.step_cache_threshold is None else "first_block"],
        step_cache_threshold=settings.step_cache_threshold,
    )


def preset_message(preset: PresetEntry) -> denoiser_pb2.Preset:
    """`preset`, with those settings set in which it differs from the defaults."""
    numbers = preset.model_dump(
        exclude={"name", "description", "solver", "sigma_rule", "step_cache", "adapters"}, exclude_none=True
    )
    sampling = sampling_pb2.SamplingSettings(**numbers)
    if preset.solver is not None:
        sampling.solver = SOLVERS[Solver(preset.solver)]
    if preset.sigma_rule is not None:
        sampling.sigma_rule = SIGMA_RULES[SigmaRule(preset.sigma_rule)]
    if preset.step_cache is not None:
        sampling.step_cache = STEP_CACHES[preset.step_cache]
    return denoiser_pb2.Preset(
        name=preset.name,
        description=preset.description,
        sampling=sampling,
        adapters=[
            denoiser_pb2.AdapterUse(id=use.id, weight_high=use.weight_high, weight_low=use.weight_low)
            for use in preset.adapters
        ],
    )


def accepted_message(plan: Plan) -> denoiser_pb2.DenoiseResponse:
    """The first answer."""
    return denoiser_pb2.DenoiseResponse(
        accepted=denoiser_pb2.DenoiseAccepted(
            sampling=sampling_message(plan.settings),
            sigmas=plan.schedule.sigmas,
            timesteps=plan.schedule.timesteps,
            first_step=plan.first_step,
            end_step=plan.end_step,
            boundary_step=plan.boundary_step,
            fingerprint=plan.fingerprint,
            reused_steps=plan.reused_steps,
            guidance_batched=plan.batched,
        )
    )


def messages(item: Item, plan: Plan) -> Iterator[denoiser_pb2.DenoiseResponse]:
    """What the caller is sent for `item`; a bundle is announced and then follows in chunks."""
    match item:
        case StepReport():
            yield denoiser_pb2.DenoiseResponse(
                step=denoiser_pb2.StepProgress(
                    index=item.index,
                    total=plan.schedule.steps,
                    expert=EXPERTS[item.expert],
                    sigma=item.sigma,
                    timestep=item.timestep,
                    seconds=item.seconds,
                    eta_seconds=item.eta_seconds,
                    sharers=item.sharers,
                    cached=item.cached,
                )
            )
        case Picture():
            yield denoiser_pb2.DenoiseResponse(
                preview=denoiser_pb2.Preview(
                    step_index=item.step_index,
                    format=ENCODINGS[item.encoding],
                    width=item.width,
                    height=item.height,
                    frames=item.frames,
                    data=item.data,
                    source=PREVIEW_SOURCES[item.source],
                )
            )
        case Parcel():
            completed = item.reason is Reason.COMPLETED
            kind = tensors_pb2.BUNDLE_KIND_LATENTS if completed else tensors_pb2.BUNDLE_KIND_SOLVER_STATE
            header = tensors_pb2.BundleHeader(kind=kind, total_size=len(item.payload))
            yield denoiser_pb2.DenoiseResponse(
                bundle=denoiser_pb2.DenoiseBundle(header=header, reason=REASONS[item.reason], next_step=item.next_step)
            )
            for chunk in chunks(kind, item.payload):
                yield denoiser_pb2.DenoiseResponse(chunk=chunk)
        case Ending():
            yield denoiser_pb2.DenoiseResponse(
                result=denoiser_pb2.DenoiseResult(
                    reason=REASONS[item.reason],
                    next_step=item.next_step,
                    steps_run=item.steps_run,
                    steps_shared=item.steps_shared,
                    guidance_split=item.guidance_split,
                    device_seconds=item.device_seconds,
                    previews_dropped=item.previews_dropped,
                    fingerprint=plan.fingerprint,
                    spans=_span_messages(item.spans),
                    steps_cached=item.steps_cached,
                )
            )


def _span_messages(spans: Spans) -> list[latency_pb2.Span]:
    return [
        latency_pb2.Span(
            name=interval.name,
            stage="denoiser",
            start_seconds=interval.began - spans.origin,
            duration_seconds=interval.seconds,
            attributes=interval.attributes,
        )
        for interval in spans.intervals
    ]


def acceleration_message(
    guidance: GuidanceBatch, chosen: Acceleration, developer: Developer
) -> denoiser_pb2.Acceleration:
    """How this process computes."""
    message = denoiser_pb2.Acceleration(
        attention=chosen.attention,
        attention_present=[
            denoiser_pb2.AttentionTiming(name=timing.name, seconds=timing.seconds, error=timing.error)
            for timing in chosen.attention_present
        ],
        compiled=chosen.compiled,
        linear=chosen.linear,
        linear_error=chosen.linear_error,
        offloaded=chosen.offloaded,
        guidance_batch=guidance.mode,
        tensorrt=chosen.engines == "tensorrt",
        preview_source=PREVIEW_SOURCES[developer.source],
    )
    if guidance.measured is not None:
        message.batched_seconds = guidance.measured.batched_seconds
        message.sequential_seconds = guidance.measured.sequential_seconds
    return message


def description(
    pool: ExpertPool, slots: int, acceleration: denoiser_pb2.Acceleration
) -> denoiser_pb2.DescribeDenoiserResponse:
    """The loaded experts, the defaults in force and where each came from."""
    manifest, defaults, limits = pool.manifest, pool.manifest.defaults, pool.manifest.limits
    return denoiser_pb2.DescribeDenoiserResponse(
        model=manifest.id,
        display_name=manifest.name,
        licence=manifest.licence,
        demonstration=manifest.demonstration,
        notice=manifest.notice,
        fingerprint=pool.fingerprint,
        experts=[EXPERTS[expert] for expert in pool.experts],
        dtype=pool.dtype_name,
        device=str(pool.device),
        slots=slots,
        defaults=denoiser_pb2.ModelDefaults(
            sampling=sampling_message(pool.defaults),
            shape=sampling_pb2.VideoShape(width=defaults.width, height=defaults.height, num_frames=defaults.num_frames),
            fps=defaults.fps,
            negative_prompt=defaults.negative_prompt,
            sources={field: SOURCES[source] for field, source in manifest.sources.items()},
        ),
        limits=denoiser_pb2.ModelLimits(
            max_width=limits.max_width,
            max_height=limits.max_height,
            max_frames=limits.max_frames,
            max_steps=limits.max_steps,
        ),
        differences=[
            denoiser_pb2.ReferenceDifference(field=each.field, reference=each.reference, actual=each.actual)
            for each in pool.differences
        ],
        latent_channels=pool.first.channels,
        adapters=[entry.id for entry in manifest.adapters],
        presets=[preset_message(preset) for preset in presets(manifest)],
        acceleration=acceleration,
    )
