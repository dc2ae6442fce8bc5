"""The settings of a generation: defaults filled in, limits checked, and what they come to. No I/O."""

import hashlib
import unicodedata
from collections.abc import Sequence

from rushes.v1 import catalog_pb2, denoiser_pb2, generation_pb2, postprocess_pb2, sampling_pb2
from services.chassis.errors import FieldViolation, InvalidRequest
from services.gateway.cost_model import Plan

STANDARD = "standard"
DEFAULT_CRF = 18
DEFAULT_PREVIEWS = sampling_pb2.PreviewSettings(every_steps=2)
DEFAULT_ARTIFACTS = (postprocess_pb2.ARTIFACT_KIND_POSTER, postprocess_pb2.ARTIFACT_KIND_CONTACT_SHEET)


def resolve(
    asked: generation_pb2.GenerationSpec, model: catalog_pb2.Model, *, seed: int
) -> generation_pb2.GenerationSpec:
    """`asked` with every setting in force: what it leaves out is its preset's, then the model's; a seed is `seed`.

    Raises `InvalidRequest` with every setting that is outside the model's limits, and for an unknown preset.
    """
    defaults, spec = model.defaults, generation_pb2.GenerationSpec()
    spec.CopyFrom(asked)
    spec.model = model.id
    spec.prompt = unicodedata.normalize("NFC", spec.prompt)
    if not spec.HasField("negative_prompt"):
        spec.negative_prompt = defaults.negative_prompt
    spec.negative_prompt = unicodedata.normalize("NFC", spec.negative_prompt)
    for name in ("width", "height", "num_frames"):
        if not spec.HasField(name):
            setattr(spec, name, getattr(defaults.shape, name))
    if not spec.HasField("fps"):
        spec.fps = defaults.fps
    if not spec.HasField("seed"):
        spec.seed = seed
    preset = _preset(asked.preset, model)
    spec.preset = preset.name
    # Merged one over the other: a field of `asked` that is set wins over the preset, which wins over the defaults.
    spec.sampling.CopyFrom(defaults.sampling)
    spec.sampling.MergeFrom(preset.sampling)
    spec.sampling.MergeFrom(asked.sampling)
    if not spec.adapters:
        spec.adapters.extend(preset.adapters)
    if not spec.HasField("previews"):
        spec.previews.CopyFrom(DEFAULT_PREVIEWS)
    spec.video.codec = spec.video.codec or postprocess_pb2.VIDEO_CODEC_H264
    spec.video.effort = spec.video.effort or postprocess_pb2.ENCODING_EFFORT_FAST
    by_default = not spec.video.HasField("crf") and not spec.video.bits_per_second and not spec.video.quality
    if by_default and spec.video.codec == postprocess_pb2.VIDEO_CODEC_H264:
        spec.video.crf = DEFAULT_CRF
    if not spec.artifacts:
        spec.artifacts.extend(DEFAULT_ARTIFACTS)
    spec.tier = spec.tier or generation_pb2.TIER_STANDARD
    violations = over_limits(spec, model.limits) + _rare_previews(spec) + _reversed_interval(spec.sampling)
    if violations:
        raise InvalidRequest(violations=violations)
    return spec


def _preset(name: str, model: catalog_pb2.Model) -> denoiser_pb2.Preset:
    """The preset of this name, or `standard` for an empty one, which every model has."""
    offered = {STANDARD: denoiser_pb2.Preset(name=STANDARD)} | {preset.name: preset for preset in model.presets}
    if (name or STANDARD) not in offered:
        known = ", ".join(preset.name for preset in model.presets) or STANDARD
        raise InvalidRequest.of("spec.preset", f"must be one of: {known}", reason="PRESET_UNKNOWN")
    return offered[name or STANDARD]


def over_limits(spec: generation_pb2.GenerationSpec, limits: denoiser_pb2.ModelLimits) -> list[FieldViolation]:
    """Every setting of a resolved spec that the model does not allow."""
    checked = (
        ("width", spec.width, "max_width"),
        ("height", spec.height, "max_height"),
        ("num_frames", spec.num_frames, "max_frames"),
        ("sampling.steps", spec.sampling.steps, "max_steps"),
    )
    return [
        FieldViolation(field=f"spec.{field}", rule=f"must be at most {getattr(limits, limit)} for this model")
        for field, value, limit in checked
        if value > getattr(limits, limit)
    ]


