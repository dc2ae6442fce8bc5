"""One attempt at a generation: what happens in the chain becomes events, checkpoints, previews and a clip."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
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
from services.gateway.history import History
from services.gateway.latency import Part, Timeline
from services.gateway.outage import DATABASE_AWAY
from services.gateway.outputs import Outputs
from services.gateway.stages import SolverBundle, Stages
from services.gateway.store.job import Charge, Job, Lease, Outcome, StoredEvent
from services.gateway.store.jobs import JobStore
from services.gateway.store.leases import NO_CHANGES, LeaseStore
from services.gateway.store.transitions import State
from services.gateway.watch import PAGE, Previews

Entry: TypeAlias = tuple[generation_pb2.GenerationEvent, Mapping[str, object]]


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
    """One attempt under one lease. `denoised` is set when it no longer needs a denoiser."""

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
        self.steps_run = job.steps_run
        self.denoised = asyncio.Event()

    async def work(self) -> Outcome:
        """Do it all. Raises `StageFailed`, `LeaseLost`, and the artifact store's errors."""
        chain = await self._resume()
        async with (
            History(self._workshop.leases, self._lease, self._job.last_sequence) as history,
            aclosing(chain.run()) as happenings,
        ):
            async for happening in happenings:
                for event, changes in await self._take(happening, chain):
                    await history.append(event.SerializeToString(), changes)
            video, key = await self._store_clip()
        outputs = " ".join(self._outputs.keys) or None
        return self.outcome(State.SUCCEEDED, video=video.SerializeToString(), clip=key, outputs=outputs)

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
            boundary = next((one.denoising.boundary_step for one in past if one.HasField("denoising")), None)
            if job.latency is not None:
                self._timeline.spans.extend(latency_pb2.LatencyBreakdown.FromString(job.latency).spans)
        if job.checkpoint is not None and job.conditioning is not None:
            conditioning = await artifacts.get(job.conditioning)
            state = await artifacts.get(job.checkpoint)
        self._timeline.record("queue", stage="gateway", start=self._timeline.end, end=self._elapsed(), part=Part.QUEUE)
        tier = self._workshop.tiers[job.tier]
        return Chain(
            self._workshop.pools,
            generation_id=job.id,
            spec=self._spec,
            attempt=job.attempt,
            elapsed=self._elapsed,
            timeline=self._timeline,
            conditioning=conditioning,
            state=state,
            next_step=job.checkpoint_step if state is not None else 0,
            boundary_step=boundary,
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

    async def _take(self, happening: Happening, chain: Chain) -> list[Entry]:
        """The events that a happening writes, each with the changes of the job that go with it."""
        match happening:
            case denoiser_pb2.Preview():
                self._workshop.previews.publish(self._job.id, happening)
                return []
            case SolverBundle():
                return await self._checkpoint(happening, chain)
            case postprocess_pb2.OutputPart():
                await self._outputs.take(happening)
                return []
        return self._denoised(happening) or self._rendered(happening)

    def _denoised(self, happening: Happening) -> list[Entry]:
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

    def _rendered(self, happening: Happening) -> list[Entry]:
        events: list[generation_pb2.GenerationEvent] = []
        changes = NO_CHANGES
        match happening:
            case postprocess_pb2.RenderAccepted():
                self.denoised.set()
                self._outputs.begin()
                events = self._clip.accepted(happening)
            case postprocess_pb2.RenderProgress():
                events = self._clip.progress(happening)
                changes = self._progress(denoised=1.0, rendered=happening.frames_decoded / happening.frames_total)
            case postprocess_pb2.Fragment():
                events = self._clip.fragment(happening)
            case postprocess_pb2.Artifact():
                events = self._clip.artifact(happening)
            case postprocess_pb2.RenderResult():
                seconds = happening.decode_seconds + happening.encode_tail_seconds
                self._workshop.costs.observe_render(self._plan, seconds)
                self._charge = replace(self._charge, render_seconds=self._charge.render_seconds + seconds)
                self._result = happening
        return [(one, changes) for one in events]

    def _stepped(self, step: denoiser_pb2.StepProgress) -> None:
        self.steps_run += 1
        self._charge = replace(self._charge, denoise_seconds=self._charge.denoise_seconds + step.seconds)
        high = step.expert != sampling_pb2.EXPERT_LOW_NOISE
        self._workshop.costs.observe_step(self._plan, high=high, seconds=step.seconds)

    def _progress(self, *, denoised: float = 0.0, rendered: float = 0.0) -> Mapping[str, object]:
        estimate = self._estimate
        done = estimate.encode + (estimate.high + estimate.low) * denoised + estimate.render * rendered
        return {"progress": min(1.0, done / estimate.total)}

    async def _checkpoint(self, bundle: SolverBundle, chain: Chain) -> list[Entry]:
        """Store the state, and only then say so: what the history names is there."""
        if bundle.kind == tensors_pb2.BUNDLE_KIND_LATENTS:
            self.denoised.set()
        begun = self._elapsed()
        artifacts = self._workshop.artifacts
        if self._conditioning is None and chain.conditioning is not None:
            self._conditioning = await artifacts.put("conditioning", chain.conditioning)
        key = await artifacts.put("checkpoints", bundle.payload)
        self._timeline.record("checkpoint", stage="gateway", start=begun, end=self._elapsed(), part=Part.HAND_OFF)
        spans = latency_pb2.LatencyBreakdown(spans=self._timeline.spans)
        event = generation_pb2.CheckpointedEvent(
            next_step=bundle.next_step, reason=bundle.reason, size_bytes=len(bundle.payload)
        )
        changes = {
            "checkpoint": key,
            "checkpoint_step": bundle.next_step,
            "conditioning": self._conditioning,
            "latency": spans.SerializeToString(),
        }
        return [(generation_pb2.GenerationEvent(checkpointed=event), changes)]

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
            ),
            key,
        )
