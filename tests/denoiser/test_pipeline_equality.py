"""The whole loop against diffusers' own pipeline: same weights, same seed, same latents."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline

from services.denoiser.pool import ExpertPool
from services.model.folder import ModelFolder
from tests.denoiser.caller import conditioning
from tests.denoiser.conftest import Serve

PROMPT = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
NEGATIVE = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(2))
SIZE = {"width": 64, "height": 48, "num_frames": 9}
SCHEDULERS: dict[str, Any] = {
    "SOLVER_UNIPC": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "SOLVER_EULER": FlowMatchEulerDiscreteScheduler(shift=3.0),
}


def pipeline_latents(folder: Path, solver: str, high: float, low: float | None) -> torch.Tensor:
    pipeline = WanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[solver]

    def padded(embedding: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(embedding, (0, 0, 0, 16 - embedding.shape[1]))

    output = pipeline(
        prompt_embeds=padded(PROMPT),
        negative_prompt_embeds=padded(NEGATIVE),
        **SIZE,
        num_inference_steps=10,
        guidance_scale=high,
        guidance_scale_2=low,
        generator=torch.Generator("cpu").manual_seed(11),
        output_type="latent",
    )
    latents: torch.Tensor = output.frames[0]
    return latents


@pytest.mark.filterwarnings("ignore")  # The pipeline warns of what this test does not use.
@pytest.mark.parametrize("solver", SCHEDULERS)
@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize("guided", [True, False])
async def test_latents_equal_the_pipelines(  # noqa: PLR0917  (fixtures and parameters)
    serve: Serve, untrained: Path, one_expert: Path, solver: str, experts: int, guided: bool
) -> None:
    folder = untrained if experts == 2 else one_expert
    high, low = (4.0, 3.0) if guided else (1.0, 1.0)
    expected = pipeline_latents(folder, solver, high, low if experts == 2 else None)
    text = conditioning(prompt=PROMPT[0], negative_prompt=NEGATIVE[0])
    sampling = {
        "steps": 10,
        "solver": solver,
        "sigma_rule": "SIGMA_RULE_DIFFUSERS",
        "flow_shift": 3.0,
        "guidance_scale_high": high,
        "guidance_scale_low": low,
    }
    async with serve(model=folder) as caller:
        outcome = await caller.denoise(text=text, shape=SIZE, sampling=sampling, seed=11)
    assert outcome.latents.shape == expected.shape
    assert torch.linalg.norm(outcome.latents - expected) <= 1e-4 * torch.linalg.norm(expected)
    experts_seen = {step.expert for step in outcome.steps}
    assert len(experts_seen) == experts


def test_a_model_of_one_transformer_has_no_boundary(one_expert: Path) -> None:
    pool = ExpertPool.load(ModelFolder(one_expert), "both", torch.float32, torch.device("cpu"))
    assert not pool.has_boundary
    assert len(pool.experts) == 1
