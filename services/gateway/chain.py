"""One generation through the stages: encode, denoise, render. It only iterates over what the stages send.

Deadlines, cancellation and trace context pass through untouched: whoever stops reading stops the device. What was lost
with a stage is made good here, from the last solver state, without the reader noticing more than a `ResumedEvent`.
"""

import random
from asyncio import sleep
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from rushes.v1 import denoiser_pb2, encoder_pb2, generation_pb2, latency_pb2, postprocess_pb2, sampling_pb2
from services.chassis.errors import Cancelled, Exhausted, Internal, RushesError, Unavailable
from services.gateway import stages
from services.gateway.latency import Part, Timeline
from services.gateway.pool import FAULTS
from services.gateway.spec import render_start
from services.gateway.stages import SolverBundle, Stages
from services.gateway.takes import black_share

Happening: TypeAlias = (
    generation_pb2.EncodedEvent
    | generation_pb2.DenoisingEvent
    | generation_pb2.ResumedEvent
    | stages.DenoiseItem
    | stages.RenderItem
    | stages.SolverBundle
)


GONE = (Unavailable, Cancelled, Internal)
"""Errors of an endpoint that is going or gone: gRPC has several words for it, and nobody here cancels and reads on."""

HANDED_BACK: Mapping[int, str] = {
    denoiser_pb2.BUNDLE_REASON_BOUNDARY: "EXPERT_BOUNDARY",
    denoiser_pb2.BUNDLE_REASON_DRAINED: "STAGE_DRAINED",
    denoiser_pb2.BUNDLE_REASON_PREEMPTED: "STAGE_PREEMPTED",
}
"""Why work that a denoiser handed back goes on elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long the chain goes on: `*_seconds` are deadlines of one attempt at a stage, `losses` how many of it in a row
    it makes good, `slot_seconds` how long it waits for a free slot.
    """

    encode_seconds: float = 120.0
    denoise_seconds: float = 7200.0
    render_seconds: float = 1800.0
    slot_seconds: float = 300.0
    losses: int = 5
    checkpoint_seconds: float = 30.0


class StageFailed(Exception):
    """A stage refused the work, or was lost too often."""

    def __init__(self, stage: str, error: RushesError) -> None:
        super().__init__(stage, error)
        self.stage = stage
        self.error = error


