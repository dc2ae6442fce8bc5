"""The sampling loop of the embedded model over diffusers' parts, in batches: the evaluation's own, without services."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from models.tiny.train.text_encoder import encode

TIMESTEPS: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How clips are sampled; guidance 1 runs no negative pass."""

    width: int = 96
    height: int = 96
    num_frames: int = 17
    steps: int = 20
    guidance_high: float = 3.0
    guidance_low: float = 3.0
    boundary: float = 0.875
    flow_shift: float = 3.0
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """The loaded parts; ``high`` serves noise levels at and above the boundary, ``low`` those below."""

    tokenizer: PreTrainedTokenizerBase
    text_encoder: UMT5EncoderModel
    high: WanTransformer3DModel
    low: WanTransformer3DModel
    vae: AutoencoderKLWan

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Self:
        """Loads a diffusers-layout folder in float32."""
        return cls(
            tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
            text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
            .to(device)
            .eval(),
            high=WanTransformer3DModel.from_pretrained(folder / "transformer", dtype=torch.float32).to(device),
            low=WanTransformer3DModel.from_pretrained(folder / "transformer_2", dtype=torch.float32).to(device),
            vae=AutoencoderKLWan.from_pretrained(folder / "vae", dtype=torch.float32).to(device),
        )

    def latents(self, prompts: list[str], seeds: list[int], settings: Settings) -> torch.Tensor:
        """Denoised latents ``[len(prompts), 16, (num_frames-1)/4+1, height/8, width/8]``; one seed a clip."""
        return self.states(prompts, seeds, settings)[-1]

    @torch.inference_mode()
    def states(self, prompts: list[str], seeds: list[int], settings: Settings) -> list[torch.Tensor]:
        """The noise and what each step made of it: ``settings.steps + 1`` tensors of the latents' shape."""
        device = self.high.device
        sample = self.noise(seeds, settings)
        wanted = encode(self.text_encoder, self.tokenizer, prompts, device)
        unwanted = encode(self.text_encoder, self.tokenizer, [settings.negative_prompt], device).expand_as(wanted)
        states = [sample]
        scheduler = build_scheduler(settings.flow_shift)
        scheduler.set_timesteps(settings.steps, device=device)
        for timestep in scheduler.timesteps:
            noisy = bool(timestep >= settings.boundary * TIMESTEPS)
            model = self.high if noisy else self.low
            scale = settings.guidance_high if noisy else settings.guidance_low
            times = timestep.expand(len(prompts))
            velocity = model(sample, times, wanted, return_dict=False)[0]
            if scale > 1.0:
                away = model(sample, times, unwanted, return_dict=False)[0]
                velocity = away + scale * (velocity - away)
            sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
            states.append(sample)
        return states

    def noise(self, seeds: list[int], settings: Settings) -> torch.Tensor:
        """The latents that sampling begins with, each clip's from its own seed."""
        shape = (16, (settings.num_frames - 1) // 4 + 1, settings.height // 8, settings.width // 8)
        noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return noise.to(self.high.device)

    def frames(self, latents: torch.Tensor) -> torch.Tensor:
        """Frames ``[B, F, H, W, 3]`` in 0..1."""
        with torch.inference_mode():
            return self.vae.decode(latents, return_dict=False)[0].movedim(1, -1).add(1.0).div(2.0).cpu()


def build_scheduler(flow_shift: float) -> UniPCMultistepScheduler:
    """UniPC for flow matching, as Wan's diffusers folders configure it."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift, num_train_timesteps=TIMESTEPS
    )
