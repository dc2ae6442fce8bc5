"""Runs of several classes on one device, with the real experts, and what they leave behind."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from services.chassis.bundles import unpack
from services.chassis.errors import Exhausted, RushesError, Unavailable
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
from services.denoiser.previews import LatentProjection, Picture, PreviewRequest
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


@asynccontextmanager
async def device_taken(turnstile: Turnstile) -> AsyncIterator[None]:
    """For the block another run has the device, so that whoever comes waits for its first step."""
    async with turnstile.seat(0) as seat, seat.stepping(), seat.turn():
        yield


async def until(turnstile: Turnstile, *, seated: int, waiting: int) -> None:
    """Return when so many runs have a seat and wait for their step."""
    while (turnstile.runs, turnstile.waiting) != (seated, waiting):  # noqa: ASYNC110 - the turnstile rings no bell
        await asyncio.sleep(0)


async def test_a_run_that_is_sent_away_before_its_first_step_makes_none(studio: Studio, pool: ExpertPool) -> None:
    turnstile, log = Turnstile(StepScheduler(2), 7.0), list[str]()
    begun = Run(studio, turnstile, order(pool, 1), 0, log, "begun")
    begun.work = replace(begun.work, plan=replace(begun.work.plan, end_step=3))
    await begun.run()
    expected = await alone(studio, order(pool, 1))
    # One from noise, which has no state to hand back, and one that goes on from a state.
    for work in (order(pool, 1), replace(begun, work=order(pool, 1)).continued()):
        log.clear()
        victim = Run(studio, turnstile, work, 0, log, "victim")
        urgent = Run(studio, turnstile, order(pool, 2), 5, log, "urgent")
        async with asyncio.TaskGroup() as group:
            async with device_taken(turnstile):
                sent_away = group.create_task(outcome(victim))
                await until(turnstile, seated=2, waiting=1)
                coming = group.create_task(urgent.run())
                await until(turnstile, seated=3, waiting=1)
            left = await sent_away
            await coming
        assert log.count("victim") == 0
        assert urgent.reason is Reason.COMPLETED
        if work.state is None:
            assert isinstance(left, Exhausted)
            assert (left.reason, left.retry_after_seconds) == ("SLOTS_BUSY", 7.0)
        else:
            assert left is None
            assert victim.reason is Reason.PREEMPTED
            rest = await Run(studio, turnstile, victim.continued(), 0, log, "rest").run()
            assert rest.parcel.payload == expected
    assert not turnstile.runs


async def test_a_drain_before_the_first_step_hands_back_what_there_is_and_makes_no_step(
    studio: Studio, pool: ExpertPool
) -> None:
    turnstile, log = Turnstile(StepScheduler(3), 1.0), list[str]()
    begun = Run(studio, turnstile, order(pool, 1), 0, log, "begun")
    begun.work = replace(begun.work, plan=replace(begun.work.plan, end_step=3))
    await begun.run()
    log.clear()
    fresh = Run(studio, turnstile, order(pool, 1), 0, log, "fresh")
    going_on = Run(studio, turnstile, replace(begun, work=order(pool, 1)).continued(), 0, log, "going on")
    async with asyncio.TaskGroup() as group, device_taken(turnstile):
        refused, handed = (group.create_task(outcome(run)) for run in (fresh, going_on))
        await until(turnstile, seated=3, waiting=2)
        studio.draining.set()
    assert isinstance(refused.result(), Unavailable)
    assert handed.result() is None
    assert going_on.reason is Reason.DRAINED
    assert going_on.parcel.next_step == 3
    assert going_on.parcel.payload == begun.parcel.payload
    assert not {"fresh", "going on"} & set(log)


async def outcome(run: Run) -> RushesError | None:
    """The error that the run ended with, if any."""
    try:
        await run.run()
    except BaseExceptionGroup as failed:
        error: BaseException = failed
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, RushesError)
        return error
    return None


async def test_a_preview_that_finds_no_memory_is_dropped_and_the_run_goes_on(studio: Studio, pool: ExpertPool) -> None:
    class Greedy(LatentProjection):
        def __call__(self, x0: torch.Tensor, frames: int, turn: int) -> torch.Tensor:
            if turn == 1:
                raise torch.OutOfMemoryError("none left")
            return super().__call__(x0, frames, turn)

    greedy = replace(studio, projection=Greedy(pool.manifest.latent_rgb, torch.device("cpu")))
    run = await Run(greedy, Turnstile(StepScheduler(1), 1.0), order(pool), 0, [], "run").run()
    assert run.reason is Reason.COMPLETED
    assert run.parcel.payload == await alone(studio, order(pool))
    ending = next(item for item in run.items if isinstance(item, Ending))
    # After steps 4 and 8; the last is the result itself.
    pictures = [item.step_index for item in run.items if isinstance(item, Picture)]
    assert 7 not in pictures
    assert len(pictures) + ending.previews_dropped == 2


async def test_a_run_that_fails_lets_go_of_its_tensors_while_its_error_is_still_held(
    studio: Studio, pool: ExpertPool
) -> None:
    edge, width = 112, pool.first.width
    tokens = VideoShape(width=edge, height=edge, frames=9).latents(16).tokens

    def out_of_memory(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("none left")

    with pool.first.module.blocks[1].attn1.to_q.register_forward_hook(out_of_memory):
        error = await outcome(Run(studio, Turnstile(StepScheduler(1), 1.0), order(pool, edge=edge), 0, [], "failed"))
    assert isinstance(error, Exhausted)
    assert isinstance(error.__cause__, torch.OutOfMemoryError)
    gc.collect()
    wide = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.shape[-2:] == (tokens, width)]
    assert not wide


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
    turnstile = Turnstile(StepScheduler(2), 1.0)

    async def completed() -> None:
        await Run(studio, turnstile, order(pool), 0, [], "completed").run()

    async def cancelled() -> None:
        doomed = Run(studio, turnstile, order(pool), 0, [], "cancelled")
        task = asyncio.create_task(doomed.run())
        await doomed.underway.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def cancelled_while_waiting() -> None:
        doomed = Run(studio, turnstile, order(pool), 0, [], "cancelled")
        async with device_taken(turnstile):
            task = asyncio.create_task(doomed.run())
            await until(turnstile, seated=2, waiting=1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def preempted() -> None:
        draft = Run(studio, turnstile, order(pool), 0, [], "draft")
        task = asyncio.create_task(draft.run())
        await draft.underway.wait()
        async with turnstile.seat(0):
            await Run(studio, turnstile, order(pool), 1, [], "urgent").run()
        await task
        assert draft.reason is Reason.PREEMPTED

    async def failed() -> None:
        def out_of_memory(*_arguments: object) -> None:
            raise torch.OutOfMemoryError("none left")

        hook = pool.first.module.proj_out.register_forward_hook(out_of_memory)
        with hook, pytest.RaisesGroup(pytest.RaisesExc(Exhausted, match="out of memory"), flatten_subgroups=True):
            await Run(studio, turnstile, order(pool), 0, [], "failed").run()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    ends = (completed, cancelled, cancelled_while_waiting, preempted, failed)
    for end in ends:
        await end()
    before = tensors()
    for end in ends:
        await end()
    assert tensors() == before
    assert not turnstile.runs
