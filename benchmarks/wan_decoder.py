"""Wan's decoder of full size, random weights, on one card: the streaming decode beside diffusers' own of a whole clip.

`python -m benchmarks wan_decoder` needs a GPU; `--small` is the same harness at a size for the CPU. Both ways end with
8-bit pictures in host memory. Peaks are the allocator's, without the weights.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from benchmarks.measurement import Figure, Report, at_most, card_or_small, place
from services.denoiser.shapes import VideoShape
from services.model.allocations import spent_by
from services.postprocess.decode import WanDecoder, decode_frames, to_pixels
from services.postprocess.tiling import FixedTiles


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """Width of the decoder, the clips that it decodes, and its longest edge of a tile."""

    base_dim: int
    shapes: tuple[VideoShape, ...]
    tile: int


FULL = Configuration(
    base_dim=96,
    shapes=(VideoShape(width=832, height=480, frames=81), VideoShape(width=1280, height=720, frames=81)),
    tile=512,
)
SMALL = Configuration(base_dim=8, shapes=(VideoShape(width=128, height=96, frames=17),), tile=64)


@dataclass(kw_only=True, slots=True)
class Bench:
    """One decoder, and what a clip costs by each way."""

    vae: AutoencoderKLWan
    device: torch.device
    figures: list[Figure] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    firsts: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    @classmethod
    def build(cls, size: Configuration, device: torch.device, dtype: torch.dtype) -> "Bench":
        """A decoder whose weights torch draws."""
        torch.manual_seed(0)
        with device:
            vae = AutoencoderKLWan(base_dim=size.base_dim)
        # Not `vae.to`, which warns of parts to keep in float32 where there are none.
        return cls(vae=nn.Module.to(vae, dtype).eval().requires_grad_(requires_grad=False), device=device)

    def stream(self, name: str, tile: int, latents: torch.Tensor) -> Callable[[], None]:
        """Latent frame by latent frame, as the service decodes."""
        decoder = WanDecoder(self.vae, FixedTiles(size=tile // 8))

        def decode() -> None:
            begun = time.perf_counter()
            for frames in decode_frames(decoder, latents):
                if frames.first == 0:
                    self.firsts[name] = time.perf_counter() - begun

        return decode

    def whole(self, latents: torch.Tensor) -> Callable[[], None]:
        """The clip at once, as diffusers' pipeline decodes."""

        @torch.no_grad()
        def decode() -> None:
            mean, std = (
                torch.tensor(values, device=self.device).view(1, -1, 1, 1, 1)
                for values in (self.vae.config.latents_mean, self.vae.config.latents_std)
            )
            z = (latents[None].to(self.device) * std + mean).to(self.vae.dtype)
            to_pixels(self.vae.decode(z, return_dict=False)[0][0].float(), 0)

        return decode

    def clip(self, shape: VideoShape, tile: int, repeats: int) -> None:
        """All ways on one size, in turn, after one round of warming up."""
        at = shape.latents(16)
        latents = torch.randn(at.batch[1:], generator=torch.Generator().manual_seed(1))
        tiled, plain, whole = (f"{name}, {shape}" for name in (f"streamed in tiles of {tile}", "streamed", "diffusers"))
        ways = {
            plain: self.stream(plain, 0, latents),
            tiled: self.stream(tiled, tile, latents),
            whole: self.whole(latents),
        }
        for name, way in ways.items():
            self.peaks[name] = self._peak(way)
        self.samples |= {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                self.samples[name].append(time.perf_counter() - begun)
        for name in ways:
            first = f"first picture after {self.firsts[name]:.2f} s" if name in self.firsts else ""
            peak = f"peak {self.peaks[name] / 2**30:.2f} GiB beside the weights" if self.device.type == "cuda" else ""
            note = "; ".join(part for part in (first, peak) if part)
            self.figures.append(Figure(name=name, value=statistics.median(self.samples[name]), unit="s", note=note))
        ratio = statistics.median(self.samples[plain]) / statistics.median(self.samples[whole])
        self.figures.append(at_most(f"streamed / diffusers, {shape}", ratio, 1.0))

    def _peak(self, way: Callable[[], None]) -> int:
        if self.device.type != "cuda":
            way()
            return 0
        return spent_by(way, self.device).peak


async def measure(repeats: int = 3, *, small: bool = False) -> Report:
    """Both sizes of Wan2.2, in bfloat16 on a card."""
    size = SMALL if small else FULL
    device = card_or_small("wan_decoder", small=small)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    bench = Bench.build(size, device, dtype)
    for shape in size.shapes:
        bench.clip(shape, size.tile, repeats)
    kind = "small configuration" if small else "full configuration"
    name = str(dtype).removeprefix("torch.")
    title = f"Wan's decoder, {kind}, random weights, {name}, {place(device)}"
    return Report(title=title, figures=tuple(bench.figures), samples=bench.samples)