class Chain:
    """One attempt at a generation, from its beginning or from where an earlier one got to.

    `spec` has every setting filled in. `conditioning` and `state` are what an earlier attempt stored: the embeddings,
    and the solver state after `next_step` steps, or the latents if that is all of them; `boundary_step` is the first
    of the low-noise expert, if it is known. `elapsed` tells the seconds since the generation was created.
    Work does not wait for a denoiser that work of lower `precedence` holds, and takes it between two steps by its
    higher `priority`.
    """

    def __init__(
        self,
        pools: Stages,
        *,
        generation_id: str,
        spec: generation_pb2.GenerationSpec,
        attempt: int,
        elapsed: Callable[[], float],
        timeline: Timeline,
        conditioning: bytes | None = None,
        state: bytes | None = None,
        next_step: int = 0,
        boundary_step: int | None = None,
        priority: int = 0,
        precedence: int = 1,
        patience: Patience,
    ) -> None:
        self._pools = pools
        self._generation_id = generation_id
        self._spec = spec
        self._attempt = attempt
        self._elapsed = elapsed
        self._timeline = timeline
        self._state = state
        self._patience = patience
        self._priority = priority
        self._precedence = precedence
        self._seeking: float | None = None
        self.conditioning = conditioning
        self.next_step = next_step
        self.boundary_step = boundary_step

    async def run(self) -> AsyncGenerator[Happening, None]:
        """What happens, in order; ends after a `RenderResult`. Raises `StageFailed`."""
        if self.next_step < self._spec.sampling.steps:
            if self.conditioning is None:
                yield await self._encode()
            async with aclosing(self._denoise()) as steps:
                async for step in steps:
                    yield step
        async with aclosing(self._render()) as pieces:
            async for piece in pieces:
                yield piece

    async def _encode(self) -> generation_pb2.EncodedEvent:
        sampling = self._spec.sampling
        guided = sampling.guidance_scale_high != 1.0 or sampling.guidance_scale_low != 1.0
        request = encoder_pb2.EncodeRequest(model=self._spec.model, prompt=self._spec.prompt)
        if guided:
            request.negative_prompt = self._spec.negative_prompt
        losses = 0
        while True:
            try:
                async with self._pools.encoders.slot(
                    fits=lambda described: described.model == self._spec.model,
                    wait_seconds=self._patience.slot_seconds,
                ) as endpoint:
                    start = self._elapsed()
                    encoded = await stages.encode(endpoint, request, timeout=self._patience.encode_seconds)
            except RushesError as error:
                losses = await self._make_good("encoder", error, losses)
                continue
            end = self._elapsed()
            break
        self._timeline.record_call("encode", stage="encoder", start=start, end=end, inside=encoded.summary.spans)
        if not encoded.summary.spans:
            seconds = min(encoded.summary.seconds, end - start)
            self._timeline.record("encode.text", stage="encoder", start=start, end=start + seconds, part=Part.ENCODE)
        self.conditioning = encoded.conditioning
        prompt = encoded.summary.prompt
        return generation_pb2.EncodedEvent(
            tokens=prompt.tokens,
            truncated=prompt.truncated,
            total_tokens=prompt.total_tokens,
            cached=prompt.cached,
            seconds=encoded.summary.seconds,
        )

    async def _denoise(self) -> AsyncGenerator[Happening, None]:
        losses, resumed = 0, ""
        while self.next_step < self._spec.sampling.steps:
            begun = False
            try:
                async with (
                    self._pools.denoisers.slot(
                        fits=self._holds_next,
                        wait_seconds=self._patience.slot_seconds,
                        precedence=self._precedence,
                    ) as endpoint,
                    aclosing(self._run_steps(endpoint)) as items,
                ):
                    async for item in items:
                        match item:
                            case denoiser_pb2.DenoiseAccepted():
                                begun = True
                                self.boundary_step = item.boundary_step
                                if resumed:
                                    yield self._resumed(resumed)
                                resumed = ""
                                yield self._denoising(item)
                            case SolverBundle():
                                losses = 0 if item.next_step > self.next_step else losses
                                self._state, self.next_step = item.payload, item.next_step
                                yield item
                            case denoiser_pb2.DenoiseResult():
                                resumed = HANDED_BACK.get(item.reason, "")
                                yield item
                            case _:
                                yield item
            except RushesError as error:
                losses = await self._make_good("denoiser", error, losses, begun=begun)
                if not isinstance(error, Exhausted):
                    resumed = "STAGE_LOST"

    def _holds_next(self, described: denoiser_pb2.DescribeDenoiserResponse) -> bool:
        if self.boundary_step is None:
            low_noise = self._spec.sampling.boundary_ratio >= 1.0
        else:
            low_noise = self.next_step >= self.boundary_step
        expert = sampling_pb2.EXPERT_LOW_NOISE if low_noise else sampling_pb2.EXPERT_HIGH_NOISE
        return described.model == self._spec.model and expert in described.experts

    async def _run_steps(self, endpoint: stages.Denoiser) -> AsyncGenerator[stages.DenoiseItem, None]:
        conditioning = self.conditioning or b""
        start = denoiser_pb2.DenoiseStart(
            generation_id=self._generation_id,
            model=self._spec.model,
            shape=sampling_pb2.VideoShape(
                width=self._spec.width, height=self._spec.height, num_frames=self._spec.num_frames
            ),
            sampling=self._spec.sampling,
            seed=self._spec.seed,
            first_step=self.next_step,
            previews=self._spec.previews,
            checkpoints=denoiser_pb2.CheckpointPolicy(every_seconds=self._patience.checkpoint_seconds),
            conditioning_size=len(conditioning),
            state_size=len(self._state or b""),
            priority=self._priority,
            adapters=self._spec.adapters,
            reuse_prefix=self._spec.reuse_prefix and not self._state,
            black_share=black_share(self._spec.inspection),
        )
        began, steps, inside = self._elapsed(), [], list[latency_pb2.Span]()
        call = stages.denoise(
            endpoint, start, conditioning=conditioning, state=self._state, timeout=self._patience.denoise_seconds
        )
        try:
            async with aclosing(call) as items:
                async for item in items:
                    if isinstance(item, denoiser_pb2.StepProgress):
                        steps.append(_step_span(item, self._elapsed() - began))
                    elif isinstance(item, denoiser_pb2.DenoiseResult):
                        inside = list(item.spans)
                    yield item
        finally:
            # A denoiser that was lost leaves no spans; its steps are placed by when they were heard of.
            self._timeline.record_call(
                "denoise", stage="denoiser", start=began, end=self._elapsed(), inside=inside or steps
            )

    async def _render(self) -> AsyncGenerator[stages.RenderItem, None]:
        losses = 0
        while True:
            begun = False
            try:
                async with (
                    self._pools.postprocessors.slot(
                        fits=lambda described: described.model == self._spec.model,
                        wait_seconds=self._patience.slot_seconds,
                    ) as endpoint,
                    aclosing(self._run_render(endpoint)) as items,
                ):
                    async for item in items:
                        begun = True
                        yield item
            except RushesError as error:
                losses = await self._make_good("postprocess", error, losses, begun=begun)
            else:
                return

    async def _run_render(self, endpoint: stages.Postprocessor) -> AsyncGenerator[stages.RenderItem, None]:
        latents = self._state or b""
        start = render_start(self._spec, generation_id=self._generation_id, latents_size=len(latents))
        began, inside = self._elapsed(), list[latency_pb2.Span]()
        call = stages.render(endpoint, start, latents=latents, timeout=self._patience.render_seconds)
        try:
            async with aclosing(call) as items:
                async for item in items:
                    if isinstance(item, postprocess_pb2.RenderResult):
                        inside = list(item.spans) or _render_spans(item, self._elapsed() - began)
                    yield item
        finally:
            self._timeline.record_call("render", stage="postprocess", start=began, end=self._elapsed(), inside=inside)

    async def _make_good(self, stage: str, error: RushesError, losses: int, *, begun: bool = True) -> int:
        """Wait before another try; the losses so far. Raises `StageFailed` if trying again cannot help.

        Work that was never `begun`, at an endpoint that is gone, is no loss until none was found for `slot_seconds`.
        """
        now = self._elapsed()
        if begun or self._seeking is None:
            self._seeking = now
        if not begun and isinstance(error, GONE) and now - self._seeking < self._patience.slot_seconds:
            await sleep(0.5 * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            return losses
        if isinstance(error, Exhausted):
            await sleep((error.retry_after_seconds or 1.0) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            return losses
        if not isinstance(error, FAULTS) or losses + 1 > self._patience.losses:
            raise StageFailed(stage, error) from error
        await sleep(min(5.0, 0.1 * 2**losses) * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        return losses + 1

    def _resumed(self, reason: str) -> generation_pb2.ResumedEvent:
        return generation_pb2.ResumedEvent(next_step=self.next_step, attempt=self._attempt, reason=reason)

    def _denoising(self, accepted: denoiser_pb2.DenoiseAccepted) -> generation_pb2.DenoisingEvent:
        return generation_pb2.DenoisingEvent(
            first_step=accepted.first_step,
            end_step=accepted.end_step,
            total_steps=self._spec.sampling.steps,
            boundary_step=accepted.boundary_step,
            reused_steps=accepted.reused_steps,
        )


def _step_span(step: denoiser_pb2.StepProgress, heard: float) -> latency_pb2.Span:
    return latency_pb2.Span(
        name="denoise.step",
        stage="denoiser",
        start_seconds=max(0.0, heard - step.seconds),
        duration_seconds=min(heard, step.seconds),
        attributes={"step": str(step.index), "expert": sampling_pb2.Expert.Name(step.expert).lower()},
    )


def _render_spans(result: postprocess_pb2.RenderResult, heard: float) -> list[latency_pb2.Span]:
    tail = min(heard, result.encode_tail_seconds)
    decode = min(heard - tail, result.decode_seconds)
    return [
        latency_pb2.Span(
            name="render.decode", stage="postprocess", start_seconds=heard - tail - decode, duration_seconds=decode
        ),
        latency_pb2.Span(name="render.encode", stage="postprocess", start_seconds=heard - tail, duration_seconds=tail),
    ]
