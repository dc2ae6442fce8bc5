"""Adds the trained few-step adapter to a published folder: one file for each expert, named by its manifest.

``python -m models.tiny.train.export_adapter --high DIR --low DIR``; after a new ``export``, whose experts it must fit.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from models.tiny.evaluate import WEIGHTS
from models.tiny.few_steps import FEW_STEPS
from models.tiny.train.distill import averaged_adapter

ADAPTER_ID: Final = "few-step"


def write_adapter(run: Path, path: Path) -> None:
    """Writes a run's averaged pairs in bfloat16, under diffusers' key names."""
    tensors = {}
    for layer, (down, up) in averaged_adapter(run).items():
        tensors[f"transformer.{layer}.lora_A.weight"] = down.to(torch.bfloat16).contiguous()
        tensors[f"transformer.{layer}.lora_B.weight"] = up.to(torch.bfloat16).contiguous()
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})


def add_to_manifest(folder: Path, files: dict[str, str]) -> None:
    """Names the adapter's ``files`` (by expert, relative to ``folder``) in ``rushes.json``, with their digests."""
    manifest = json.loads((folder / "rushes.json").read_text())
    manifest["adapters"] = [
        {"id": ADAPTER_ID, "name": "Four steps without guidance", **files, "distilled_steps": FEW_STEPS}
    ]
    for name in files.values():
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    manifest["files"] = dict(sorted(manifest["files"].items()))
    (folder / "rushes.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main() -> None:
    """Writes both files and the manifest's entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--high", type=Path, required=True, help="the high expert's run")
    parser.add_argument("--low", type=Path, required=True, help="the low expert's run")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the published folder")
    options = parser.parse_args()
    files = {part: f"adapters/few_step_{part}.safetensors" for part in ("high", "low")}
    for part, name in files.items():
        write_adapter(getattr(options, part), options.out / name)
    add_to_manifest(options.out, files)


if __name__ == "__main__":
    main()
