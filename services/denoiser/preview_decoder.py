"""Previews through a decoder: a tiny one that the manifest names, or the model's own where that is cheap."""

import time
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from diffusers import AutoencoderKLWan

from services.chassis.errors import FailedPrecondition
from services.denoiser.pool import ExpertPool
from services.denoiser.previews import Developer, LatentProjection, Source, window
from services.denoiser.sampler import prior
from services.denoiser.shapes import TEMPORAL_STRIDE, VideoShape
from services.model.folder import ModelFolder
from services.model.weights import load_module

Mode: TypeAlias = Literal["auto", "projection", "tiny", "vae", "measure"]

CHEAP = 0.1
"""The share of a guided step's time up to which `measure` takes the model's own decoder."""
_MEASURED_FRAMES = 4
_SMALL = VideoShape(width=64, height=64, frames=5)


class DecodedPreviews:
    """A window of latents through an `AutoencoderKLWan`, tiny or whole."""

    def __init__(self, module: AutoencoderKLWan, source: Source) -> None:
        self.source: Source = source
        self._module = module
        device = next(module.parameters()).device
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(module.config.latents_mean, device=device).view(shape)
        self._std = torch.tensor(module.config.latents_std, device=device).view(shape)

    @torch.inference_mode()
    def __call__(self, x0: torch.Tensor, frames: int, turn: int) -> torch.Tensor:
        """See `Developer`: four frames a latent one, but for the first of the window."""
        latents = -(-(frames - 1) // TEMPORAL_STRIDE) + 1
        z = x0[:, :, window(x0.shape[2], latents, turn)].float() * self._std + self._mean
        video = self._module.decode(z.to(self._module.dtype), return_dict=False)[0][0, :, :frames]
        return video.permute(1, 2, 3, 0).float().add(1).mul(127.5).clamp(0, 255).to(torch.uint8).cpu()


def choose_developer(folder: ModelFolder, pool: ExpertPool, mode: Mode) -> Developer:
    """What makes the previews of this process.

    `auto` is the tiny decoder where the manifest names one, else the projection; `measure` also considers the model's
    own decoder, which is kept if a window costs at most a tenth of a guided step. Raises `ModelRefused` for a decoder
    that cannot be loaded, and `FailedPrecondition` for `tiny` where the manifest names none.
    """
    named = folder.manifest.preview_decoder
    if mode == "tiny" and named is None:
        raise FailedPrecondition("The manifest names no preview_decoder.", reason="PREVIEW_DECODER_MISSING")
    if named is not None and mode in ("auto", "measure", "tiny"):
        return DecodedPreviews(_load(folder, named, pool), "tiny")
    if mode == "vae" or (mode == "measure" and folder.has("vae")):
        whole = DecodedPreviews(_load(folder, "vae", pool), "vae")
        if mode == "vae" or _is_cheap(whole, pool):
            return whole
    return LatentProjection(pool.manifest.latent_rgb, pool.device)


def _load(folder: ModelFolder, name: str, pool: ExpertPool) -> AutoencoderKLWan:
    module = load_module(folder.component(name), AutoencoderKLWan, pool.dtype, pool.device)
    if int(module.config.z_dim) != pool.first.channels:
        raise FailedPrecondition(
            f"{name} decodes {module.config.z_dim} channels, not the experts' {pool.first.channels}.",
            reason="PREVIEW_DECODER_MISFIT",
        )
    return module


def _is_cheap(developer: Developer, pool: ExpertPool) -> bool:
    defaults, shape = pool.manifest.defaults, _SMALL
    if pool.device.type != "cpu":
        shape = VideoShape(width=defaults.width, height=defaults.height, frames=defaults.num_frames)
    latents = shape.latents(pool.first.channels)
    x, text = prior(latents, 0), torch.zeros(2, pool.manifest.text.max_length, pool.first.text_dim)
    context = pool.first.read(text, latents)
    placed = x.to(pool.device)
    step = min(_seconds(lambda: pool.first(x, 500.0, context), pool.device) for _ in range(2))
    try:
        preview = min(_seconds(lambda: developer(placed, _MEASURED_FRAMES, 0), pool.device) for _ in range(2))
    except torch.OutOfMemoryError:
        return False
    return preview <= CHEAP * step


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    began = time.monotonic()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began
