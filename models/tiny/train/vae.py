"""The VAE, distilled onto the latent space: the decoder turns exact codes into frames, the encoder frames into codes.

``python -m models.tiny.train.vae --latent-space FILE --out DIR``.
"""

from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify

from models.tiny.train.latent_space import CHANNELS, LatentSpace, to_signal
from models.tiny.train.loop import (
    Trainer,
    arguments,
    averaged_weights,
    generators,
    multiplies_in_bfloat16,
    warm_up_and_decay,
)
from models.tiny.world.clip import Mixture, draw_clip
from models.tiny.world.render import render

_PATCH: Final = 2
_ENCODER_EVERY: Final = 4
_QUIET: Final = -12.0


def build_vae() -> AutoencoderKLWan:
    """An untrained VAE of 2.68 M parameters, stride 4x8x8, whose temporal upsampling starts as a copy."""
    vae = AutoencoderKLWan(
        base_dim=32,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        is_residual=True,
        in_channels=3 * _PATCH**2,
        out_channels=3 * _PATCH**2,
        patch_size=_PATCH,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
    )
    with torch.no_grad():
        for module in vae.decoder.modules():
            if isinstance(module, WanResample) and module.mode == "upsample3d":
                weight, bias = module.time_conv.weight, module.time_conv.bias
                weight.zero_()
                if bias is not None:
                    bias.zero_()
                for channel in range(module.dim):
                    weight[channel, channel, -1] = 1.0
                    weight[module.dim + channel, channel, -1] = 1.0
        # The posterior's log-variance is a constant: the encoder is deterministic.
        vae.quant_conv.weight[CHANNELS:] = 0.0
        vae.quant_conv.bias[CHANNELS:] = _QUIET
    return vae


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Unclamped frames; two chunks (first frame, rest) equal the stock frame-by-frame path and train faster."""
    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    chunks = []
    for part, first in ((hidden[:, :, :1], True), (hidden[:, :, 1:], False)):
        vae._conv_idx = [0]
        chunks.append(vae.decoder(part, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=first))
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, dim=2), patch_size=_PATCH)


def encode(vae: AutoencoderKLWan, frames: torch.Tensor) -> torch.Tensor:
    """The posterior's mean, in the same two chunks."""
    vae.clear_cache()
    patches = patchify(frames, patch_size=_PATCH)
    chunks = []
    for part in (patches[:, :, :1], patches[:, :, 1:]):
        vae._enc_conv_idx = [0]
        chunks.append(vae.encoder(part, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
    vae.clear_cache()
    return vae.quant_conv(torch.cat(chunks, dim=2))[:, :CHANNELS]


class VaeTask:
    """Decoder: noisy codes to frames, errors on objects counted up to four times. Encoder: frames to codes."""

    def __init__(
        self,
        latent_space: LatentSpace,
        *,
        size: int,
        frames: int,
        steps: int,
        batch: int,
        lr: float,
        decay: float,
        seed: int,
        device: str,
    ) -> None:
        torch.manual_seed(seed)
        self.latent_space = latent_space.to(device)
        self.size, self.frames, self.steps, self.batch = size, frames, steps, batch
        self.lr, self.decay, self.seed, self.device = lr, decay, seed, device
        self.vae = build_vae().to(device)
        self.modules: dict[str, torch.nn.Module] = {"vae": self.vae}
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            self.vae.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0
        )

    def _mixed_precision(self) -> torch.autocast:
        kind = self.device.split(":")[0]
        return torch.autocast(kind, torch.bfloat16, enabled=multiplies_in_bfloat16(self.device))

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, decay."""
        return warm_up_and_decay(step, peak=self.lr, warm_up=50, total=self.steps, decay=self.decay)

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Weighted L1 + L2 of the decoder, or every fourth step the encoder's squared error."""
        numbers, noise = generators(self.seed, step)
        mixture = Mixture(two_objects=0.3, moving_camera=0.3)
        clips = [
            to_signal(render(draw_clip(numbers, mixture), width=self.size, height=self.size, num_frames=self.frames))
            for _ in range(self.batch)
        ]
        frames = torch.stack(clips).to(self.device)
        with torch.no_grad():
            codes = self.latent_space.encode(frames)
        if step % _ENCODER_EVERY == 1:
            with self._mixed_precision():
                predicted = encode(self.vae, frames)
            return (predicted.float() - codes).square().mean(), {}
        jitter = 0.1 * float(numbers.random()) * torch.randn(codes.shape, generator=noise).to(self.device)
        with self._mixed_precision():
            decoded = decode(self.vae, codes + jitter)
        error = decoded.float() - frames
        middle = frames.flatten(2).median(dim=2).values.view(self.batch, 3, 1, 1, 1)
        weight = 1.0 + 3.0 * ((frames - middle).abs().amax(1, keepdim=True) * 4.0 - 1.0).clamp(0.0, 1.0)
        loss = (weight * (error.abs() + 2.0 * error.square())).mean()
        return loss, {"psnr": float(-10.0 * torch.log10(error.detach().square().mean() / 4.0))}


def main() -> None:
    """Distils the VAE and writes it as a ``diffusers`` folder."""
    parser = arguments(__doc__ or "", steps=2500, batch=2, learning_rate=1.5e-3)
    parser.add_argument("--latent-space", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--frames", type=int, default=17)
    options = parser.parse_args()
    task = VaeTask(
        LatentSpace.load(options.latent_space),
        size=options.size,
        frames=options.frames,
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
    task.vae.load_state_dict(averaged_weights(options.out, "vae"), strict=False)
    task.vae.save_pretrained(options.out / "vae")


if __name__ == "__main__":
    main()
