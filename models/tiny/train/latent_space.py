"""The latent space: principal components of 4x8x8 blocks of pixels, fixed before any network is trained.

The experts learn on these exact codes while the VAE is distilled onto them (``vae.py``).
``python -m models.tiny.train.latent_space --out DIR``.
"""

import argparse
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from models.tiny.world.clip import Mixture, draw_clip
from models.tiny.world.render import render

CHANNELS: Final = 16
STRIDE_TIME: Final = 4
STRIDE_SPACE: Final = 8


class LatentSpace:
    """A linear codec between frames in -1..1 ``[B, 3, 4k+1, H, W]`` and latents ``[B, 16, k+1, H/8, W/8]``."""

    def __init__(self, mean: torch.Tensor, analysis: torch.Tensor, synthesis: torch.Tensor) -> None:
        self.mean = mean
        self.analysis = analysis
        self.synthesis = synthesis

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads ``latent_space.safetensors``."""
        state = load_file(path)
        return cls(state["mean"], state["analysis"], state["synthesis"])

    def save(self, path: Path) -> None:
        """Writes ``latent_space.safetensors``."""
        save_file({"mean": self.mean, "analysis": self.analysis, "synthesis": self.synthesis}, path)

    def to(self, device: str) -> "LatentSpace":
        """The same codec on another device."""
        return LatentSpace(self.mean.to(device), self.analysis.to(device), self.synthesis.to(device))

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """Latents of ``frames``."""
        latents = (_blocks(frames) - self.mean) @ self.analysis
        return latents.movedim(-1, 1).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Frames of ``latents``: what a linear decoder can do, and the yardstick for the VAE."""
        blocks = latents.movedim(1, -1) @ self.synthesis + self.mean
        batch, time, high, wide, _ = blocks.shape
        frames = blocks.view(batch, time, high, wide, 3, STRIDE_TIME, STRIDE_SPACE, STRIDE_SPACE)
        frames = frames.permute(0, 4, 1, 5, 2, 6, 3, 7)
        frames = frames.reshape(batch, 3, time * STRIDE_TIME, high * STRIDE_SPACE, wide * STRIDE_SPACE)
        return frames[:, :, STRIDE_TIME - 1 :]


def _blocks(frames: torch.Tensor) -> torch.Tensor:
    """``[B, T, h, w, 3*4*8*8]``; the first frame stands for a whole block of four, as in Wan's causal VAE."""
    frames = torch.cat([frames[:, :, :1].expand(-1, -1, STRIDE_TIME - 1, -1, -1), frames], dim=2)
    batch, _, time, height, width = frames.shape
    blocks = frames.reshape(
        batch,
        3,
        time // STRIDE_TIME,
        STRIDE_TIME,
        height // STRIDE_SPACE,
        STRIDE_SPACE,
        width // STRIDE_SPACE,
        STRIDE_SPACE,
    )
    return blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def fit(*, clips: int, size: int, seed: int = 0) -> LatentSpace:
    """Fits the codec on random clips of ``size`` pixels; latents get unit mean square and flattened spectra."""
    numbers = np.random.default_rng([seed, 77])
    total, outer, count = torch.zeros(768, dtype=torch.float64), torch.zeros(768, 768, dtype=torch.float64), 0
    for _ in range(clips):
        clip = draw_clip(numbers, Mixture(two_objects=0.3, moving_camera=0.3))
        blocks = _blocks(to_signal(render(clip, width=size, height=size, num_frames=17))[None]).flatten(0, 3).double()
        total += blocks.sum(0)
        outer += blocks.T @ blocks
        count += blocks.shape[0]
    mean = total / count
    variances, directions = torch.linalg.eigh(outer / count - mean[:, None] * mean)
    deviation = variances[-CHANNELS:].flip(0).clamp_min(1e-12).sqrt()
    directions = directions[:, -CHANNELS:].flip(1)
    # Dividing by std^0.5 leaves the strong components stronger, but not so much that noise hides the weak ones.
    scale = deviation**-0.5
    scale = scale / (deviation * scale).square().mean().sqrt()
    return LatentSpace(
        mean.float(), (directions * scale).float().contiguous(), (directions / scale).T.float().contiguous()
    )


def to_signal(frames: "np.typing.NDArray[np.float32]") -> torch.Tensor:
    """Frames ``[F, H, W, 3]`` in 0..1 to a tensor ``[3, F, H, W]`` in -1..1."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).mul(2.0).sub(1.0)


def main() -> None:
    """Fits and writes the latent space."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=600)
    parser.add_argument("--size", type=int, default=96)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    fit(clips=options.clips, size=options.size).save(options.out / "latent_space.safetensors")


if __name__ == "__main__":
    main()
