"""The experts: flow matching on exact latent codes of fresh renders.

A base model learns all timesteps; then each expert starts from it and finishes on its own side of the boundary:
``python -m models.tiny.train.experts --part base|high|low --text DIR --latent-space FILE --out DIR``.
"""

from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from models.tiny.train.latent_space import LatentSpace, to_signal
from models.tiny.train.loop import (
    Trainer,
    arguments,
    averaged_weights,
    generators,
    multiplies_in_bfloat16,
    warm_up_and_decay,
)
from models.tiny.train.text_encoder import WIDTH, encode
from models.tiny.world.caption import draw_caption
from models.tiny.world.clip import Clip, Mixture, draw_clip, draw_sibling
from models.tiny.world.render import render
from models.tiny.world.vocabulary import LANGUAGES

BOUNDARY: Final = 0.875
FLOW_SHIFT: Final = 3.0
_TIMESTEPS: Final = 1000
_DROPOUT: Final = 0.1
_PARTIAL: Final = 0.1
_SIDES: Final = {"base": (0.0, 1.0), "high": (BOUNDARY, 1.0), "low": (0.0, BOUNDARY)}


def build_expert() -> WanTransformer3DModel:
    """An untrained expert of 3.94 M parameters whose first output is zero."""
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=128,
        ffn_dim=768,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=128,
    )
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model


def unshift(sigma: float) -> float:
    """The u whose shifted value is ``sigma``; inverse of shift * u / (1 + (shift - 1) * u)."""
    return sigma / (FLOW_SHIFT - (FLOW_SHIFT - 1.0) * sigma)


class ExpertTask:
    """Predicts the velocity (noise - x0) at noise levels of one side of the boundary, or of both."""

    def __init__(
        self,
        *,
        part: str,
        lowest_sigma: float = 0.0,
        siblings: bool = False,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: UMT5EncoderModel,
        latent_space: LatentSpace,
        mixture: Mixture,
        size: int,
        frames: int,
        steps: int,
        batch: int,
        lr: float,
        warm_up: int,
        decay: float,
        seed: int,
        device: str,
    ) -> None:
        if siblings and batch % 2:
            raise ValueError("batch: must be even, half of it are siblings")
        if not 0.0 <= lowest_sigma < _SIDES[part][1]:
            raise ValueError(f"lowest_sigma: must be below {_SIDES[part][1]}, and not negative")
        torch.manual_seed(seed)
        self.lowest, self.highest = (unshift(max(sigma, lowest_sigma)) for sigma in _SIDES[part])
        self.tokenizer, self.text_encoder = (
            tokenizer,
            text_encoder.to(device).eval().requires_grad_(requires_grad=False),
        )
        self.latent_space = latent_space.to(device)
        self.mixture, self.size, self.frames = mixture, size, frames
        self.steps, self.batch, self.lr, self.warm_up, self.decay = steps, batch, lr, warm_up, decay
        self.family = 2 if siblings else 1
        self.seed, self.device = seed, device
        self.model = build_expert().to(device)
        self.modules: dict[str, torch.nn.Module] = {"model": self.model}
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, decay."""
        return warm_up_and_decay(step, peak=self.lr, warm_up=self.warm_up, total=self.steps, decay=self.decay)

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean squared error of the velocity over fresh clips, noise levels stratified within the batch."""
        numbers, noise_generator = generators(self.seed, step)
        clips, texts = self._draw(numbers, step)
        families = self.batch // self.family
        strata = (torch.arange(families) + torch.rand(families, generator=noise_generator)) / families
        u = (self.lowest + (self.highest - self.lowest) * strata).repeat_interleave(self.family)
        sigma = (FLOW_SHIFT * u / (1.0 + (FLOW_SHIFT - 1.0) * u)).to(self.device)
        with torch.no_grad():
            signals = [
                to_signal(render(clip, width=self.size, height=self.size, num_frames=self.frames)) for clip in clips
            ]
            clean = self.latent_space.encode(torch.stack(signals).to(self.device))
            prompts = encode(self.text_encoder, self.tokenizer, texts, self.device)
        noise = torch.randn((families, *clean.shape[1:]), generator=noise_generator).to(self.device)
        noise = noise.repeat_interleave(self.family, 0)
        level = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1.0 - level) * clean + level * noise
        short = multiplies_in_bfloat16(self.device)
        # On CPUs flash attention's backward pass in bfloat16 is slower than plain matrix products.
        plain = short and self.device == "cpu"
        backend = SDPBackend.MATH if plain else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=short), sdpa_kernel(backend):
            velocity = self.model(noisy, sigma * _TIMESTEPS, prompts, return_dict=False)[0]
        loss = (velocity.float() - (noise - clean)).square().mean()
        return loss, {}

    def _draw(self, numbers: np.random.Generator, step: int) -> tuple[list[Clip], list[str]]:
        """Clips and their captions. Siblings follow each other, and their captions are worded alike."""
        clips: list[Clip] = []
        texts: list[str] = []
        for index in range(self.batch // self.family):
            clip, words = draw_clip(numbers, self.mixture), numbers
            family = [clip]
            if self.family > 1:
                family.append(draw_sibling(numbers, clip))
                words = np.random.default_rng(numbers.integers(2**62))
            wording = words.bit_generator.state
            for relative in family:
                words.bit_generator.state = wording
                caption = draw_caption(words, relative, LANGUAGES[(step + index) % 3], partial=_PARTIAL)
                texts.append("" if words.random() < _DROPOUT else caption.text)
                clips.append(relative)
        return clips, texts


def main() -> None:
    """Trains one expert (or the base) and leaves its averaged weights in the checkpoint."""
    parser = arguments(__doc__ or "", steps=12000, batch=8, learning_rate=1e-3)
    parser.add_argument("--part", choices=sorted(_SIDES), default="base")
    parser.add_argument("--text", type=Path, required=True, help="folder with tokenizer/ and text_encoder/")
    parser.add_argument("--latent-space", type=Path, required=True)
    parser.add_argument("--init", type=Path, default=None, help="folder of an earlier run to start from")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--two-objects", type=float, default=0.0, help="share of clips with two objects")
    parser.add_argument("--moving-camera", type=float, default=0.0, help="share of clips with a moving camera")
    parser.add_argument("--lowest-sigma", type=float, default=0.0, help="leave out the noise levels below this one")
    parser.add_argument(
        "--siblings", action="store_true", help="half as many clips, each beside one that differs a little"
    )
    parser.add_argument("--warm-up", type=int, default=200)
    parser.add_argument("--ema", type=float, default=0.999)
    options = parser.parse_args()
    task = ExpertTask(
        part=options.part,
        lowest_sigma=options.lowest_sigma,
        siblings=options.siblings,
        tokenizer=AutoTokenizer.from_pretrained(options.text / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(options.text / "text_encoder", dtype=torch.float32),
        latent_space=LatentSpace.load(options.latent_space),
        mixture=Mixture(two_objects=options.two_objects, moving_camera=options.moving_camera),
        size=options.size,
        frames=options.frames,
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        warm_up=options.warm_up,
        decay=options.decay,
        seed=options.seed,
        device=options.device,
    )
    if options.init is not None:
        checkpoint = options.init / "checkpoint.safetensors"
        weights = (
            averaged_weights(options.init, "model")
            if checkpoint.exists()
            else load_file(options.init / "diffusion_pytorch_model.safetensors")
        )
        task.model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    trainer = Trainer(task, options.out, total=options.steps, ema_decay=options.ema)
    trainer.resume()
    trainer.run(steps=options.stop_after)


if __name__ == "__main__":
    main()
