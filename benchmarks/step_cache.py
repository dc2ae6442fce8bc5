"""Step caching on the embedded model: what it saves and what it changes, against the same loop without it."""

import time
from dataclasses import replace

import torch

from benchmarks.measurement import Figure, Report, ratio
from benchmarks.work import EMBEDDED_MODEL, embedded_work
from services.denoiser.conditioning import Conditioning
from services.denoiser.plan import Plan
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import denoise, prior
from services.denoiser.shapes import VideoShape
from services.denoiser.solvers import SolverState, solver_step
from services.denoiser.step_cache import StepCache
from services.denoiser.velocity import GuidedVelocity
from services.encoder.text_encoder import TextEncoder
from services.model.folder import ModelFolder

THRESHOLDS = (0.04, 0.08, 0.15, 0.3)
STEPS = 40
SHAPE = VideoShape(width=96, height=96, frames=17)


async def measure(repeats: int = 5) -> Report:
    """Every threshold and the plain loop, in turn; their processor seconds, and the change of the latents."""
    pool = ExpertPool.load(ModelFolder(EMBEDDED_MODEL), "both", torch.float32, torch.device("cpu"))
    encoder = TextEncoder.load(
        ModelFolder(EMBEDDED_MODEL), dtype=torch.float32, device=torch.device("cpu"), cache_bytes=0
    )
    work = embedded_work()
    positive, negative = encoder.encode([work.prompt, work.negative_prompt])
    conditioning = Conditioning(positive=positive.embedding, negative=negative.embedding)
    results: dict[float | None, tuple[torch.Tensor, int]] = {}
    cases: tuple[float | None, ...] = (None, *THRESHOLDS)
    samples: dict[str, list[float]] = {_called(case): [] for case in cases}
    _run(pool, conditioning, None)
    for repeat in range(repeats):
        for case in cases if repeat % 2 == 0 else reversed(cases):
            began = time.process_time()
            results[case] = _run(pool, conditioning, case)
            samples[_called(case)].append(time.process_time() - began)
    plain = results[None][0]
    figures = []
    for case in THRESHOLDS:
        x, cached = results[case]
        error = float((x - plain).norm() / plain.norm())
        figures.append(
            Figure(
                name=f"threshold {case}: processor time, of the plain loop's",
                value=ratio(samples, _called(case), _called(None)),
                unit="ratio",
                note=f"{cached} of {STEPS} steps from the cache; latents change by {error:.3f}, relative",
            )
        )
    title = f"Step cache on the embedded model, {SHAPE.width}x{SHAPE.height}, {SHAPE.frames} frames, {STEPS} steps"
    return Report(title=title, figures=tuple(figures), samples=samples)


def _run(pool: ExpertPool, conditioning: Conditioning, threshold: float | None) -> tuple[torch.Tensor, int]:
    settings = replace(pool.defaults, steps=STEPS, step_cache_threshold=threshold)
    latents, schedule = SHAPE.latents(pool.first.channels), settings.schedule()
    plan = Plan(
        shape=SHAPE,
        latents=latents,
        settings=settings,
        schedule=schedule,
        seed=7,
        first_step=0,
        end_step=STEPS,
        fingerprint="",
        batched=True,
    )
    cache = None if threshold is None else StepCache(plan, threshold)
    velocity = GuidedVelocity(
        experts=pool.experts,
        conditioning=conditioning,
        text_length=pool.manifest.text.max_length,
        guidance=settings.guidance,
        boundary_ratio=settings.boundary_ratio,
        shape=latents,
        batched=True,
        cache=cache,
    )
    state = SolverState.start(prior(latents, plan.seed))
    for step in denoise(velocity, schedule, solver_step(settings.solver), state, STEPS):
        state = step.state
    cached = 0 if cache is None else sum(cache.has_answered(timestep) for timestep in schedule.timesteps)
    return state.x, cached


def _called(threshold: float | None) -> str:
    return "plain" if threshold is None else f"threshold {threshold}"
