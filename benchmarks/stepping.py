"""What serving adds to the denoising loop: overhead, shared steps, preemption, checkpoints; on the embedded model."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import torch

from benchmarks.measurement import Figure, Report, at_most, interleave, ratio
from benchmarks.work import EMBEDDED_MODEL, embedded_work
from services.denoiser.acceleration import Acceleration
from services.denoiser.adapter_shelf import AdapterShelf
from services.denoiser.conditioning import Conditioning
from services.denoiser.guidance_batch import GuidanceBatch
from services.denoiser.memory import MemoryBook
from services.denoiser.outbox import Ending, Outbox, StepReport
from services.denoiser.plan import Plan, fingerprint
from services.denoiser.pool import ExpertPool
from services.denoiser.prefix_cache import PrefixCache
from services.denoiser.previews import LatentProjection
from services.denoiser.session import CheckpointPolicy, Session, Studio, Work
from services.denoiser.shapes import VideoShape
from services.denoiser.sharing import StepSharing
from services.denoiser.spans import Spans
from services.denoiser.step_scheduler import StepScheduler
from services.denoiser.turnstile import Turnstile
from services.model.device import DeviceThread
from services.model.folder import ModelFolder

RUNS = (1, 2, 4, 8)
STEPS = 6
PREEMPTIONS = 3


@dataclass(kw_only=True, slots=True)
class Stage:
    """A denoiser without its sockets."""

    studio: Studio
    overheads: list[float] = field(default_factory=list)

    @property
    def shape(self) -> VideoShape:
        """The embedded model's default size."""
        work = embedded_work()
        return VideoShape(width=work.width, height=work.height, frames=work.num_frames)

    def order(self, seed: int, checkpoints: CheckpointPolicy) -> Work:
        """A run of `STEPS` steps from noise."""
        pool = self.studio.pool
        settings = replace(pool.defaults, steps=STEPS)
        schedule, latents = settings.schedule(), self.shape.latents(pool.first.channels)
        generator = torch.Generator().manual_seed(seed)
        return Work(
            plan=Plan(
                shape=self.shape,
                latents=latents,
                settings=settings,
                schedule=schedule,
                seed=seed,
                first_step=0,
                end_step=STEPS,
                fingerprint=fingerprint(pool.fingerprint, pool.numerics, settings, schedule, latents),
                batched=True,
            ),
            conditioning=Conditioning(
                positive=torch.randn(12, pool.first.text_dim, generator=generator),
                negative=torch.randn(4, pool.first.text_dim, generator=generator),
            ),
            state=None,
            previews=None,
            checkpoints=checkpoints,
        )

    async def run(
        self,
        turnstile: Turnstile,
        seed: int,
        *,
        priority: int = 0,
        checkpoints: CheckpointPolicy | None = None,
        stepped: Callable[[StepReport], None] = lambda _: None,
    ) -> Ending:
        """One run with its caller; its ending."""
        outbox, ending = Outbox(), None
        async with turnstile.seat(priority) as seat, asyncio.TaskGroup() as group:
            work = self.order(seed, checkpoints or CheckpointPolicy())
            group.create_task(Session(self.studio, seat, work, outbox, Spans()).run())
            async for item in outbox.items():
                if isinstance(item, StepReport):
                    stepped(item)
                elif isinstance(item, Ending):
                    ending = item
        if ending is None:
            raise RuntimeError("the run had no ending")
        return ending

    async def together(self, runs: int) -> None:
        """So many runs at once."""
        sharing = self.studio.sharing
        turnstile = Turnstile(StepScheduler(runs, lambda kind: sharing.most(kind[0])), 1.0)  # type: ignore[index]
        async with asyncio.TaskGroup() as group:
            for seed in range(runs):
                group.create_task(self.run(turnstile, seed))

    async def alone(self, checkpoints: CheckpointPolicy | None = None) -> None:
        """One run; notes the share of its time in which the device had no step of it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        ending = await self.run(Turnstile(StepScheduler(1), 1.0), 0, checkpoints=checkpoints)
        if checkpoints is None:
            self.overheads.append(1 - ending.device_seconds / (loop.time() - began))

    async def preempted_after(self) -> int:
        """Steps that a draft run finishes from the moment that a priority run asks until that has had its first."""
        turnstile = Turnstile(StepScheduler(2), 1.0)
        underway, during = asyncio.Event(), 0
        asked = started = False

        def draft_stepped(report: StepReport) -> None:
            nonlocal during
            during += asked and not started
            if report.index == STEPS // 3:
                underway.set()

        def urgent_stepped(_report: StepReport) -> None:
            nonlocal started
            started = True

        async with asyncio.TaskGroup() as group:
            group.create_task(self.run(turnstile, 0, stepped=draft_stepped))
            await underway.wait()
            asked = True
            group.create_task(self.run(turnstile, 1, priority=1, stepped=urgent_stepped))
        return during


@asynccontextmanager
async def _stage(pool: ExpertPool, sharing: StepSharing) -> AsyncIterator[Stage]:
    async with DeviceThread.open() as thread:
        yield Stage(
            studio=Studio(
                pool=pool,
                thread=thread,
                shelf=AdapterShelf(ModelFolder(EMBEDDED_MODEL), 0),
                projection=LatentProjection(pool.manifest.latent_rgb, pool.device),
                guidance_batch=GuidanceBatch(),
                acceleration=Acceleration(),
                prefixes=PrefixCache(0),
                draining=asyncio.Event(),
                memory=MemoryBook(pool, None),
                sharing=sharing,
            )
        )


async def measure(repeats: int = 5) -> Report:
    """Serving's cost a run, what shared steps save, how soon a priority run starts, what a checkpoint costs."""
    pool = ExpertPool.load(ModelFolder(EMBEDDED_MODEL), "both", torch.float32, torch.device("cpu"))
    figures: list[Figure] = []
    async with (
        _stage(pool, StepSharing()) as serial,
        _stage(pool, StepSharing(mode="on", limit=max(RUNS))) as shared,
    ):
        every_step = CheckpointPolicy(every_steps=1)
        cases: dict[str, Callable[[], Awaitable[object]]] = {
            "one run": serial.alone,
            "one run, a checkpoint after every step": lambda: serial.alone(every_step),
        }
        for runs in RUNS[1:]:
            cases[f"{runs} runs in turns"] = lambda n=runs: serial.together(n)  # type: ignore[misc]
            cases[f"{runs} runs sharing steps"] = lambda n=runs: shared.together(n)  # type: ignore[misc]
        samples = await interleave(cases, repeats)
        during = [await serial.preempted_after() for _ in range(PREEMPTIONS)]
    figures.append(
        at_most(
            "share of a run in which the device has no step of it", 100 * statistics.median(serial.overheads), 5, "%"
        )
    )
    figures += [
        Figure(
            name=f"{runs} runs that share steps, against in turns",
            value=ratio(samples, f"{runs} runs sharing steps", f"{runs} runs in turns"),
            unit="ratio",
        )
        for runs in RUNS[1:]
    ]
    figures.append(
        at_most("steps of a draft run before a priority run has its first", max(during), 2, "steps", "the one in work")
    )
    plain, checked = samples["one run"], samples["one run, a checkpoint after every step"]
    extra = statistics.median((b - a) / (STEPS - 1) for a, b in zip(plain, checked, strict=True))
    figures.append(Figure(name="a checkpoint, beside the steps", value=1000 * extra, unit="ms"))
    return Report(
        title=f"Serving steps: {STEPS} steps of {serial.shape}, two experts, float32",
        figures=tuple(figures),
        samples=samples,
    )