def plan(spec: generation_pb2.GenerationSpec) -> Plan:
    """What shapes the cost of a resolved spec. The split of the steps is that of the flow-shifted schedule."""
    sampling = spec.sampling
    sigmas = _shifted_sigmas(sampling.steps, sampling.flow_shift)
    high = sum(sigma >= sampling.boundary_ratio for sigma in sigmas)
    return Plan(
        model=spec.model,
        width=spec.width,
        height=spec.height,
        num_frames=spec.num_frames,
        high_steps=high,
        low_steps=sampling.steps - high,
        forwards_high=_forwards(sigmas[:high], sampling.guidance_scale_high, sampling),
        forwards_low=_forwards(sigmas[high:], sampling.guidance_scale_low, sampling),
    )


def _forwards(sigmas: Sequence[float], scale: float, sampling: sampling_pb2.SamplingSettings) -> float:
    """Forwards of a step, on average over these noise levels."""
    if scale == 1.0 or not sigmas:
        return 1.0
    highest = sampling.guidance_timestep_max if sampling.HasField("guidance_timestep_max") else 1000.0
    guided = sum(sampling.guidance_timestep_min <= sigma * 1000 <= highest for sigma in sigmas)
    return 1.0 + guided / len(sigmas)


def _rare_previews(spec: generation_pb2.GenerationSpec) -> list[FieldViolation]:
    most = max(spec.sampling.steps, DEFAULT_PREVIEWS.every_steps)
    if spec.previews.every_steps <= most:
        return []
    return [FieldViolation(field="spec.previews.every_steps", rule=f"must be at most the {most} steps, or 0 for none")]


def _reversed_interval(sampling: sampling_pb2.SamplingSettings) -> list[FieldViolation]:
    if not sampling.HasField("guidance_timestep_max") or (
        sampling.guidance_timestep_min <= sampling.guidance_timestep_max
    ):
        return []
    rule = f"must not be greater than guidance_timestep_max, {sampling.guidance_timestep_max:g}"
    return [FieldViolation(field="spec.sampling.guidance_timestep_min", rule=rule)]


def render_start(
    spec: generation_pb2.GenerationSpec, *, generation_id: str = "", latents_size: int = 0
) -> postprocess_pb2.RenderStart:
    """What postprocess is asked to make of a resolved spec's latents."""
    return postprocess_pb2.RenderStart(
        generation_id=generation_id,
        model=spec.model,
        shape=sampling_pb2.VideoShape(width=spec.width, height=spec.height, num_frames=spec.num_frames),
        fps=spec.fps,
        video=spec.video,
        artifacts=sorted({*spec.artifacts, postprocess_pb2.ARTIFACT_KIND_VIDEO}),
        latents_size=latents_size,
        finish=spec.finish if spec.HasField("finish") else None,
        inspection=spec.inspection if spec.HasField("inspection") else None,
        making=postprocess_pb2.Making(
            seed=spec.seed,
            settings_sha256=settings_digest(spec),
            prompt=spec.prompt if spec.declare_prompt else "",
        ),
    )


def high_noise_steps(steps: int, flow_shift: float, boundary_ratio: float) -> int:
    """Steps at or above the boundary, for a forecast: even sigmas, shifted to s * sigma / (1 + (s - 1) * sigma)."""
    return sum(sigma >= boundary_ratio for sigma in _shifted_sigmas(steps, flow_shift))


def _shifted_sigmas(steps: int, flow_shift: float) -> list[float]:
    return [
        flow_shift * sigma / (1.0 + (flow_shift - 1.0) * sigma) for sigma in (1.0 - k / steps for k in range(steps))
    ]


def fingerprint(spec: generation_pb2.GenerationSpec, model_fingerprint: str) -> str:
    """Equal for generations that give the same clip: weights, text, seed, settings; not tier, previews, preset name."""
    content = model_fingerprint.encode() + b"\0" + _shaping(spec).SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()


def settings_digest(spec: generation_pb2.GenerationSpec) -> str:
    """Equal for equal settings, whatever prompts and seed: it may be published, and no text is guessed by it."""
    shaping = _shaping(spec)
    shaping.ClearField("prompt")
    shaping.ClearField("negative_prompt")
    shaping.ClearField("seed")
    shaping.ClearField("declare_prompt")
    # Words of the user's, too.
    shaping.finish.ClearField("subtitles")
    shaping.finish.ClearField("label")
    shaping.finish.ClearField("watermark_id")
    return hashlib.sha256(shaping.SerializeToString(deterministic=True)).hexdigest()


def _shaping(spec: generation_pb2.GenerationSpec) -> generation_pb2.GenerationSpec:
    """What of `spec` shapes the clip."""
    shaping = generation_pb2.GenerationSpec()
    shaping.CopyFrom(spec)
    shaping.ClearField("tier")
    shaping.ClearField("previews")
    # What it stands for is in the settings.
    shaping.ClearField("preset")
    shaping.ClearField("reuse_prefix")
    return shaping


def request_digest(asked: generation_pb2.GenerationSpec) -> str:
    """Equal for the same request, before anything is filled in."""
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()
