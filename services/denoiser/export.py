"""Writes an expert as ONNX: `python -m services.denoiser.export --model FOLDER --expert high --output FOLDER`.

One file is for one size of clip, one prompt at a time: engines are built for the sizes that they serve. The graph takes
`latents` [1, C, T, H, W], `timestep` [1] and `text` [1, length, text_dim], all float32, and gives `velocity`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from services.denoiser.experts import Expert
from services.denoiser.shapes import LatentShape, VideoShape
from services.model.device import DTYPES
from services.model.folder import ModelFolder
from services.model.weights import load_module

OPSET = 20


class _Velocity(nn.Module):
    """The expert with float32 at its edges, whatever its weights are."""

    def __init__(self, module: WanTransformer3DModel) -> None:
        super().__init__()
        self.module = module
        self._dtype = module.patch_embedding.weight.dtype

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """v, [1, C, T, H, W] float32."""
        (v,) = self.module(
            hidden_states=latents.to(self._dtype),
            timestep=timestep,
            encoder_hidden_states=text.to(self._dtype),
            return_dict=False,
        )
        return v.float()


def engine_name(expert: Expert, latents: LatentShape) -> str:
    """The file of an expert for one size of latents."""
    return f"{expert}-{latents.frames}x{latents.height}x{latents.width}.onnx"


def export_expert(module: WanTransformer3DModel, latents: LatentShape, text_length: int, path: Path) -> None:
    """Write `module` for clips of `latents` to `path`; weights of more than 2 GB go to a file beside it."""
    device = module.patch_embedding.weight.device
    inputs = (
        torch.zeros(latents.batch, device=device),
        torch.full((1,), 500.0, device=device),
        torch.zeros(1, text_length, module.config.text_dim, device=device),
    )
    with torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            _Velocity(module).eval(),
            inputs,
            input_names=["latents", "timestep", "text"],
            output_names=["velocity"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter gave no program")
    weights = sum(parameter.nbytes for parameter in module.parameters())
    program.save(path, external_data=weights > 2**31 - 2**20)


def main(argv: Sequence[str] | None = None) -> int:
    """Export one expert and say where it went."""
    parser = argparse.ArgumentParser(prog="python -m services.denoiser.export", description="Write an expert as ONNX.")
    parser.add_argument("--model", type=Path, required=True, help="model folder in diffusers layout")
    parser.add_argument("--expert", choices=["high", "low"], required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the engines")
    parser.add_argument("--width", type=int, help="pixels; default: the model's")
    parser.add_argument("--height", type=int, help="pixels; default: the model's")
    parser.add_argument("--frames", type=int, help="4k + 1; default: the model's")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    asked = parser.parse_args(argv)
    folder, expert = ModelFolder(asked.model), Expert.HIGH if asked.expert == "high" else Expert.LOW
    defaults = folder.manifest.defaults
    shape = VideoShape(
        width=asked.width or defaults.width,
        height=asked.height or defaults.height,
        frames=asked.frames or defaults.num_frames,
    )
    module = load_module(folder.component(expert), WanTransformer3DModel, DTYPES[asked.dtype], torch.device("cpu"))
    latents = shape.latents(int(module.config.in_channels))
    asked.output.mkdir(parents=True, exist_ok=True)
    path = asked.output / engine_name(expert, latents)
    export_expert(module, latents, folder.manifest.text.max_length, path)
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
