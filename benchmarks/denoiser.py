"""The denoising loop against diffusers' own: same weights, embeddings, noise and settings, in turns in one process."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline

from benchmarks.measurement import Figure, Report, at_most, interleave, ratio
from benchmarks.work import EMBEDDED_MODEL, Work, embedded_work
from services.denoiser.conditioning import Conditioning
from services.denoiser.guidance import Guidance
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import denoise, prior
from services.denoiser.schedule import SigmaRule, Solver, make_schedule
from services.denoiser.shapes import VideoShape
from services.denoiser.solvers import SolverState, solver_step
from services.denoiser.velocity import GuidedVelocity
from services.model.folder import ModelFolder

SHAPES = (
    VideoShape(width=64, height=64, frames=17),
    VideoShape(width=96, height=96, frames=17),
    VideoShape(width=128, height=128, frames=33),
)
STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """Both loops over one model, one prompt and one seed."""

    pipeline: Any
    pool: ExpertPool
    work: Work
    flow_shift: float
    boundary_ratio: float
    positive: torch.Tensor
    negative: torch.Tensor
    lengths: tuple[int, int]

    @classmethod
    def load(cls) -> "Contest":
        """Load the embedded model twice, in float32 on the CPU."""
        work, folder = embedded_work(), ModelFolder(EMBEDDED_MODEL)
        defaults = folder.manifest.defaults
        pipeline = WanPipeline.from_pretrained(EMBEDDED_MODEL, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=defaults.flow_shift
        )
        with torch.no_grad():
            positive, negative = pipeline.encode_prompt(
                work.prompt, work.negative_prompt, True, max_sequence_length=work.text_length
            )
        tokens = pipeline.tokenizer([work.prompt, work.negative_prompt]).input_ids
        return cls(
            pipeline=pipeline,
            pool=ExpertPool.load(folder, "both", torch.float32, torch.device("cpu")),
            work=work,
            flow_shift=defaults.flow_shift,
            boundary_ratio=defaults.boundary_ratio,
            positive=positive,
            negative=negative,
            lengths=(len(tokens[0]), len(tokens[1])),
        )

    def theirs(self, shape: VideoShape) -> torch.Tensor:
        """Latents of diffusers' loop, [1, C, T, H, W]."""
        return self.pipeline(
            prompt_embeds=self.positive,
            negative_prompt_embeds=self.negative,
            width=shape.width,
            height=shape.height,
            num_frames=shape.frames,
            num_inference_steps=STEPS,
            guidance_scale=self.work.guidance_scale_high,
            guidance_scale_2=self.work.guidance_scale_low,
            generator=torch.Generator("cpu").manual_seed(self.work.seed),
            output_type="latent",
        ).frames

    def ours(self, shape: VideoShape) -> torch.Tensor:
        """Latents of the suite's loop, [1, C, T, H, W]."""
        latents = shape.latents(self.pool.first.channels)
        velocity = GuidedVelocity(
            experts=self.pool.experts,
            conditioning=Conditioning(
                positive=self.positive[0, : self.lengths[0]], negative=self.negative[0, : self.lengths[1]]
            ),
            text_length=self.work.text_length,
            guidance=Guidance(high=self.work.guidance_scale_high, low=self.work.guidance_scale_low),
            boundary_ratio=self.boundary_ratio,
            shape=latents,
            batched=True,
        )
        schedule = make_schedule(Solver.UNIPC, SigmaRule.DIFFUSERS, STEPS, self.flow_shift)
        state = SolverState.start(prior(latents, self.work.seed))
        for step in denoise(velocity, schedule, solver_step(Solver.UNIPC), state, STEPS):
            state = step.state
        return state.x


def _case(loop: Callable[[VideoShape], torch.Tensor], shape: VideoShape) -> Callable[[], Awaitable[None]]:
    async def case() -> None:
        loop(shape)

    return case


async def measure(repeats: int = 7) -> Report:
    """The ratio of the loops at three sizes, and how far apart their latents are."""
    contest = Contest.load()
    figures: list[Figure] = []
    samples: dict[str, list[float]] = {}
    for shape in SHAPES:
        size = f"{shape.width}x{shape.height}x{shape.frames}"
        theirs, ours = contest.theirs(shape), contest.ours(shape)
        apart = float((theirs - ours).norm() / theirs.norm())
        names = {"theirs": f"diffusers {size}", "ours": f"rushes {size}"}
        cases = {names["theirs"]: _case(contest.theirs, shape), names["ours"]: _case(contest.ours, shape)}
        measured = await interleave(cases, repeats)
        samples |= measured
        figures.append(
            at_most(
                f"seconds a step against diffusers' loop, {size}",
                ratio(measured, names["ours"], names["theirs"]),
                0.9,
                note=f"latents {apart:.1e} apart",
            )
        )
    return Report(
        title=f"Denoising loop: {STEPS} UniPC steps with guidance, two experts, float32",
        figures=tuple(figures),
        samples=samples,
    )
