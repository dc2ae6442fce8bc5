"""Small pictures of the predicted clip: a moving window of latents to RGB, encoded as WebP or JPEG."""

import io
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from PIL import Image

from services.model.manifest import LatentRgb

Source: TypeAlias = Literal["projection", "tiny", "vae"]
"""A linear map, a tiny decoder of the manifest, the model's own decoder."""

DEFAULT_FRAMES = 4
"""Frames of a preview whose request leaves them to the server."""
_QUALITY = 80
_DEFAULT_EDGE = 256
_FRAME_MILLISECONDS = 150


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewRequest:
    """Which previews a caller wants. `max_edge` 0 leaves the size to `encode_picture`."""

    every_steps: int
    max_edge: int
    frames: int
    encoding: Literal["webp", "jpeg"]

    def due(self, index: int) -> bool:
        """Whether a preview is made after step `index`."""
        return self.every_steps > 0 and (index + 1) % self.every_steps == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An encoded preview; `frames` above 1 is an animated WebP. `source` is its `Developer`'s."""

    step_index: int
    encoding: Literal["webp", "jpeg"]
    width: int
    height: int
    frames: int
    data: bytes
    source: Source = "projection"


class Developer(Protocol):
    """Makes pixels of predicted latents."""

    source: Source

    def __call__(self, x0: torch.Tensor, frames: int, turn: int) -> torch.Tensor:
        """At most `frames` neighbouring frames of x0, [1, C, T, H, W]: [frames, H, W, 3] uint8 on the CPU.

        x0 are normalised latents; `turn` counts previews: with each the window moves on.
        """


class LatentProjection:
    """Normalised latents to RGB bytes through the model's linear map: one pixel a latent."""

    source: Source = "projection"

    def __init__(self, latent_rgb: LatentRgb, device: torch.device) -> None:
        self._factors = torch.tensor(latent_rgb.factors, dtype=torch.float32, device=device)
        self._bias = torch.tensor(latent_rgb.bias, dtype=torch.float32, device=device)

    def __call__(self, x0: torch.Tensor, frames: int, turn: int) -> torch.Tensor:
        """See `Developer`."""
        cells = x0[0, :, window(x0.shape[2], frames, turn)].permute(1, 2, 3, 0).float()
        rgb = torch.addmm(self._bias, cells.reshape(-1, cells.shape[-1]), self._factors)
        return rgb.add(1).mul(127.5).clamp(0, 255).to(torch.uint8).view(*cells.shape[:3], 3).cpu()


def window(available: int, wanted: int, turn: int) -> slice:
    """`wanted` neighbours of `available` latent frames, all of them within: from the middle on, at each turn further.

    A still stays in the middle of the clip.
    """
    count = max(1, min(available, wanted))
    places = available - count + 1
    first = available // 2 if count == 1 else (places // 2 + turn * count) % places
    return slice(first, first + count)


def encode_picture(
    pixels: torch.Tensor,
    *,
    step_index: int,
    encoding: Literal["webp", "jpeg"],
    clip_width: int,
    clip_height: int,
    max_edge: int,
    source: Source = "projection",
) -> Picture:
    """Encode [frames, H, W, 3] uint8, enlarged to the clip's proportions with a longest edge of at most `max_edge`.

    `max_edge` 0 is the clip's own size, at most 256 pixels. JPEG takes the first frame.
    """
    longest = min(max_edge or _DEFAULT_EDGE, max(clip_width, clip_height))
    scale = longest / max(clip_width, clip_height)
    size = (max(1, round(clip_width * scale)), max(1, round(clip_height * scale)))
    images = [Image.fromarray(frame.numpy()).resize(size, Image.Resampling.BICUBIC) for frame in pixels]
    if encoding == "jpeg":
        images = images[:1]
    buffer = io.BytesIO()
    if encoding == "webp" and len(images) > 1:
        images[0].save(
            buffer,
            "WEBP",
            quality=_QUALITY,
            method=0,
            save_all=True,
            append_images=images[1:],
            duration=_FRAME_MILLISECONDS,
            loop=0,
        )
    else:
        options = {"method": 0} if encoding == "webp" else {}
        images[0].save(buffer, encoding.upper(), quality=_QUALITY, **options)
    return Picture(
        step_index=step_index,
        encoding=encoding,
        width=size[0],
        height=size[1],
        frames=len(images),
        data=buffer.getvalue(),
        source=source,
    )
