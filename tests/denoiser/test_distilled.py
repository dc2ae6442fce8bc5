"""The few-step mode of a distilled pair: by its preset from the manifest, on both experts, as merged weights do it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rushes.v1 import denoiser_pb2, sampling_pb2
from services.chassis.bundles import pack
from services.denoiser.experts import Expert
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import VideoShape
from services.model.bundles import to_bundle
from tests.denoiser.adapter_files import ALPHA, RANK, changed, everything, low_rank, original_layout
from tests.denoiser.caller import Caller, Outcome
from tests.denoiser.conftest import Serve

SHAPE = VideoShape(width=64, height=64, frames=9)
PROMPT = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
# Without guidance no negative prompt is needed.
TEXT = pack(to_bundle({"prompt": PROMPT}, {}))
SIGMAS = (1.0, 15 / 16, 5 / 6, 5 / 8, 0.0)


@pytest.fixture
def distilled(untrained: Path, pool: ExpertPool, tmp_path: Path) -> Path:
    """The untrained model with a pair in the published files' layout: one that changes everything, and a plain one."""
    folder = Path(shutil.copytree(untrained, tmp_path / "model"))
    manifest = json.loads((folder / "rushes.json").read_text())
    states = {"high": everything(pool.experts[Expert.HIGH])[0], "low": original_layout(3)}
    for expert, state in states.items():
        save_file(state, folder / f"{expert}.safetensors")
        content = (folder / f"{expert}.safetensors").read_bytes()
        manifest["files"][f"{expert}.safetensors"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
        }
    pair = {expert: f"{expert}.safetensors" for expert in states}
    manifest["adapters"] = [{"id": "lightning", "distilled_steps": 4, **pair}]
    (folder / "rushes.json").write_text(json.dumps(manifest))
    return folder


async def draft(caller: Caller, state: bytes = b"", first_step: int = 0) -> Outcome:
    """A run with what the preset says, and nothing else."""
    preset = next(each for each in (await caller.describe()).presets if each.name == "draft")
    return await caller.denoise(
        text=TEXT,
        state=state,
        first_step=first_step,
        sampling={field.name: value for field, value in preset.sampling.ListFields()},
        adapters=[denoiser_pb2.AdapterUse(id=use.id) for use in preset.adapters],
    )


def expected(pool: ExpertPool) -> torch.Tensor:
    """Euler over the four levels of the published schedule, by the module's own forward on merged weights."""
    _, high = everything(pool.experts[Expert.HIGH])
    low = {f"{layer}.weight": (ALPHA / RANK) * (up @ down) for layer, (down, up) in low_rank(3).items()}
    modules = {
        Expert.HIGH: changed(pool.experts[Expert.HIGH], high).module,
        Expert.LOW: changed(pool.experts[Expert.LOW], low).module,
    }
    text = torch.nn.functional.pad(PROMPT, (0, 0, 0, 16 - PROMPT.shape[0])).unsqueeze(0)
    x = prior(SHAPE.latents(16), 7)
    for step, timestep in enumerate((1000.0, 937.0, 833.0, 625.0)):
        expert = Expert.HIGH if step < 2 else Expert.LOW
        with torch.no_grad():
            (v,) = modules[expert](x, torch.tensor([timestep]), text, return_dict=False)
        x = x + (SIGMAS[step + 1] - SIGMAS[step]) * v
    return x[0]


async def test_the_draft_of_a_distilled_pair_is_four_euler_steps_without_guidance_two_on_each_expert(
    serve: Serve, distilled: Path, pool: ExpertPool
) -> None:
    async with serve(model=distilled) as caller:
        made = await draft(caller)
    assert made.accepted is not None
    assert made.accepted.sampling.solver == sampling_pb2.SOLVER_EULER
    assert made.accepted.sampling.guidance_scale_high == made.accepted.sampling.guidance_scale_low == 1
    assert list(made.accepted.timesteps) == [1000, 937, 833, 625]
    assert list(made.accepted.sigmas) == pytest.approx(SIGMAS, abs=1e-6)
    assert made.accepted.boundary_step == 2
    experts = [sampling_pb2.EXPERT_HIGH_NOISE] * 2 + [sampling_pb2.EXPERT_LOW_NOISE] * 2
    assert [step.expert for step in made.steps] == experts
    wanted = expected(pool)
    assert torch.linalg.norm(made.latents - wanted) <= 1e-4 * torch.linalg.norm(wanted)


async def test_a_distilled_run_is_handed_over_between_pools_bit_for_bit(serve: Serve, distilled: Path) -> None:
    async with serve(model=distilled) as both, serve(model=distilled, experts="high") as high:
        whole, first = await draft(both), await draft(high)
        assert first.result is not None
        assert first.result.next_step == 2
        async with serve(model=distilled, experts="low") as low:
            rest = await draft(low, first.state, 2)
    assert rest.bundles[-1].payload == whole.bundles[-1].payload
