"""Runs of several classes on one device, with the real experts, and what they leave behind."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from services.chassis.bundles import unpack
from services.chassis.errors import Exhausted
from services.denoiser.acceleration import Acceleration
from services.denoiser.adapter_shelf import AdapterShelf
from services.denoiser.checkpoint import read_state
from services.denoiser.conditioning import Conditioning
from services.denoiser.guidance_batch import GuidanceBatch
from services.denoiser.memory import MemoryBook
from services.denoiser.outbox import Ending, Item, Outbox, Parcel, Reason, StepReport
from services.denoiser.plan import Plan, fingerprint
from services.denoiser.pool import ExpertPool
from services.denoiser.prefix_cache import PrefixCache
from services.denoiser.previews import LatentProjection, PreviewRequest
from services.denoiser.session import CheckpointPolicy, Session, Studio, Work
from services.denoiser.shapes import VideoShape
from services.denoiser.spans import Spans
from services.denoiser.step_scheduler import StepScheduler
from services.denoiser.turnstile import Turnstile
from services.model.bundles import to_tensors
from services.model.device import DeviceThread
from services.model.folder import ModelFolder

STEPS = 12


@pytest.fixture
async def studio(pool: ExpertPool, untrained: Path) -> AsyncIterator[Studio]:
    async with DeviceThread.open() as thread:
        yield Studio(
            pool=pool,
            thread=thread,
            shelf=AdapterShelf(ModelFolder(untrained), 0),
            projection=LatentProjection(pool.manifest.latent_rgb, torch.device("cpu")),
            guidance_batch=GuidanceBatch(),
            prefixes=PrefixCache(0),
            acceleration=Acceleration(),
            draining=asyncio.Event(),
            memory=MemoryBook(pool, None),
        )


def order(pool: ExpertPool, seed: int = 0, edge: int = 96) -> Work:
    settings = replace(pool.defaults, steps=STEPS)
    schedule = settings.schedule()
    shape = VideoShape(width=edge, height=edge, frames=9)
    latents = shape.latents(16)
    generator = torch.Generator().manual_seed(seed)
    return Work(
        plan=Plan(
            shape=shape,
            latents=latents,
            settings=settings,
            schedule=schedule,
            seed=seed,
            first_step=0,
            end_step=STEPS,
            fingerprint=fingerprint("untrained", "float32", settings, schedule, latents),
        ),
        conditioning=Conditioning(
            positive=torch.randn(4, 32, generator=generator), negative=torch.randn(2, 32, generator=generator)
        ),
        state=None,
        previews=PreviewRequest(every_steps=4, max_edge=32, frames=1, encoding="webp"),
        checkpoints=CheckpointPolicy(),
    )


@dataclass
class Run:
    """A run with its own caller."""

    studio: Studio
    turnstile: Turnstile
    work: Work
    priority: int
    log: list[str]
    name: str
    items: list[Item] = field(default_factory=list)
    underway: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> "Run":
        outbox = Outbox()
        async with self.turnstile.seat(self.priority) as seat, asyncio.TaskGroup() as group:
            self.log.append(f"{self.name} seated")
            group.create_task(Session(self.studio, seat, self.work, outbox, Spans()).run())
            async for item in outbox.items():
                self.items.append(item)
                if isinstance(item, StepReport):
                    self.log.append(self.name)
                    if item.index == 2:
                        self.underway.set()
        return self

    @property
    def parcel(self) -> Parcel:
        return next(item for item in self.items if isinstance(item, Parcel))

    @property
    def reason(self) -> Reason:
        return next(item.reason for item in self.items if isinstance(item, Ending))

    def continued(self) -> Work:
        bundle, step = unpack(self.parcel.payload), self.parcel.next_step
        plan = replace(self.work.plan, first_step=step)
        return replace(self.work, plan=plan, state=read_state(to_tensors(bundle, "cpu"), bundle.metadata, plan))


async def alone(studio: Studio, work: Work) -> bytes:
    return (await Run(studio, Turnstile(StepScheduler(1), 1.0), work, 0, [], "alone").run()).parcel.payload


@pytest.mark.parametrize("seats", [1, 2])
async def test_a_higher_class_starts_within_one_step_and_changes_nothing_in_the_lower(
    studio: Studio, pool: ExpertPool, seats: int
) -> None:
    turnstile, log = Turnstile(StepScheduler(seats), 1.0), list[str]()
    draft = Run(studio, turnstile, order(pool, 1), 0, log, "draft")
    urgent = Run(studio, turnstile, order(pool, 2), 5, log, "urgent")
    async with asyncio.TaskGroup() as group:
        first = group.create_task(draft.run())
        await draft.underway.wait()
        before = log.count("draft")
        await urgent.run()
        during = log.count("draft") - before
        await first
    # The step in work when the urgent run came, and the report of one that had just ended.
    assert during <= 2
    assert urgent.reason is Reason.COMPLETED
    assert urgent.parcel.payload == await alone(studio, order(pool, 2))
    expected = await alone(studio, order(pool, 1))
    if seats == 2:
        assert draft.reason is Reason.COMPLETED
        assert draft.parcel.payload == expected
    else:
        assert draft.reason is Reason.PREEMPTED
        rest = await Run(studio, turnstile, draft.continued(), 0, log, "draft").run()
        assert rest.parcel.payload == expected


async def test_runs_of_one_class_take_turns(studio: Studio, pool: ExpertPool) -> None:
    turnstile, log = Turnstile(StepScheduler(2), 1.0), list[str]()
    runs = [Run(studio, turnstile, order(pool, seed), 0, log, name) for seed, name in ((1, "a"), (2, "b"))]
    async with asyncio.TaskGroup() as group:
        for run in runs:
            group.create_task(run.run())
    for run in runs:
        assert run.parcel.payload == await alone(studio, run.work)
    middle = "".join(log[6:-6])
    assert 2 <= middle.count("a") <= len(middle) - 2


async def test_sessions_of_every_end_leave_no_tensor_behind(studio: Studio, pool: ExpertPool) -> None:
    turnstile = Turnstile(StepScheduler(1), 1.0)

    async def completed() -> None:
        await Run(studio, turnstile, order(pool), 0, [], "completed").run()

    async def cancelled() -> None:
        doomed = Run(studio, turnstile, order(pool), 0, [], "cancelled")
        task = asyncio.create_task(doomed.run())
        await doomed.underway.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def preempted() -> None:
        draft = Run(studio, turnstile, order(pool), 0, [], "draft")
        task = asyncio.create_task(draft.run())
        await draft.underway.wait()
        await Run(studio, turnstile, order(pool), 1, [], "urgent").run()
        await task

    async def failed() -> None:
        def out_of_memory(*_arguments: object) -> None:
            raise torch.OutOfMemoryError("none left")

        hook = pool.first.module.proj_out.register_forward_hook(out_of_memory)
        with hook, pytest.RaisesGroup(pytest.RaisesExc(Exhausted, match="out of memory"), flatten_subgroups=True):
            await Run(studio, turnstile, order(pool), 0, [], "failed").run()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    ends = (completed, cancelled, preempted, failed)
    for end in ends:
        await end()
    before = tensors()
    for end in ends:
        await end()
    assert tensors() == before
    assert not turnstile.runs
