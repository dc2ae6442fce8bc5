"""Puts the trained parts together as one diffusers-layout folder with a manifest.

``python -m models.tiny.train.export --text DIR --latent-space FILE --vae DIR --high DIR --low DIR --out DIR``.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from transformers import UMT5EncoderModel

from models.tiny.sampler import Settings, build_scheduler
from models.tiny.train.experts import BOUNDARY, FLOW_SHIFT, build_expert
from models.tiny.train.latent_space import STRIDE_SPACE, STRIDE_TIME, LatentSpace, to_signal
from models.tiny.train.loop import averaged_weights
from models.tiny.train.tokenizer import MAX_LENGTH
from models.tiny.train.upscaler import FILE as UPSCALER_FILE
from models.tiny.train.upscaler import ONNX_FILE as UPSCALER_ONNX_FILE
from models.tiny.train.upscaler import SCALE as UPSCALER_SCALE
from models.tiny.train.vae import build_vae
from models.tiny.world.clip import Mixture, draw_clip
from models.tiny.world.render import render

NOTICE: Final = (
    "rushes-tiny is a demonstration model of coloured shapes in six simple scenes; other prompts get its best try. "
    "See models/tiny/README.md for what it knows and how Wan2.2-T2V-A14B is plugged in."
)
_UPSCALER: Final = Path(__file__).resolve().parents[1] / "weights" / "upscaler"
_WEIGHTS: Final = "diffusion_pytorch_model.safetensors"
_KEEP_FLOAT32: Final = tuple(WanTransformer3DModel._keep_in_fp32_modules or ())
_INDEX: Final = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.42.1",
    "boundary_ratio": BOUNDARY,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def write_module(module: WanTransformer3DModel | AutoencoderKLWan, folder: Path) -> None:
    """Writes config and weights; bfloat16, but float32 for what the class keeps in float32."""
    module.save_config(folder)
    keep = _KEEP_FLOAT32 if isinstance(module, WanTransformer3DModel) else ()
    state = {
        name: tensor.contiguous().to(torch.float32 if any(part in name.split(".") for part in keep) else torch.bfloat16)
        for name, tensor in module.state_dict().items()
    }
    save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})


def fit_latent_rgb(latent_space: LatentSpace, *, size: int, clips: int = 60) -> dict[str, object]:
    """The least-squares map from a latent cell to the mean colour, in -1..1, of the block that it stands for."""
    numbers = np.random.default_rng([0, 13])
    rows, colours = [], []
    for _ in range(clips):
        clip = draw_clip(numbers, Mixture(two_objects=0.3, moving_camera=0.3))
        frames = to_signal(render(clip, width=size, height=size, num_frames=17))[None]
        padded = torch.cat([frames[:, :, :1].expand(-1, -1, STRIDE_TIME - 1, -1, -1), frames], dim=2)
        pooled = torch.nn.functional.avg_pool3d(padded, (STRIDE_TIME, STRIDE_SPACE, STRIDE_SPACE))
        rows.append(latent_space.encode(frames).movedim(1, -1).flatten(0, 3))
        colours.append(pooled.movedim(1, -1).flatten(0, 3))
    latents = torch.cat(rows)
    design = torch.cat([latents, torch.ones(len(latents), 1)], dim=1).double()
    solution = torch.linalg.lstsq(design, torch.cat(colours).double()).solution
    factors = [[round(float(value), 6) for value in row] for row in solution]
    return {"factors": factors[:-1], "bias": factors[-1]}


def write_upscaler(source: Path, folder: Path) -> None:
    """Copies the upscaler's weights and their ONNX form."""
    folder.mkdir(exist_ok=True)
    for name in (UPSCALER_FILE, UPSCALER_ONNX_FILE):
        if source.resolve() != folder.resolve():
            shutil.copyfile(source / name, folder / name)


def write_manifest(folder: Path, settings: Settings, latent_space: LatentSpace) -> None:
    """Writes ``rushes.json``: defaults, limits, the latent map, and a digest of every weight file."""
    files = sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.onnx"), folder / "tokenizer" / "tokenizer.json"])
    manifest = {
        "schema_version": 1,
        "id": "rushes-tiny",
        "name": "Rushes tiny (coloured shapes)",
        "licence": "Apache-2.0",
        "demonstration": True,
        "notice": NOTICE,
        "defaults": {
            "width": settings.width,
            "height": settings.height,
            "num_frames": settings.num_frames,
            "fps": 16,
            "steps": settings.steps,
            "solver": "unipc",
            "sigma_rule": "diffusers",
            "flow_shift": settings.flow_shift,
            "boundary_ratio": settings.boundary,
            "guidance_scale_high": settings.guidance_high,
            "guidance_scale_low": settings.guidance_low,
            "negative_prompt": settings.negative_prompt,
        },
        "limits": {"max_width": 256, "max_height": 256, "max_frames": 81, "max_steps": 100},
        "text": {"max_length": MAX_LENGTH},
        "latent_rgb": fit_latent_rgb(latent_space, size=settings.width),
        "upscalers": [
            {
                "id": "srvgg-x2",
                "name": "Compact network, twice as large",
                "scale": UPSCALER_SCALE,
                "file": f"upscaler/{UPSCALER_FILE}",
                "onnx": f"upscaler/{UPSCALER_ONNX_FILE}",
            }
        ],
        "files": {
            path.relative_to(folder).as_posix(): {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "size": path.stat().st_size,
            }
            for path in files
        },
    }
    (folder / "rushes.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for part in ("text", "latent-space", "vae", "high", "low", "out"):
        parser.add_argument(f"--{part}", type=Path, required=True)
    parser.add_argument("--upscaler", type=Path, default=_UPSCALER, help="its run folder; default: the published one")
    parser.add_argument("--size", type=int, default=Settings().width)
    parser.add_argument("--steps", type=int, default=Settings().steps)
    parser.add_argument("--guidance-high", type=float, default=Settings().guidance_high)
    parser.add_argument("--guidance-low", type=float, default=Settings().guidance_low)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    # The few-step adapter was distilled from the experts that are replaced here.
    shutil.rmtree(out / "adapters", ignore_errors=True)
    (out / "model_index.json").write_text(json.dumps(_INDEX, indent=1) + "\n")
    build_scheduler(FLOW_SHIFT).save_pretrained(out / "scheduler")
    shutil.copytree(options.text / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    encoder = UMT5EncoderModel.from_pretrained(options.text / "text_encoder", dtype=torch.bfloat16)
    encoder.save_pretrained(out / "text_encoder")
    for name, source in (("transformer", options.high), ("transformer_2", options.low)):
        expert = build_expert()
        expert.load_state_dict(averaged_weights(source, "model"))
        write_module(expert, out / name)
    vae = build_vae()
    vae.load_state_dict(averaged_weights(options.vae, "vae"), strict=False)
    write_module(vae, out / "vae")
    write_upscaler(options.upscaler, out / "upscaler")
    settings = Settings(
        width=options.size,
        height=options.size,
        steps=options.steps,
        guidance_high=options.guidance_high,
        guidance_low=options.guidance_low,
    )
    write_manifest(out, settings, LatentSpace.load(options.latent_space))


if __name__ == "__main__":
    main()
