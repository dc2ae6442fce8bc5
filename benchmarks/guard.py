"""What it costs to watch the prediction of every denoising step, against the step itself."""

import asyncio

import torch

from benchmarks.measurement import Report, at_most, interleave, ratio
from benchmarks.work import EMBEDDED_MODEL, embedded_work
from services.denoiser.guard import JUDGED_FROM, Guard
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import Step, prior
from services.denoiser.shapes import VideoShape
from services.denoiser.solvers import SolverState
from services.model.device import choose_device, choose_dtype
from services.model.folder import ModelFolder

_LOOKS = 100
"""A look is too short to be timed alone."""


async def measure(repeats: int = 5) -> Report:
    """The share of a guided step of the embedded model that a look takes."""
    return await asyncio.to_thread(lambda: asyncio.run(_measure(repeats)))


async def _measure(repeats: int) -> Report:
    torch.set_num_threads(1)
    device, work = choose_device("auto"), embedded_work()
    pool = ExpertPool.load(ModelFolder(EMBEDDED_MODEL), "both", choose_dtype("auto", device), device)
    shape = VideoShape(width=work.width, height=work.height, frames=work.num_frames).latents(pool.first.channels)
    x = prior(shape, 0).to(device)
    context = pool.first.read(torch.zeros(2, work.text_length, pool.first.text_dim), shape)
    step = Step(state=SolverState.start(x), x=x, v=torch.randn_like(x), sigma=JUDGED_FROM)
    guard = Guard(pool.manifest.latent_rgb, device, black_share=0.98)

    async def steps() -> None:
        with torch.inference_mode():
            pool.first(x, 500.0, context)
        _wait(device)

    async def looks() -> None:
        for _ in range(_LOOKS):
            for seen in guard.watched(one for one in [step]):
                _wait(device)
                guard.verdict(seen)

    samples = await interleave({"step": steps, "looks": looks}, repeats)
    share = 100 * ratio(samples, "looks", "step") / _LOOKS
    title = f"Watching the prediction: {work.width}x{work.height}x{work.num_frames}, {device.type}"
    return Report(title=title, figures=(at_most("a look, share of a guided step", share, 1.0, "%"),), samples=samples)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
