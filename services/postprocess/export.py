"""Writes an upscaling network as ONNX.

`python -m services.postprocess.export --model FOLDER --upscaler ID --output FILE`.

The graph takes `pictures` [B, 3, H, W] in 0..1, float32, for any B, H and W, and gives `larger` [B, 3, s * H, s * W].
The manifest names the file as the upscaler's `onnx`, with its size and hash in `files`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from services.model.folder import ModelFolder
from services.postprocess.architectures import load_network

OPSET = 20


def export_network(module: nn.Module, path: Path) -> None:
    """Write `module` to `path`, its weights inside."""
    dynamic = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 3, 48, 64),),
            input_names=["pictures"],
            output_names=["larger"],
            dynamic_shapes=(dynamic,),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("the exporter gave no program")
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Export one network and say where it went."""
    parser = argparse.ArgumentParser(
        prog="python -m services.postprocess.export", description="Write an upscaling network as ONNX."
    )
    parser.add_argument("--model", type=Path, required=True, help="model folder in diffusers layout")
    parser.add_argument("--upscaler", required=True, help="id of the manifest's upscaler")
    parser.add_argument("--output", type=Path, required=True, help="the ONNX file")
    asked = parser.parse_args(argv)
    folder = ModelFolder(asked.model)
    entries = {entry.id: entry for entry in folder.manifest.upscalers}
    if asked.upscaler not in entries:
        parser.error(f"--upscaler must be one of {', '.join(entries) or '(the manifest names none)'}")
    network = load_network(folder, entries[asked.upscaler], torch.device("cpu"))
    export_network(network.module, asked.output)
    sys.stdout.write(f"{asked.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
