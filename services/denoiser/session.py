"""One run of the denoising loop on the device, reporting into an outbox."""

import asyncio
import time
from collections.abc import Generator, Hashable, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field

import torch

from services.chassis.bundles import pack
from services.chassis.errors import Exhausted, FailedPrecondition, Unavailable
from services.denoiser.acceleration import Acceleration
from services.denoiser.adapter_shelf import AdapterShelf
from services.denoiser.adapters import Adapter
from services.denoiser.checkpoint import state_metadata, state_tensors
from services.denoiser.conditioning import Conditioning
from services.denoiser.darkroom import Darkroom
from services.denoiser.experts import Expert
from services.denoiser.gauges import StepGauges
from services.denoiser.guard import Guard
from services.denoiser.guidance_batch import GuidanceBatch
from services.denoiser.memory import MemoryBook
from services.denoiser.outbox import Ending, Outbox, Parcel, Reason, StepReport
from services.denoiser.pace import Pace
from services.denoiser.plan import Plan
from services.denoiser.pool import ExpertPool
from services.denoiser.prefix_cache import PrefixCache
from services.denoiser.previews import Developer, PreviewRequest
from services.denoiser.sampler import denoise, prior
from services.denoiser.sharing import Offer, StepSharing, evaluate_together
from services.denoiser.solvers import SolverState, solver_step
from services.denoiser.spans import Spans
from services.denoiser.step_cache import StepCache, may_be_cut
from services.denoiser.step_scheduler import Wish
from services.denoiser.timing import TimedStep, timed
from services.denoiser.turnstile import Seat
from services.denoiser.velocity import Foreseen, GuidedVelocity
from services.model.bundles import to_bundle
from services.model.device import DeviceThread


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointPolicy:
    """When the state is sent while the run goes on: by device seconds (0: every step) and by count (0: never)."""

    every_seconds: float | None = None
    every_steps: int = 0

    def due(self, steps: int, seconds: float) -> bool:
        """Whether to send one, so many steps and seconds after the last."""
        by_count = self.every_steps > 0 and steps >= self.every_steps
        return by_count or (self.every_seconds is not None and seconds >= self.every_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A checked order: what to run, with what, from where (None: from noise).

    `prefix`: the key under which the state at the boundary is remembered for other runs; None: it is not.
    `black_share`: the share of a late prediction that is dark in a run that is given up; 0: darkness is let pass.
    """

    plan: Plan
    conditioning: Conditioning
    state: SolverState | None
    previews: PreviewRequest | None
    checkpoints: CheckpointPolicy
    adapters: Mapping[Expert, Sequence[tuple[Adapter, float]]] = field(default_factory=dict)
    prefix: str | None = None
    black_share: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Studio:
    """What every run of this process shares."""

    pool: ExpertPool
    thread: DeviceThread
    shelf: AdapterShelf
    projection: Developer
    guidance_batch: GuidanceBatch
    prefixes: PrefixCache
    acceleration: Acceleration
    draining: asyncio.Event
    memory: MemoryBook
    sharing: StepSharing = field(default_factory=StepSharing)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A finished step, and where a preview is due its pixels with when and how long the device worked on them.

    `shared`: the evaluation, if it was one for several runs. `verdict`: why the run ends with this step, if it does.
    """

    timed: TimedStep
    exposure: tuple[float, float, torch.Tensor] | None
    shared: Foreseen | None
    verdict: FailedPrecondition | None


class Session:
    """Runs one `Work` from its seat. Whoever cancels `run` stops the device after the step in work."""

    def __init__(self, studio: Studio, seat: Seat, work: Work, outbox: Outbox, spans: Spans) -> None:
        self._studio = studio
        self._seat = seat
        self._work = work
        self._plan = work.plan
        self._outbox = outbox
        self._spans = spans
        self._pace = Pace()
        self._device_seconds = 0.0
        self._last_ended: float | None = None
        self._steps_run = 0
        self._steps_cached = 0
        self._steps_shared = 0
        self._previews_failed = 0
        self._velocity: GuidedVelocity | None = None
        threshold = work.plan.settings.step_cache_threshold
        self._cache = None if threshold is None else StepCache(work.plan, threshold)
        self._since_checkpoint = (0, 0.0)
        self._gauges = StepGauges(work.plan.shape, seat.priority)

    async def run(self) -> None:
        """Run the plan, then give the seat back and close the outbox, whatever happens.

        Raises `Exhausted` when the device is out of memory, and `FailedPrecondition` for a prediction that is black or
        not finite.
        """
        try:
            async with asyncio.TaskGroup() as group:
                darkroom = self._darkroom(group)
                state, interruption = await self._steps(darkroom)
                reason = interruption or self._reason()
                self._outbox.put(await self._parcel(state, reason))
                if darkroom is not None:
                    darkroom.close()
            self._outbox.put(
                Ending(
                    reason=reason,
                    next_step=state.step,
                    steps_run=self._steps_run,
                    steps_cached=self._steps_cached,
                    steps_shared=self._steps_shared,
                    guidance_split=self._velocity is not None and self._velocity.split,
                    device_seconds=self._device_seconds,
                    previews_dropped=self._previews_failed
                    + self._outbox.pictures_dropped
                    + (darkroom.dropped if darkroom else 0),
                    spans=self._spans,
                )
            )
        finally:
            self._seat.vacate()
            self._outbox.close()

    async def _steps(self, darkroom: Darkroom | None) -> tuple[SolverState, Reason | None]:
        """The state after the last step that ran, and what ended the run early, if anything did."""
        if self._work.state is not None and self._work.state.step == self._plan.end_step:
            return self._work.state, None
        state = None
        stream = self._studio.thread.stream(self._generator(), self._goes_on)
        try:
            async with self._seat.stepping(), aclosing(stream) as steps:
                while state is None or state.step < self._plan.end_step:
                    asked, wish = time.monotonic(), self._wish(state)
                    async with self._seat.turn(wish, self._offer(state)) as turn:
                        self._gauges.waited(self._plan.expert(self._next(state)), time.monotonic() - asked)
                        if state is None or may_be_cut(self._plan, state.step):
                            interruption = self._interruption()
                            if interruption is not None:
                                return state or self._untouched(interruption), interruption
                        if len(turn.party) > 1:
                            await turn.party.once(self._evaluate)
                        news = await anext(steps)
                        while news.going_on:
                            turn.lap()
                            await self._deliver(news.item, darkroom)
                            news = await anext(steps)
                    state = await self._deliver(news.item, darkroom)
        except torch.OutOfMemoryError as exhausted:
            # Its frames hold what the failed step had made, and the others' steps may need that memory.
            exhausted.__traceback__ = None
            await self._studio.thread.run(torch.cuda.empty_cache)
            raise Exhausted(
                "The device ran out of memory in a step of this size.", reason="DEVICE_MEMORY"
            ) from exhausted
        return state, None

    async def _remember(self, state: SolverState) -> None:
        if self._work.prefix is not None and state.step == self._plan.boundary_step:
            held = await self._studio.thread.run(state.to, torch.device("cpu"))
            self._studio.prefixes.put(self._work.prefix, held)

    async def _evaluate(self, offers: Sequence[object]) -> None:
        await self._studio.thread.run(evaluate_together, [offer for offer in offers if isinstance(offer, Offer)])

    def _goes_on(self, frame: Frame) -> bool:
        """Whether the device's thread may begin the next step before this one is reported; asked on that thread."""
        over = frame.timed.step.state.step >= self._plan.end_step or frame.verdict is not None
        if over or self._studio.draining.is_set():
            return False
        # Where a step may be shared or an expert brought in, the scheduler has a word in each.
        shareable = self._studio.sharing.most(self._plan.latents) > 1 or self._studio.pool.residence is not None
        return not self._seat.contended(shareable=shareable)

    def _wish(self, state: SolverState | None) -> Wish:
        return Wish(kind=self._kind(state), expert=self._plan.expert(self._next(state)))

    def _next(self, state: SolverState | None) -> int:
        return self._plan.first_step if state is None else state.step

    def _kind(self, state: SolverState | None) -> Hashable:
        """What runs must have in common to share their next step; None if this one is taken alone.

        The first step of a call is: it reads the text and places the state.
        """
        if state is None or self._velocity is None or self._studio.sharing.most(self._plan.latents) == 1:
            return None
        texts = self._velocity.texts(self._plan.schedule.timesteps[state.step])
        return None if texts is None else (self._plan.latents, self._plan.expert(state.step), texts)

    def _offer(self, state: SolverState | None) -> Offer | None:
        if state is None or self._velocity is None:
            return None
        return Offer(velocity=self._velocity, x=state.x, timestep=self._plan.schedule.timesteps[state.step])

    async def _deliver(self, frame: Frame, darkroom: Darkroom | None) -> SolverState:
        state = frame.timed.step.state
        self._report(frame.timed, frame.shared)
        if frame.verdict is not None:
            raise frame.verdict
        await self._remember(state)
        if darkroom is not None and frame.exposure is not None:
            began, seconds, pixels = frame.exposure
            self._spans.add("denoise.preview", began, seconds)
            darkroom.submit(pixels, frame.timed.step.index)
        if state.step < self._plan.end_step:
            await self._checkpoint(state, frame.timed.seconds)
        return state

    def _interruption(self) -> Reason | None:
        if self._studio.draining.is_set():
            return Reason.DRAINED
        return Reason.PREEMPTED if self._seat.preempted else None

    def _untouched(self, interruption: Reason) -> SolverState:
        """The state of a run that has to go before its first step here. Raises for one that has none yet."""
        if self._work.state is not None:
            return self._work.state
        if interruption is Reason.DRAINED:
            raise Unavailable("This denoiser is shutting down.", reason="DRAINING", retry_after_seconds=1)
        raise Exhausted(
            "Work of a higher class took the slot.", reason="SLOTS_BUSY", retry_after_seconds=self._seat.retry_seconds
        )

    def _generator(self) -> Generator[Frame, None, None]:
        """The steps, made on the device's thread."""
        plan, pool = self._plan, self._studio.pool
        velocity = self._velocity = GuidedVelocity(
            experts=pool.experts,
            conditioning=self._work.conditioning,
            text_length=pool.manifest.text.max_length,
            guidance=plan.settings.guidance,
            boundary_ratio=plan.settings.boundary_ratio,
            shape=plan.latents,
            adapters=self._work.adapters,
            batched=plan.batched,
            cache=self._cache,
        )
        state = self._work.state or SolverState.start(prior(plan.latents, plan.seed))
        steps = denoise(
            velocity, plan.schedule, solver_step(plan.settings.solver), state.to(pool.device), plan.end_step
        )
        guard = Guard(pool.manifest.latent_rgb, pool.device, black_share=self._work.black_share)
        with closing(timed(guard.watched(steps), pool.device)) as timed_steps:
            for step in timed_steps:
                verdict = guard.verdict(step.step)
                exposure = self._exposure(step) if verdict is None else None
                yield Frame(timed=step, exposure=exposure, shared=velocity.used, verdict=verdict)
                if pool.residence is not None and step.step.state.step == plan.boundary_step - 1 < plan.end_step - 1:
                    pool.residence.expect(Expert.LOW)

    def _exposure(self, timed_step: TimedStep) -> tuple[float, float, torch.Tensor] | None:
        request, step = self._work.previews, timed_step.step
        # The last step's prediction is the result itself, which is already on its way.
        if request is None or not request.due(step.index) or step.state.step == self._plan.schedule.steps:
            return None
        began = time.monotonic()
        try:
            pixels = self._studio.projection(step.x0(), request.frames, step.index // request.every_steps)
        except torch.OutOfMemoryError:
            # A decoder's window may not fit beside the runs: that costs a preview and not the run.
            self._previews_failed += 1
            return None
        return began, time.monotonic() - began, pixels

    def _report(self, timed_step: TimedStep, shared: Foreseen | None) -> None:
        plan, step, seconds = self._plan, timed_step.step, timed_step.seconds
        expert = plan.expert(step.index)
        self._steps_run += 1
        self._device_seconds += seconds
        ended = timed_step.began + seconds
        if shared is not None:
            self._steps_shared += 1
            self._device_seconds += shared.seconds / shared.sharers
            seconds += shared.seconds
        # What other runs did on the device in between counts for the estimate too.
        self._pace.observe(expert, ended - (self._last_ended or timed_step.began))
        self._last_ended = ended
        high_left = max(0, plan.boundary_step - step.state.step)
        low_left = plan.schedule.steps - step.state.step - high_left
        self._gauges.stepped(expert, seconds)
        self._spans.add("denoise.step", ended - seconds, seconds, index=str(step.index), expert=expert.name.lower())
        timestep = plan.schedule.timesteps[step.index]
        cached = self._cache is not None and self._cache.has_answered(timestep)
        self._steps_cached += cached
        self._outbox.put(
            StepReport(
                index=step.index,
                expert=expert,
                sigma=step.sigma,
                timestep=timestep,
                cached=cached,
                sharers=1 if shared is None else shared.sharers,
                seconds=seconds,
                eta_seconds=self._pace.remaining(high_left, low_left),
            )
        )

    def _darkroom(self, group: asyncio.TaskGroup) -> Darkroom | None:
        if self._work.previews is None or self._work.previews.every_steps == 0:
            return None
        return Darkroom(self._work.previews, self._plan.shape, self._outbox, group, self._studio.projection.source)

    async def _checkpoint(self, state: SolverState, seconds: float) -> None:
        steps, elapsed = self._since_checkpoint[0] + 1, self._since_checkpoint[1] + seconds
        if self._work.checkpoints.due(steps, elapsed) and may_be_cut(self._plan, state.step):
            self._outbox.put_checkpoint(await self._parcel(state, Reason.CHECKPOINT))
            steps, elapsed = 0, 0.0
        self._since_checkpoint = (steps, elapsed)

    async def _parcel(self, state: SolverState, reason: Reason) -> Parcel:
        if reason is Reason.COMPLETED:
            tensors, metadata = {"latents": state.x[0]}, {"fingerprint": self._plan.fingerprint}
        else:
            tensors, metadata = state_tensors(state), state_metadata(state, self._plan)
        with self._spans.measure("denoise.pack"):
            bundle = await self._studio.thread.run(to_bundle, tensors, metadata)
            payload = await asyncio.to_thread(pack, bundle)
        return Parcel(reason=reason, next_step=state.step, payload=payload)

    def _reason(self) -> Reason:
        plan = self._plan
        if plan.finishes:
            return Reason.COMPLETED
        held = plan.expert(plan.end_step) in self._studio.pool.experts
        return Reason.RANGE_END if held else Reason.BOUNDARY
