"""The upscaler: a compact SRVGG network that doubles the world's frames, trained on clean and on decoded ones.

``python -m models.tiny.train.upscaler --vae models/tiny/weights/vae --out DIR``.

The architecture and the names of its weights are Real-ESRGAN's ``SRVGGNetCompact``, with 35 k parameters.
"""

from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from models.tiny.train.loop import Trainer, arguments, averaged_weights, generators, warm_up_and_decay
from models.tiny.train.vae import decode, encode
from models.tiny.world.clip import Mixture, draw_clip
from models.tiny.world.render import render
from services.postprocess.export import export_network
from services.postprocess.srvgg import Srvgg

Pixels = npt.NDArray[np.uint8]

SCALE: Final = 2
FILE: Final = "srvgg_x2.safetensors"
_CANDIDATES: Final = 3
ONNX_FILE: Final = "srvgg_x2.onnx"
_FEATURES: Final = 24
_CONVOLUTIONS: Final = 6
_MIXTURE: Final = Mixture(two_objects=0.3, moving_camera=0.3)


def shrink(frames: Pixels) -> Pixels:
    """``[F, H, W, 3]`` at half the width and height, each pixel the mean of four."""
    size = (frames.shape[2] // SCALE, frames.shape[1] // SCALE)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]).astype(np.uint8)


def degrade(vae: AutoencoderKLWan, frames: Pixels, *, jitter: float, noise: torch.Generator) -> Pixels:
    """``frames`` through the VAE and back, its codes disturbed by normal noise of deviation ``jitter``."""
    signal = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float().div(127.5).sub(1.0)
    with torch.no_grad():
        codes = encode(vae, signal)
        decoded = decode(vae, codes + jitter * torch.randn(codes.shape, generator=noise))
    pixels = decoded[0].add(1.0).mul(127.5).round().clamp(0.0, 255.0).to(torch.uint8)
    return np.asarray(pixels.permute(1, 2, 3, 0).numpy())


def draw_frames(numbers: np.random.Generator, *, size: int, held_out: bool = False) -> Pixels:
    """The 17 frames of a random clip, ``size`` pixels square."""
    clip = draw_clip(numbers, _MIXTURE, held_out=held_out)
    painted = render(clip, width=size, height=size, num_frames=17)
    return np.asarray(np.round(painted * 255.0), np.uint8)


class UpscalerTask:
    """Patches of clips that were rendered once, at the start, from the seed; every second clip passed the VAE."""

    def __init__(
        self,
        vae: AutoencoderKLWan,
        *,
        size: int,
        clips: int,
        patch: int,
        steps: int,
        batch: int,
        lr: float,
        decay: float,
        seed: int,
        device: str,
    ) -> None:
        torch.manual_seed(seed)
        self.patch, self.steps, self.batch = patch, steps, batch
        self.lr, self.decay, self.seed, self.device = lr, decay, seed, device
        self.upscaler = Srvgg(features=_FEATURES, convolutions=_CONVOLUTIONS, scale=SCALE).to(device)
        self.modules: dict[str, nn.Module] = {"upscaler": self.upscaler}
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.upscaler.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.pairs: list[tuple[Pixels, Pixels]] = []
        for index in range(clips):
            numbers, noise = generators(seed + 1, index)
            high = draw_frames(numbers, size=size * SCALE)
            low = shrink(high)
            if index % 2:
                low = degrade(vae, low, jitter=0.1 * float(numbers.random()), noise=noise)
            self.pairs.append((low, high))
        begin_linear(self.upscaler, self.pairs[::2])

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, decay."""
        return warm_up_and_decay(step, peak=self.lr, warm_up=20, total=self.steps, decay=self.decay)

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The mean logarithm of the patches' squared errors: decoded patches, which err most, drown no others."""
        numbers, _ = generators(self.seed, step)
        small, large = [], []
        for _ in range(self.batch):
            low, high = self.pairs[int(numbers.integers(len(self.pairs)))]
            frame = int(numbers.integers(len(low)))
            places = [numbers.integers(low.shape[1] - self.patch + 1, size=2) for _ in range(_CANDIDATES)]
            top, left = max(
                ((int(down), int(across)) for down, across in places),
                key=lambda place: float(low[frame][place[0] :, place[1] :][: self.patch, : self.patch].std()),
            )
            bottom, right = top + self.patch, left + self.patch
            small.append(low[frame, top:bottom, left:right])
            large.append(high[frame, SCALE * top : SCALE * bottom, SCALE * left : SCALE * right])
        given, wanted = (_to_unit(np.stack(patches)).to(self.device) for patches in (small, large))
        squared = (self.upscaler(given) - wanted).square().mean(dim=(1, 2, 3))
        loss = torch.log(squared + 1e-6).mean()
        return loss, {"psnr": float(-10.0 * torch.log10(squared.detach()).mean())}


def begin_linear(upscaler: Srvgg, pairs: list[tuple[Pixels, Pixels]]) -> None:
    """Starts from the best linear kernel of 3x3 pixels: three channels carry the colours, the last layer has it.

    A network that starts at random takes most of a short training to find out what interpolation is.
    """
    rows, answers = [], []
    for low, high in pairs:
        given, wanted = _to_unit(low[::4]), _to_unit(high[::4])
        missing = functional.pixel_unshuffle(wanted, SCALE).unflatten(1, (3, SCALE**2)) - given[:, :, None]
        rows.append(functional.unfold(given.flatten(0, 1)[:, None], 3).movedim(1, -1).flatten(0, 1))
        answers.append(missing[..., 1:-1, 1:-1].flatten(0, 1).flatten(2).movedim(1, -1).flatten(0, 1))
    kernel = torch.linalg.lstsq(torch.cat(rows)[::7], torch.cat(answers)[::7]).solution
    *carriers, last = (layer for layer in upscaler.body if isinstance(layer, nn.Conv2d))
    with torch.no_grad():
        for layer in carriers:
            layer.weight[:3], layer.bias[:3] = 0.0, 0.0
            for colour in range(3):
                layer.weight[colour, colour, 1, 1] = 1.0
        last.weight.zero_()
        last.bias.zero_()
        for colour in range(3):
            last.weight[colour * SCALE**2 : (colour + 1) * SCALE**2, colour] = kernel.T.unflatten(1, (3, 3))


def _to_unit(pixels: Pixels) -> torch.Tensor:
    """``[F, H, W, 3]`` bytes to ``[F, 3, H, W]`` in 0..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255.0).contiguous()


def main() -> None:
    """Trains and writes the weights."""
    parser = arguments(__doc__ or "", steps=1400, batch=16, learning_rate=1e-3)
    parser.add_argument("--vae", type=Path, required=True, help="diffusers folder of the VAE that clips pass through")
    parser.add_argument("--size", type=int, default=96, help="edge of the small frames")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--patch", type=int, default=32, help="edge of a training patch of the small frames")
    options = parser.parse_args()
    task = UpscalerTask(
        AutoencoderKLWan.from_pretrained(options.vae).eval(),
        size=options.size,
        clips=options.clips,
        patch=options.patch,
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        decay=options.decay,
        seed=options.seed,
        device=options.device,
    )
    trainer = Trainer(task, options.out, total=options.steps, ema_decay=0.99)
    trainer.resume()
    trainer.run(steps=options.stop_after)
    average = averaged_weights(options.out, "upscaler")
    task.upscaler.load_state_dict(average)
    export_network(task.upscaler.cpu(), options.out / ONNX_FILE)
    save_file(average, options.out / FILE, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
