"""Reads the caller's stream into checked work, before anything touches the device."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Literal

from rushes.v1 import denoiser_pb2, sampling_pb2, tensors_pb2
from services.chassis.bundles import Bundle, BundleReceiver, unpack
from services.chassis.errors import FailedPrecondition, InvalidRequest
from services.denoiser.adapter_shelf import AdapterShelf, AdapterUse
from services.denoiser.adapters import Adapter, AdapterMisfit
from services.denoiser.checkpoint import StateMismatch, continued, read_state
from services.denoiser.conditioning import Conditioning
from services.denoiser.experts import Expert
from services.denoiser.guidance import Guidance
from services.denoiser.plan import Plan, fingerprint
from services.denoiser.pool import ExpertPool
from services.denoiser.prefix_cache import prefix_key
from services.denoiser.previews import DEFAULT_FRAMES, PreviewRequest
from services.denoiser.session import CheckpointPolicy, Studio, Work
from services.denoiser.settings import Settings
from services.denoiser.shapes import VideoShape
from services.denoiser.solvers import SolverState
from services.denoiser.step_cache import DEFAULT_THRESHOLD, REFRESH_STEPS, may_be_cut
from services.denoiser.step_scheduler import Footprint
from services.denoiser.wire import ENCODINGS, SIGMA_RULES, SOLVERS
from services.model.bundles import to_tensors

_HEADER_BYTES = 64 * 1024
_STATE_TENSORS = 4
_PROMPTS = 2

Requests = AsyncIterator[denoiser_pb2.DenoiseRequest]


async def read_start(requests: Requests) -> denoiser_pb2.DenoiseStart:
    """The first message. Raises `InvalidRequest` for anything else."""
    async for request in requests:
        if request.WhichOneof("message") == "start":
            return request.start
        break
    raise InvalidRequest.of("start", "must be the first message")


def footprint(start: denoiser_pb2.DenoiseStart, studio: Studio) -> Footprint:
    """The memory that the work of `start` needs. Raises `InvalidRequest` for a size beyond the model's limits."""
    _check_limits(start, studio.pool)
    cached = start.sampling.step_cache == sampling_pb2.STEP_CACHE_FIRST_BLOCK
    return studio.memory.footprint(
        VideoShape(width=start.shape.width, height=start.shape.height, frames=start.shape.num_frames),
        cached_prompts=_PROMPTS if cached else 0,
        adapters=sum(studio.shelf.size(use.id) for use in start.adapters),
    )


async def read_work(start: denoiser_pb2.DenoiseStart, requests: Requests, studio: Studio) -> Work:
    """The work that `start` and the bundles that follow it in `requests` order.

    Raises `InvalidRequest` naming field and rule, `DataLoss` for a damaged chunk, and `FailedPrecondition` for a state
    of another run, for steps whose expert is not here, or for an adapter that does not fit the experts.
    """
    pool = studio.pool
    uses = _adapter_uses(start, studio.shelf)
    plan = make_plan(start, pool, studio.shelf.names(uses))
    plan = replace(plan, batched=studio.guidance_batch.batched(plan.latents.tokens))
    conditioning_limit = 2 * pool.manifest.text.max_length * pool.first.text_dim * 4 + _HEADER_BYTES
    _check_size("start.conditioning_size", start.conditioning_size, conditioning_limit)
    _check_size("start.state_size", start.state_size, _STATE_TENSORS * plan.latents.numel * 4 + _HEADER_BYTES)
    conditioning = _conditioning(
        await _bundle(requests, tensors_pb2.BUNDLE_KIND_CONDITIONING, start.conditioning_size), pool, plan
    )
    state = None
    if start.state_size:
        bundle = await _bundle(requests, tensors_pb2.BUNDLE_KIND_SOLVER_STATE, start.state_size)
        # Up to 77 MB that are copied and looked through: not on the event loop.
        state, plan = await asyncio.to_thread(_state, bundle, plan)
    async for _ in requests:
        raise InvalidRequest.of("chunk", "must not follow a complete stream")
    prefix = None
    if start.reuse_prefix:
        prefix = prefix_key(
            plan,
            conditioning,
            model=pool.fingerprint,
            numerics=pool.numerics,
            adapters=studio.shelf.names_for(uses, Expert.HIGH),
        )
        state = studio.prefixes.get(prefix) if prefix is not None else state
        if prefix is not None and state is not None:
            plan = replace(plan, first_step=state.step, reused_steps=state.step)
    policy = start.checkpoints
    return Work(
        plan=plan,
        conditioning=conditioning,
        state=state,
        prefix=prefix,
        black_share=start.black_share,
        previews=_previews(start.previews) if start.HasField("previews") else None,
        checkpoints=CheckpointPolicy(
            every_seconds=policy.every_seconds if policy.HasField("every_seconds") else None,
            every_steps=policy.every_steps,
        ),
        adapters=await _adapters(uses, plan, studio) if uses else {},
    )


