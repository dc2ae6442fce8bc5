"""The whole relay, warm, against the reference pipeline: same weights, seed and settings, in turns in one run."""

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measurement import Figure, Report, at_most, interleave, ratio
from benchmarks.reference import ReferencePipeline
from benchmarks.work import EMBEDDED_MODEL, Work, embedded_work
from rushes.cli.embedded import SuiteSettings, embedded_suite
from rushes.cli.model_choice import ModelChoice
from rushes.cli.state import StateFolder
from rushes.client import Client, generation_spec
from rushes.v1.generation_pb2 import Generation, GenerationSpec

FIRST_FRAGMENT_FRAMES = 33


@dataclass(kw_only=True, slots=True)
class Watched:
    """What a caller saw of one generation: seconds since it asked."""

    first_preview: float = 0.0
    preview_after_steps: int = 0
    denoised: float = 0.0
    first_pictures: float = 0.0
    ended: float = 0.0
    generation: Generation = field(default_factory=Generation)

    @property
    def first_fragment_share(self) -> float:
        """Share of the whole postprocess time, from the last step on, until the first fragment with pictures."""
        return (self.first_pictures - self.denoised) / (self.ended - self.denoised)

    @property
    def overhead_share(self) -> float:
        """Share of the whole outside model and codec work."""
        latency = self.generation.latency
        work = (
            latency.encode_seconds
            + latency.high_noise_seconds
            + latency.low_noise_seconds
            + latency.decode_seconds
            + latency.video_encode_seconds
        )
        return 1 - work / latency.total_seconds


def spec_of(work: Work, *, previews: bool) -> GenerationSpec:
    """The request for `work`, every setting given."""
    return generation_spec(
        work.prompt,
        negative_prompt=work.negative_prompt,
        width=work.width,
        height=work.height,
        num_frames=work.num_frames,
        fps=work.fps,
        seed=work.seed,
        steps=work.steps,
        solver="unipc",
        sigma_rule="diffusers",
        guidance_scale_high=work.guidance_scale_high,
        guidance_scale_low=work.guidance_scale_low,
        preview_every_steps=1 if previews else 0,
    )


async def make(client: Client, work: Work, target: Path, *, previews: bool) -> Watched:
    """Make the clip as a caller does, writing it to `target` as it comes."""
    seen, began, steps = Watched(), time.perf_counter(), 0
    with target.open("wb") as file:
        async for event in client.generate(spec_of(work, previews=previews)):
            elapsed = time.perf_counter() - began
            match event.WhichOneof("event"):
                case "step":
                    steps += 1
                    seen.denoised = elapsed
                case "preview" if not seen.first_preview:
                    seen.first_preview, seen.preview_after_steps = elapsed, steps
                case "fragment":
                    file.write(event.fragment.data)
                    if event.fragment.frame_count and event.fragment.last_part and not seen.first_pictures:
                        seen.first_pictures = elapsed
                case "succeeded":
                    seen.ended = elapsed
                    seen.generation = event.succeeded.generation
    return seen


async def measure(repeats: int = 7) -> Report:
    """The ratio to the reference, the overhead, and how early pictures come."""
    work = embedded_work()
    reference = ReferencePipeline.load(EMBEDDED_MODEL)
    relays: list[Watched] = []
    shown: list[Watched] = []
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "clip.mp4"
        settings = SuiteSettings(model=ModelChoice(path=EMBEDDED_MODEL), device="cpu", dtype="float32")
        state = StateFolder(Path(folder) / "state")
        async with embedded_suite(settings, state, lambda _name, _seconds: None) as address, Client(address) as client:

            async def relay() -> None:
                relays.append(await make(client, work, target, previews=False))

            async def relay_with_previews() -> None:
                shown.append(await make(client, work, target, previews=True))

            async def pipeline() -> None:
                reference.make(work, target)

            cases = {"diffusers pipeline": pipeline, "relay": relay, "relay with previews": relay_with_previews}
            samples = await interleave(cases, repeats)
            longer = [
                (await make(client, work.with_frames(FIRST_FRAGMENT_FRAMES), target, previews=False))
                for _ in range(max(3, repeats // 2))
            ]
    whole = ratio(samples, "relay", "diffusers pipeline")
    overhead = statistics.median(seen.overhead_share for seen in relays)
    first_fragment = statistics.median(seen.first_fragment_share for seen in longer)
    steps_to_preview = statistics.median(seen.preview_after_steps for seen in shown)
    return Report(
        title=f"Relay: {work.num_frames} frames of {work.width}x{work.height}, {work.steps} steps, float32",
        figures=(
            at_most("whole clip through all services, against the reference pipeline and its export", whole, 1.0),
            Figure(
                name="the same with a preview after every step",
                value=ratio(samples, "relay with previews", "diffusers pipeline"),
                unit="ratio",
            ),
            at_most("share of the whole outside model and codec work", 100 * overhead, 5.0, "%"),
            at_most("steps until the first preview", steps_to_preview, 2.0, "steps"),
            at_most(
                f"first playable fragment, share of the postprocess time, {FIRST_FRAGMENT_FRAMES} frames",
                100 * first_fragment,
                25.0,
                "%",
            ),
        ),
        samples=samples,
    )
