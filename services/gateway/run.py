"""One attempt at a generation: what happens in the chain becomes events, checkpoints, previews and a clip."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeAlias

from rushes.v1 import denoiser_pb2, generation_pb2, latency_pb2, postprocess_pb2, sampling_pb2, tensors_pb2
from services.chassis.errors import DataLoss
from services.gateway import spec as specs
from services.gateway import views
from services.gateway.artifacts import Artifacts, md5_of
from services.gateway.chain import Chain, Happening, Patience, StageFailed
from services.gateway.clip import Clip
from services.gateway.cost_model import CostModel
from services.gateway.fair_queue import Tier
from services.gateway.history import Entry, History, Recording
from services.gateway.latency import Part, Timeline
from services.gateway.outage import DATABASE_AWAY
from services.gateway.outputs import Outputs
from services.gateway.stages import SolverBundle, Stages
from services.gateway.store.job import Charge, Job, Lease, Outcome, StoredEvent
from services.gateway.store.jobs import JobStore
from services.gateway.store.leases import NO_CHANGES, LeaseStore
from services.gateway.store.transitions import State
from services.gateway.takes import Takes
from services.gateway.watch import PAGE, Previews

Happened: TypeAlias = tuple[generation_pb2.GenerationEvent, Mapping[str, object]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """What every attempt works with."""

    pools: Stages
    jobs: JobStore
    leases: LeaseStore
    artifacts: Artifacts
    previews: Previews
    costs: CostModel
    tiers: Mapping[int, Tier]
    patience: Patience
    clock: Callable[[], float]
    share_previews: bool


class Run:
    """One attempt under one lease, of as many takes as the quality gate asks for.

    `denoised` is set when it no longer needs a denoiser, unless another take does.
    """

    def __init__(self, workshop: Workshop, lease: Lease, job: Job) -> None:
        self._workshop = workshop
        self._lease = lease
        self._job = job
        self._spec = generation_pb2.GenerationSpec.FromString(job.spec)
        self._plan = specs.plan(self._spec)
        self._estimate = workshop.costs.estimate(self._plan)
        self._offset = max(0.0, workshop.clock() - job.created)
        self._began = time.monotonic()
        self._timeline = Timeline()
        self._clip = Clip()
        self._outputs = Outputs(workshop.artifacts)
        self._result: postprocess_pb2.RenderResult | None = None
        self._conditioning = job.conditioning
        self._charge = Charge(pixels=self._plan.pixels, frames=self._spec.num_frames)
        self._decoded_seconds = 0.0
        self.takes = Takes(self._spec)
        self.steps_run = job.steps_run
        self.denoised = asyncio.Event()

    async def work(self) -> Outcome:
        """Do it all. Raises `StageFailed`, `LeaseLost`, and the artifact store's errors."""
        chain = await self._resume()
        async with History(self._workshop.leases, self._lease, self._job.last_sequence) as history:
            while True:
                begun = self._elapsed()
                try:
                    await self._follow(chain, history)
                except StageFailed as failed:
                    now = self._elapsed()
                    retaken = self.takes.again(failed.error, lasted=now - begun, elapsed=now)
                    if retaken is None:
                        raise
                    await history.append(*self._begin_take(retaken))
                    chain = self._chain(conditioning=chain.conditioning)
                else:
                    break
            video, key = await self._store_clip()
        outputs = " ".join(self._outputs.keys) or None
        return self.outcome(State.SUCCEEDED, video=video.SerializeToString(), clip=key, outputs=outputs)

    async def _follow(self, chain: Chain, history: History) -> None:
        """Write down what happens in a take until its clip is there."""
        async with aclosing(chain.run()) as happenings:
            async for happening in happenings:
                if isinstance(happening, SolverBundle):
                    await history.record(self._checkpoint(happening, chain.conditioning))
                    continue
                for event, changes in await self._take(happening):
                    await history.append(event.SerializeToString(), changes)

    def _begin_take(self, retaken: generation_pb2.RetakenEvent) -> tuple[bytes, Mapping[str, object]]:
        """The event of another take, and with it the end of all that could be mistaken for a part of that take."""
        self._clip, self._result = Clip(), None
        self._outputs.begin()
        spans = latency_pb2.LatencyBreakdown(spans=self._timeline.spans)
        changes = {
            "checkpoint": None,
            "checkpoint_step": 0,
            "latency": spans.SerializeToString(),
            **self._progress(),
        }
        return generation_pb2.GenerationEvent(retaken=retaken).SerializeToString(), changes

    async def share_previews(self) -> None:
        """Put the newest preview where other gateways find it, one at a time, for as long as this is not cancelled."""
        shared = 0
        with self._workshop.previews.subscribe(self._job.id) as bell:
            while True:
                await bell.wait()
                bell.clear()
                latest = self._workshop.previews.latest(self._job.id)
                if latest is not None and latest.version > shared:
                    shared = latest.version
                    # The next one makes good what a database that is away does not take.
                    with contextlib.suppress(*DATABASE_AWAY):
                        await self._workshop.leases.preview(self._lease, shared, latest.preview.SerializeToString())

    def outcome(
        self,
        state: State,
        *,
        failure: bytes | None = None,
        video: bytes | None = None,
        clip: str | None = None,
        outputs: str | None = None,
    ) -> Outcome:
        """The end of the generation, with the account of its time and what it used."""
        latency = self._timeline.breakdown(total=self._elapsed(), trace_id=views.trace_id(self._job.traceparent))
        return Outcome(
            state=state,
            failure=failure,
            video=video,
            clip=clip,
            outputs=outputs,
            latency=latency.SerializeToString(),
            steps_run=self.steps_run,
            charge=self._charge,
        )

    def _elapsed(self) -> float:
        """Seconds since the generation was created."""
        return self._offset + time.monotonic() - self._began

    async def _resume(self) -> Chain:
        """The chain, from where the last attempt got to."""
        job, artifacts = self._job, self._workshop.artifacts
        boundary: int | None = None
        conditioning: bytes | None = None
        state: bytes | None = None
        if job.attempt > 1:
            past = [views.stored_event(job.id, one) async for one in self._past()]
            self._clip = Clip(past)
            self.takes = Takes(self._spec, past)
            self._charge = _charged(self._charge, past)
            boundary = next((one.denoising.boundary_step for one in past if one.HasField("denoising")), None)
            if job.latency is not None:
                self._timeline.spans.extend(latency_pb2.LatencyBreakdown.FromString(job.latency).spans)
        if job.conditioning is not None:
            conditioning = await artifacts.get(job.conditioning)
            state = await artifacts.get(job.checkpoint) if job.checkpoint is not None else None
        self._timeline.record("queue", stage="gateway", start=self._timeline.end, end=self._elapsed(), part=Part.QUEUE)
        next_step = job.checkpoint_step if state is not None else 0
        return self._chain(conditioning=conditioning, state=state, next_step=next_step, boundary_step=boundary)

    def _chain(
        self,
        *,
        conditioning: bytes | None,
        state: bytes | None = None,
        next_step: int = 0,
        boundary_step: int | None = None,
    ) -> Chain:
        """The chain of this take."""
        job, spec = self._job, generation_pb2.GenerationSpec()
        spec.CopyFrom(self._spec)
        spec.seed = self.takes.seed
        tier = self._workshop.tiers[job.tier]
        return Chain(
            self._workshop.pools,
            generation_id=job.id,
            spec=spec,
            attempt=job.attempt,
            elapsed=self._elapsed,
            timeline=self._timeline,
            conditioning=conditioning,
            state=state,
            next_step=next_step,
            boundary_step=boundary_step,
            priority=tier.priority,
            precedence=tier.precedence,
            patience=self._workshop.patience,
        )

    async def _past(self) -> AsyncIterator[StoredEvent]:
        last = 0
        while events := await self._workshop.jobs.events(self._job.id, after=last, limit=PAGE):
            for event in events:
                yield event
            last = events[-1].sequence

    async def _take(self, happening: Happening) -> list[Happened]:
        """The events that a happening writes, each with the changes of the job that go with it."""
        match happening:
            case denoiser_pb2.Preview():
                self._workshop.previews.publish(self._job.id, happening)
                return []
            case postprocess_pb2.OutputPart():
                await self._outputs.take(happening)
                return []
        return self._denoised(happening) or self._rendered(happening)

    def _denoised(self, happening: Happening) -> list[Happened]:
        event = generation_pb2.GenerationEvent
        match happening:
            case generation_pb2.EncodedEvent():
                self._workshop.costs.observe_encode(self._plan, happening.seconds)
                self._charge = replace(self._charge, encode_seconds=self._charge.encode_seconds + happening.seconds)
                return [(event(encoded=happening), self._progress())]
            case generation_pb2.DenoisingEvent():
                return [(event(denoising=happening), NO_CHANGES)]
            case generation_pb2.ResumedEvent():
                return [(event(resumed=happening), NO_CHANGES)]
            case denoiser_pb2.StepProgress():
                self._stepped(happening)
                progress = self._progress(denoised=(happening.index + 1) / happening.total)
                return [(event(step=happening), {**progress, "steps_run": self.steps_run})]
        return []

    def _rendered(self, happening: Happening) -> list[Happened]:
        events: list[generation_pb2.GenerationEvent] = []
        changes = NO_CHANGES
        match happening:
            case postprocess_pb2.RenderAccepted():
                self.denoised.set()
                self._outputs.begin()
                self._decoded_seconds = 0.0
                events = self._clip.accepted(happening)
            case postprocess_pb2.RenderProgress():
                # Counted as it passes: a clip that is refused never gets to its result.
                self._rendering(happening.seconds)
                self._decoded_seconds += happening.seconds
                events = self._clip.progress(happening)
                changes = self._progress(denoised=1.0, rendered=happening.frames_decoded / happening.frames_total)
            case postprocess_pb2.Fragment():
                events = self._clip.fragment(happening)
            case postprocess_pb2.Artifact():
                events = self._clip.artifact(happening)
            case postprocess_pb2.RenderResult():
                seconds = happening.decode_seconds + happening.encode_tail_seconds
                self._workshop.costs.observe_render(self._plan, seconds)
                self._rendering(max(0.0, seconds - self._decoded_seconds))
                self._result = happening
        return [(one, changes) for one in events]

    def _rendering(self, seconds: float) -> None:
        self._charge = replace(self._charge, render_seconds=self._charge.render_seconds + seconds)

    def _stepped(self, step: denoiser_pb2.StepProgress) -> None:
        self.steps_run += 1
        self._charge = replace(self._charge, denoise_seconds=self._charge.denoise_seconds + step.seconds)
        high = step.expert != sampling_pb2.EXPERT_LOW_NOISE
        self._workshop.costs.observe_step(self._plan, high=high, seconds=step.seconds)

    def _progress(self, *, denoised: float = 0.0, rendered: float = 0.0) -> Mapping[str, object]:
        estimate = self._estimate
        done = estimate.encode + (estimate.high + estimate.low) * denoised + estimate.render * rendered
        return {"progress": min(1.0, done / estimate.total)}

    def _checkpoint(self, bundle: SolverBundle, conditioning: bytes | None) -> Recording:
        """Stores the state beside the work that goes on, and only then says so: what the history names is there."""
        if bundle.kind == tensors_pb2.BUNDLE_KIND_LATENTS:
            self.denoised.set()

        async def record() -> Entry:
            begun = self._elapsed()
            artifacts = self._workshop.artifacts
            if self._conditioning is None and conditioning is not None:
                self._conditioning = await artifacts.put("conditioning", conditioning)
            key = await artifacts.put("checkpoints", bundle.payload)
            self._timeline.record("checkpoint", stage="gateway", start=begun, end=self._elapsed())
            event = generation_pb2.CheckpointedEvent(
                next_step=bundle.next_step, reason=bundle.reason, size_bytes=len(bundle.payload)
            )
            changes = {
                "checkpoint": key,
                "checkpoint_step": bundle.next_step,
                "conditioning": self._conditioning,
                "latency": latency_pb2.LatencyBreakdown(spans=self._timeline.spans).SerializeToString(),
            }
            return Entry(
                payload=generation_pb2.GenerationEvent(checkpointed=event).SerializeToString(), changes=changes
            )

        return record

    async def _store_clip(self) -> tuple[generation_pb2.Video, str]:
        result = self._result
        if result is None:
            raise StageFailed("postprocess", DataLoss("The clip never ended.", reason="CLIP_TRUNCATED"))
        begun = self._elapsed()
        digest = await asyncio.to_thread(lambda: hashlib.sha256(self._clip.data).hexdigest())
        if digest != result.sha256:
            raise StageFailed("postprocess", DataLoss("The clip arrived damaged.", reason="CLIP_DAMAGED"))
        whole = self._outputs.video
        if whole is None:
            key = await self._workshop.artifacts.put("clips", self._clip.data)
            whole = (
                postprocess_pb2.OutputFile(
                    content_type=self._clip.form.content_type,
                    size_bytes=result.size_bytes,
                    sha256=result.sha256,
                    md5=md5_of(self._clip.data),
                ),
                key,
            )
        file, key = whole
        self._timeline.record("store", stage="gateway", start=begun, end=self._elapsed())
        self._charge = replace(self._charge, size_bytes=sum(one.size_bytes for one in self._outputs.files))
        return (
            generation_pb2.Video(
                content_type=file.content_type,
                width=self._clip.form.width,
                height=self._clip.form.height,
                num_frames=result.num_frames,
                fps=self._clip.form.fps,
                findings=result.findings,
                duration_seconds=result.duration_seconds,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                md5=file.md5,
                outputs=self._outputs.files,
                seed=self.takes.seed,
                takes=self.takes.number,
            ),
            key,
        )


def _charged(charge: Charge, past: Iterable[generation_pb2.GenerationEvent]) -> Charge:
    """`charge` with what earlier attempts used, as far as the history tells."""
    seconds = dict.fromkeys(("encoded", "step", "rendered"), 0.0)
    for event in past:
        kind = event.WhichOneof("event")
        if kind in seconds:
            seconds[kind] += getattr(event, kind).seconds
    return replace(
        charge,
        encode_seconds=seconds["encoded"],
        denoise_seconds=seconds["step"],
        render_seconds=seconds["rendered"],
    )
