from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from models.tiny.world.clip import Mixture, draw_clip
from models.tiny.world.render import render
from services.postprocess.decode import WanDecoder
from services.postprocess.tiling import FixedTiles

VAE = Path(__file__).parents[2] / "models" / "tiny" / "weights" / "vae"


def test_across_the_seams_of_tiles_a_trained_decoder_differs_by_two_levels_at_most() -> None:
    vae = AutoencoderKLWan.from_pretrained(VAE, torch_dtype=torch.float32).eval()
    drawn = render(draw_clip(np.random.default_rng(3), Mixture()), width=256, height=192, num_frames=5)
    pictures = torch.from_numpy(np.ascontiguousarray(drawn)).permute(3, 0, 1, 2)[None] * 2 - 1
    with torch.inference_mode():
        encoded = vae.encode(pictures).latent_dist.mean[0]
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    latents = (encoded - mean) / std

    whole = torch.cat(list(WanDecoder(vae).stream(latents)), 1)
    tiled = torch.cat(list(WanDecoder(vae, FixedTiles(size=20, overlap=12)).stream(latents)), 1)

    assert not torch.equal(tiled, whole)
    assert float((tiled - whole).abs().max()) * 127.5 <= 2