def make_plan(start: denoiser_pb2.DenoiseStart, pool: ExpertPool, adapters: Sequence[Sequence[str]] = ()) -> Plan:
    """What `start` asks of `pool`: settings filled in from the model's defaults, and the range of steps.

    `adapters` are their names for the fingerprint.
    """
    settings = _settings(start.sampling, pool)
    schedule = settings.schedule()
    shape = VideoShape(width=start.shape.width, height=start.shape.height, frames=start.shape.num_frames)
    latents = shape.latents(pool.first.channels)
    if max(latents.grid) > pool.first.max_positions:
        raise InvalidRequest.of("start.shape", f"must be at most {pool.first.max_positions} patches along each axis")
    plan = Plan(
        shape=shape,
        latents=latents,
        settings=settings,
        schedule=schedule,
        seed=start.seed,
        first_step=start.first_step,
        end_step=start.end_step if start.HasField("end_step") else schedule.steps,
        fingerprint=fingerprint(pool.fingerprint, pool.numerics, settings, schedule, latents, adapters),
    )
    if plan.first_step >= schedule.steps:
        raise InvalidRequest.of("start.first_step", f"must be less than the schedule's {schedule.steps} steps")
    if not plan.first_step < plan.end_step <= schedule.steps:
        raise InvalidRequest.of(
            "start.end_step", f"must be greater than first_step and at most the schedule's {schedule.steps} steps"
        )
    if not may_be_cut(plan, plan.end_step):
        raise InvalidRequest.of(
            "start.end_step", f"must be a multiple of {REFRESH_STEPS}, or the boundary, where a step cache is used"
        )
    if (plan.first_step > 0) != (start.state_size > 0):
        raise InvalidRequest.of("start.state_size", "must be greater than 0 exactly if first_step is")
    return _within_held_experts(plan, pool, open_ended=not start.HasField("end_step"))


def _within_held_experts(plan: Plan, pool: ExpertPool, *, open_ended: bool) -> Plan:
    missing = [step for step in range(plan.first_step, plan.end_step) if plan.expert(step) not in pool.experts]
    if not missing:
        return plan
    if open_ended and missing[0] > plan.first_step:
        return replace(plan, end_step=missing[0])
    expert = plan.expert(missing[0]).name.lower()
    raise FailedPrecondition(
        f"Step {missing[0]} belongs to the {expert}-noise expert, which is not held here.",
        reason="EXPERT_NOT_HELD",
    )


def _check_limits(start: denoiser_pb2.DenoiseStart, pool: ExpertPool) -> None:
    limits = pool.manifest.limits
    if start.model and start.model != pool.manifest.id:
        raise InvalidRequest.of(
            "start.model", f"must be {pool.manifest.id}, the model that is loaded", reason="UNKNOWN_MODEL"
        )
    for name, value, limit in (
        ("start.shape.width", start.shape.width, limits.max_width),
        ("start.shape.height", start.shape.height, limits.max_height),
        ("start.shape.num_frames", start.shape.num_frames, limits.max_frames),
        ("start.sampling.steps", start.sampling.steps, limits.max_steps),
    ):
        if value > limit:
            raise InvalidRequest.of(name, f"must be at most {limit}")


def _settings(sampling: sampling_pb2.SamplingSettings, pool: ExpertPool) -> Settings:
    defaults = pool.defaults
    solvers = {number: solver for solver, number in SOLVERS.items()}
    rules = {number: rule for rule, number in SIGMA_RULES.items()}

    def stated(name: str, default: float) -> float:
        return float(getattr(sampling, name)) if sampling.HasField(name) else default  # type: ignore[arg-type]  # one of its own fields

    guidance = Guidance(
        high=stated("guidance_scale_high", defaults.guidance.high),
        low=stated("guidance_scale_low", defaults.guidance.low),
        timestep_min=stated("guidance_timestep_min", defaults.guidance.timestep_min),
        timestep_max=stated("guidance_timestep_max", defaults.guidance.timestep_max),
    )
    if guidance.timestep_min > guidance.timestep_max:
        raise InvalidRequest.of(
            "start.sampling.guidance_timestep_min", "must not be greater than guidance_timestep_max"
        )
    return Settings(
        solver=solvers.get(sampling.solver, defaults.solver),
        sigma_rule=rules.get(sampling.sigma_rule, defaults.sigma_rule),
        steps=int(stated("steps", defaults.steps)),
        flow_shift=stated("flow_shift", defaults.flow_shift),
        boundary_ratio=stated("boundary_ratio", defaults.boundary_ratio) if pool.has_boundary else 0.0,
        guidance=guidance,
        step_cache_threshold=_step_cache_threshold(sampling),
    )


