"""Sampling in four Euler steps without guidance, by the experts with their distilled adapter: the ``draft`` preset."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from models.tiny.sampler import TIMESTEPS, Sampler, Settings
from models.tiny.train.text_encoder import encode

FEW_STEPS: Final = 4
FEW_STEP_SHIFT: Final = 5.0
FIRST_LOW_STEP: Final = 2

Pairs: TypeAlias = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""An expert's adapter: down ``[rank, in]`` and up ``[out, rank]`` by layer."""


def few_step_levels() -> tuple[float, ...]:
    """The noise levels between the steps, Wan's rule at shift 5: 1, 0.9375, 0.8333, 0.625, 0."""
    even = [1.0 - step / FEW_STEPS for step in range(FEW_STEPS + 1)]
    return tuple(FEW_STEP_SHIFT * level / (1.0 + (FEW_STEP_SHIFT - 1.0) * level) for level in even)


def few_step(expert: WanTransformer3DModel, sample: torch.Tensor, step: int, text: torch.Tensor) -> torch.Tensor:
    """``sample`` after ``step`` (0 to 3)."""
    levels = few_step_levels()
    times = torch.full((len(sample),), float(int(levels[step] * TIMESTEPS)), device=sample.device)
    return sample + (levels[step + 1] - levels[step]) * expert(sample, times, text, return_dict=False)[0]


def merge(expert: WanTransformer3DModel, adapter: Pairs) -> None:
    """Adds an adapter to the weights of ``expert``."""
    with torch.no_grad():
        for layer, (down, up) in adapter.items():
            weight = expert.get_submodule(layer).weight
            weight += (up.float() @ down.float()).to(weight)


def read_pairs(path: Path) -> Pairs:
    """The pairs of a published file."""
    state = load_file(path)
    layers = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    return {
        layer.removeprefix("transformer."): (state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"])
        for layer in layers
    }


def few_step_settings(settings: Settings) -> Settings:
    """``settings`` as the few steps take them."""
    return replace(settings, steps=FEW_STEPS, guidance_high=1.0, guidance_low=1.0, flow_shift=FEW_STEP_SHIFT)


@dataclass(frozen=True, kw_only=True, slots=True)
class FewStepSampler(Sampler):
    """The same parts, sampled in four steps whatever the settings say of steps and guidance."""

    @torch.inference_mode()
    def states(self, prompts: list[str], seeds: list[int], settings: Settings) -> list[torch.Tensor]:
        """The noise and what each of the four steps made of it."""
        text = encode(self.text_encoder, self.tokenizer, prompts, self.high.device)
        states = [self.noise(seeds, settings)]
        for step in range(FEW_STEPS):
            states.append(few_step(self.high if step < FIRST_LOW_STEP else self.low, states[-1], step, text))
        return states


def load_few_step_sampler(folder: Path, device: str = "cpu") -> FewStepSampler:
    """Loads a published folder with its distilled adapter merged into both experts."""
    parts = Sampler.load(folder, device)
    adapters = json.loads((folder / "rushes.json").read_text())["adapters"]
    distilled = next(entry for entry in adapters if entry.get("distilled_steps") == FEW_STEPS)
    merge(parts.high, read_pairs(folder / distilled["high"]))
    merge(parts.low, read_pairs(folder / distilled["low"]))
    return FewStepSampler(
        tokenizer=parts.tokenizer,
        text_encoder=parts.text_encoder,
        high=parts.high,
        low=parts.low,
        vae=parts.vae,
    )
