"""What the finishing stages are worth in decibels, on held-out clips of the embedded model's world."""

import asyncio
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from benchmarks.measurement import Figure, Report, at_least, at_most
from benchmarks.work import EMBEDDED_MODEL
from models.tiny.train.loop import generators
from models.tiny.train.upscaler import SCALE, degrade, draw_frames, shrink
from models.tiny.world.clip import Mixture, draw_clip
from models.tiny.world.render import render
from services.model.folder import ModelFolder
from services.postprocess.decode import WanDecoder
from services.postprocess.frames import Frames, Pixels
from services.postprocess.interpolate import Interpolator
from services.postprocess.tiling import FixedTiles
from services.postprocess.upscale import LanczosUpscaler, LoadedNetwork, NetworkUpscaler, load_upscalers

_SEED: Final = 99
_EDGE: Final = 192
_FRAMES: Final = 33


def psnr(pictures: Pixels, truth: Pixels) -> float:
    """Peak signal-to-noise ratio over all frames, in dB."""
    error = np.square(pictures.astype(np.float64) - truth).mean()
    return float(10 * np.log10(255**2 / error))


async def measure(repeats: int = 12) -> Report:
    """Gains of upscaler and interpolation, seams of tiles. `repeats` is the number of clips."""
    return await asyncio.to_thread(_measure, repeats)


def _measure(clips: int) -> Report:
    folder = ModelFolder(EMBEDDED_MODEL)
    vae = AutoencoderKLWan.from_pretrained(EMBEDDED_MODEL / "vae", torch_dtype=torch.float32).eval()
    upscalers = load_upscalers(folder, torch.device("cpu"), threads=None, runtime="torch", tile=512, margin=32)
    network = upscalers.networks[upscalers.preferred]
    rendered, decoded = _upscaler_gains(network, vae, clips)
    blended, interpolated = np.mean([_interpolation(index) for index in range(clips)], axis=0)
    return Report(
        title=f"Quality: {clips} held-out clips of the embedded model's world",
        figures=(
            at_least("upscaler, gain over Lanczos on rendered clips", rendered, 2.0, "dB"),
            Figure(
                name="the same on clips that passed the VAE, against the render they came from",
                value=decoded,
                unit="dB",
            ),
            at_least(
                "interpolation to twice the frame rate, gain over frame blending", interpolated - blended, 3.0, "dB"
            ),
            Figure(name="interpolated frames against the true ones", value=float(interpolated), unit="dB"),
            at_most("seams of the decoder's tiles, worst pixel", _decoder_seam(vae), 2.0, "levels"),
            at_most("seams of the upscaler's tiles, worst pixel", _upscaler_seam(network), 2.0, "levels"),
        ),
        samples={},
    )


def _upscaler_gains(network: LoadedNetwork, vae: AutoencoderKLWan, clips: int) -> tuple[float, float]:
    """Mean gain over Lanczos in dB on small clips as rendered, and on the same ones decoded from their own latents."""
    gains: tuple[list[float], list[float]] = ([], [])
    for index in range(clips):
        numbers, noise = generators(_SEED, index)
        truth = draw_frames(numbers, size=_EDGE, held_out=True)
        small = shrink(truth)
        for pixels, gain in zip((small, degrade(vae, small, jitter=0.0, noise=noise)), gains, strict=True):
            item = Frames(first=0, pixels=pixels)
            (ours,), (plain,) = NetworkUpscaler(network, SCALE).push(item), LanczosUpscaler(SCALE).push(item)
            gain.append(psnr(ours.pixels, truth) - psnr(plain.pixels, truth))
    return float(np.mean(gains[0])), float(np.mean(gains[1]))


def _interpolation(index: int) -> tuple[float, float]:
    """PSNR of every second frame of a clip, blended from its neighbours and interpolated between them."""
    numbers, _ = generators(_SEED + 1, index)
    moving = False
    while not moving:  # a clip in which nothing moves says nothing
        clip = draw_clip(numbers, Mixture(two_objects=0.3, moving_camera=0.3), held_out=True)
        frames = _to_pixels(render(clip, width=_EDGE, height=_EDGE, num_frames=_FRAMES))
        moving = not np.array_equal(frames[0], frames[1])
    known, hidden = frames[::2], frames[1::2]
    stage = Interpolator(source_fps=Fraction(16), target_fps=Fraction(32))
    made = np.concatenate([item.pixels for item in _through(stage, known)])
    blended = np.round((known[:-1].astype(np.float32) + known[1:]) / 2).astype(np.uint8)
    return psnr(blended, hidden), psnr(made[1::2], hidden)


def _through(stage: Interpolator, pixels: Pixels) -> Iterator[Frames]:
    yield from stage.push(Frames(first=0, pixels=pixels))
    yield from stage.flush()


def _decoder_seam(vae: AutoencoderKLWan) -> float:
    """The largest difference, in levels of 255, between a clip decoded in tiles and decoded whole."""
    drawn = render(draw_clip(np.random.default_rng(3), Mixture()), width=256, height=_EDGE, num_frames=5)
    pictures = torch.from_numpy(np.ascontiguousarray(drawn)).permute(3, 0, 1, 2)[None] * 2 - 1
    with torch.inference_mode():
        encoded = vae.encode(pictures).latent_dist.mean[0]
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    latents = (encoded - mean) / std
    whole = torch.cat(list(WanDecoder(vae).stream(latents)), 1)
    tiled = torch.cat(list(WanDecoder(vae, FixedTiles(size=20, overlap=12)).stream(latents)), 1)
    return float((tiled - whole).abs().max()) * 127.5


def _upscaler_seam(network: LoadedNetwork) -> float:
    """The largest difference, in levels of 255, between frames enlarged in tiles and enlarged whole."""
    frames = _to_pixels(render(draw_clip(np.random.default_rng(3), Mixture()), width=256, height=_EDGE, num_frames=3))
    tiled = LoadedNetwork(network=network.network, runtime=network.runtime, tile=96, margin=network.margin)
    return float(np.abs(tiled.enlarge(frames).astype(int) - network.enlarge(frames)).max())


def _to_pixels(painted: np.typing.NDArray[np.float32]) -> Pixels:
    return np.asarray(np.round(painted * 255), np.uint8)