def _step_cache_threshold(sampling: sampling_pb2.SamplingSettings) -> float | None:
    if sampling.step_cache != sampling_pb2.STEP_CACHE_FIRST_BLOCK:
        return None
    return sampling.step_cache_threshold if sampling.HasField("step_cache_threshold") else DEFAULT_THRESHOLD


def _previews(settings: sampling_pb2.PreviewSettings) -> PreviewRequest:
    encodings = {number: name for name, number in ENCODINGS.items()}
    encoding: Literal["webp", "jpeg"] = "jpeg" if encodings.get(settings.format) == "jpeg" else "webp"
    # A JPEG does not move.
    frames = 1 if encoding == "jpeg" else settings.frames or DEFAULT_FRAMES
    return PreviewRequest(
        every_steps=settings.every_steps, max_edge=settings.max_edge, frames=frames, encoding=encoding
    )


def _adapter_uses(start: denoiser_pb2.DenoiseStart, shelf: AdapterShelf) -> list[AdapterUse]:
    uses = [
        AdapterUse(
            id=use.id,
            weight_high=use.weight_high if use.HasField("weight_high") else 1.0,
            weight_low=use.weight_low if use.HasField("weight_low") else 1.0,
        )
        for use in start.adapters
    ]
    for index, use in enumerate(uses):
        if use.id not in shelf.ids:
            known = ", ".join(sorted(shelf.ids)) or "none: this model has no adapters"
            raise InvalidRequest.of(f"start.adapters[{index}].id", f"must be one of {known}", reason="UNKNOWN_ADAPTER")
        if use.id in {other.id for other in uses[:index]}:
            raise InvalidRequest.of(f"start.adapters[{index}].id", "must not be named twice")
    return uses


async def _adapters(
    uses: Sequence[AdapterUse], plan: Plan, studio: Studio
) -> dict[Expert, Sequence[tuple[Adapter, float]]]:
    experts = {plan.expert(step) for step in range(plan.first_step, plan.end_step)}
    try:
        return {
            expert: await studio.thread.run(studio.shelf.take, uses, expert, studio.pool.experts[expert])
            for expert in experts
        }
    except AdapterMisfit as misfit:
        raise FailedPrecondition(f"An adapter does not fit this model: {misfit}.", reason="ADAPTER_MISFIT") from None


def _check_size(field: str, size: int, limit: int) -> None:
    if size > limit:
        raise InvalidRequest.of(field, f"must be at most {limit} bytes")


async def _bundle(requests: Requests, kind: tensors_pb2.BundleKind.ValueType, size: int) -> Bundle:
    receiver = BundleReceiver(kind, max_bytes=size)
    async for request in requests:
        if request.WhichOneof("message") != "chunk":
            raise InvalidRequest.of("start", "must be sent once, as the first message")
        if request.chunk.total_size != size:
            raise InvalidRequest.of("chunk.total_size", f"must be the {size} bytes that start announced")
        if receiver.feed(request.chunk):
            break
    return unpack(receiver.payload())


def _conditioning(bundle: Bundle, pool: ExpertPool, plan: Plan) -> Conditioning:
    try:
        return Conditioning.of(
            to_tensors(bundle, "cpu"),
            max_length=pool.manifest.text.max_length,
            text_dim=pool.first.text_dim,
            needs_negative=plan.settings.guidance.needs_negative,
        )
    except ValueError as broken:
        raise InvalidRequest.of("conditioning", str(broken), reason="BUNDLE_INVALID") from None


def _state(bundle: Bundle, plan: Plan) -> tuple[SolverState, Plan]:
    try:
        state = read_state(to_tensors(bundle, "cpu"), bundle.metadata, plan)
        return state, continued(plan, bundle.metadata)
    except StateMismatch as mismatch:
        raise FailedPrecondition(f"The solver state does not fit: {mismatch}.", reason="STATE_MISMATCH") from None
    except ValueError as broken:
        raise InvalidRequest.of("state", str(broken), reason="BUNDLE_INVALID") from None
