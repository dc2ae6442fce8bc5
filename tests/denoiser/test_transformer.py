"""The arranged forward pass against the module's own, and what it must not compute twice."""

import pytest
import torch

from services.denoiser.conditioning import Conditioning
from services.denoiser.experts import Expert
from services.denoiser.guidance import Guidance
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import VideoShape
from services.denoiser.transformer import Transformer
from services.denoiser.velocity import GuidedVelocity

LATENTS = VideoShape(width=80, height=48, frames=9).latents(16)
X = prior(LATENTS, 3)
TEXT = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def reference(transformer: Transformer, x: torch.Tensor, timestep: float, text: torch.Tensor) -> torch.Tensor:
    module = transformer.module
    outputs = [
        module(
            hidden_states=x.to(transformer.dtype),
            timestep=torch.tensor([timestep]),
            encoder_hidden_states=each.unsqueeze(0).to(transformer.dtype),
            return_dict=False,
        )[0]
        for each in text
    ]
    return torch.cat(outputs).float()


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return (torch.linalg.norm(ours - theirs) / torch.linalg.norm(theirs)).item()


@pytest.mark.parametrize("timestep", [999.0, 874.1325, 500.0, 0.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_velocity_is_the_modules_own(pool: ExpertPool, timestep: float, batch: int) -> None:
    transformer = pool.experts[Expert.HIGH]
    ours = transformer(X, timestep, transformer.read(TEXT[:batch], LATENTS))
    assert ours.dtype == torch.float32
    assert relative(ours, reference(transformer, X, timestep, TEXT[:batch])) < 2e-6


def test_a_bfloat16_expert_is_near_its_float32_self(pool: ExpertPool) -> None:
    module = pool.experts[Expert.HIGH].module
    halved = Transformer(type(module).from_config(module.config).to(torch.bfloat16).eval())
    halved.module.load_state_dict({name: tensor.bfloat16() for name, tensor in module.state_dict().items()})
    exact = Transformer(type(module).from_config(module.config).eval())
    exact.module.load_state_dict({name: tensor.float() for name, tensor in halved.module.state_dict().items()})
    halved, exact = Transformer(halved.module), Transformer(exact.module)
    wanted = exact(X, 900.0, exact.read(TEXT, LATENTS))
    got = halved(X, 900.0, halved.read(TEXT, LATENTS))
    assert relative(got, wanted) < 0.03
    # The module's own bfloat16 forward also rounds its modulation.
    assert relative(got, wanted) <= relative(reference(halved, X, 900.0, TEXT), wanted) * 1.1


def velocity(pool: ExpertPool, *, batched: bool, high: float = 4.0, low: float = 3.0) -> GuidedVelocity:
    return GuidedVelocity(
        experts=pool.experts,
        conditioning=Conditioning(positive=TEXT[0, :5], negative=TEXT[1, :2]),
        text_length=16,
        guidance=Guidance(high=high, low=low),
        boundary_ratio=0.875,
        shape=LATENTS,
        batched=batched,
    )


@pytest.mark.parametrize("timestep", [990.0, 400.0])
def test_batched_guidance_equals_two_passes(pool: ExpertPool, timestep: float) -> None:
    together, apart = velocity(pool, batched=True), velocity(pool, batched=False)
    assert relative(together(X, timestep), apart(X, timestep)) < 1e-5


def test_each_expert_guides_with_its_own_scale_over_zero_padded_text(pool: ExpertPool) -> None:
    guided = velocity(pool, batched=True)
    text = TEXT.clone()
    text[0, 5:] = 0
    text[1, 2:] = 0
    for timestep, expert, w in ((875.0, Expert.HIGH, 4.0), (874.0, Expert.LOW, 3.0)):
        positive, negative = reference(pool.experts[expert], X, timestep, text)
        assert relative(guided(X, timestep)[0], negative + w * (positive - negative)) < 1e-5


def test_scale_one_does_not_evaluate_the_negative_prompt(pool: ExpertPool) -> None:
    transformer = pool.experts[Expert.HIGH]
    batches: list[int] = []
    hook = transformer.module.proj_out.register_forward_hook(lambda _m, inputs, _o: batches.append(len(inputs[0])))
    with hook:
        velocity(pool, batched=True, high=1.0)(X, 990.0)
        velocity(pool, batched=True, high=4.0)(X, 990.0)
    assert batches == [1, 2]


def test_keys_and_values_of_the_text_are_computed_once_a_run_and_expert(pool: ExpertPool) -> None:
    calls: list[str] = []
    hooks = [
        transformer.module.blocks[0].attn2.to_k.register_forward_hook(
            lambda _m, _i, _o, name=expert: calls.append(name)
        )
        for expert, transformer in pool.experts.items()
    ]
    guided = velocity(pool, batched=True)
    for timestep in (999.0, 950.0, 900.0, 800.0, 700.0, 20.0):
        guided(X, timestep)
    for hook in hooks:
        hook.remove()
    assert calls == [Expert.HIGH, Expert.LOW]


def test_what_precedes_the_text_is_computed_once_for_both_prompts(pool: ExpertPool) -> None:
    batches: list[int] = []
    blocks = pool.experts[Expert.HIGH].module.blocks
    hooks = [block.attn1.to_q.register_forward_hook(lambda _m, i, _o: batches.append(len(i[0]))) for block in blocks]
    velocity(pool, batched=True)(X, 999.0)
    for hook in hooks:
        hook.remove()
    assert batches == [1, 2]
