"""Writes model folders in diffusers layout with seeded random weights: the real classes, at any size, of no training.

`write_untrained` makes a tiny model that runs (its picture is noise); `write_hollow` makes the published A14B
configuration shape-complete in sparse files that take no room on disk.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

NOTICE = "This model is untrained: its weights are random, so its picture is noise."

_SPACE = "\u2581"
_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large the model is; the defaults are nano. Widths are in channels, `text_length` in tokens."""

    layers: int = 2
    heads: int = 2
    head_dim: int = 24
    ffn_dim: int = 96
    text_dim: int = 32
    text_layers: int = 2
    text_length: int = 16
    vae_dim: int = 8
    z_dim: int = 16

    def transformer(self) -> dict[str, Any]:
        """The configuration of `WanTransformer3DModel`."""
        return {
            "patch_size": [1, 2, 2],
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_dim,
            "in_channels": self.z_dim,
            "out_channels": self.z_dim,
            "text_dim": self.text_dim,
            "freq_dim": 32,
            "ffn_dim": self.ffn_dim,
            "num_layers": self.layers,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": 1e-6,
            "rope_max_seq_len": 128,
        }

    def vae(self) -> dict[str, Any]:
        """The configuration of `AutoencoderKLWan`: the Wan 2.1 strides, 4 in time and 8 in space."""
        return {
            "base_dim": self.vae_dim,
            "z_dim": self.z_dim,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "attn_scales": [],
            "temperal_downsample": [False, True, True],
            "latents_mean": [round(0.1 * (channel % 3 - 1), 1) for channel in range(self.z_dim)],
            "latents_std": [round(0.8 + 0.1 * (channel % 5), 1) for channel in range(self.z_dim)],
        }

    def text_encoder(self, vocabulary: int) -> dict[str, Any]:
        """The configuration of `UMT5EncoderModel`."""
        return {
            "vocab_size": vocabulary,
            "d_model": self.text_dim,
            "d_kv": 8,
            "d_ff": 2 * self.text_dim,
            "num_layers": self.text_layers,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        }


def write_untrained(
    folder: Path,
    seed: int = 0,
    *,
    size: Size | None = None,
    experts: int = 2,
    dtype: torch.dtype = torch.float32,
    manifest: bool = True,
    defaults: Mapping[str, object] | None = None,
) -> Path:
    """Write a runnable random model to `folder`, the same bytes for the same arguments, and return `folder`.

    `experts=1` leaves `transformer_2` out; `manifest=False` leaves `rushes.json` out; `defaults` overrides fields of
    its `defaults`.
    """
    from diffusers import AutoencoderKLWan, WanTransformer3DModel  # noqa: PLC0415  (seconds of import, only when writing)
    from transformers import UMT5Config, UMT5EncoderModel  # noqa: PLC0415  (seconds of import, only when writing)

    size = size or Size()
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_tokenizer(folder / "tokenizer", size.text_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules: dict[str, Any] = {
            "transformer": WanTransformer3DModel.from_config(size.transformer()),
            "vae": AutoencoderKLWan.from_config(size.vae()),
            "text_encoder": UMT5EncoderModel(UMT5Config(**size.text_encoder(vocabulary))),
        }
        if experts == 2:
            modules["transformer_2"] = WanTransformer3DModel.from_config(size.transformer())
        for module in modules.values():
            _draw(module)
    for name, module in modules.items():
        _write_config(folder / name, module)
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        tensors = {key: parameter.detach().to(dtype) for key, parameter in module.named_parameters()}
        save_file(tensors, folder / name / f"{stem}.safetensors", metadata={"format": "pt"})
    _write_index(folder, experts=experts)
    if manifest:
        _write_manifest(folder, size, defaults or {})
    return folder


def write_hollow(folder: Path, *, layers: int = 40, shard_bytes: int = _SHARD_BYTES) -> Path:
    """Write the A14B configuration to `folder`: true headers and index files over sparse, all-zero bf16 data.

    Nothing but the headers takes room on a file system with holes. `layers` shortens both experts.
    """
    from accelerate import init_empty_weights  # noqa: PLC0415  (seconds of import, only when writing)
    from diffusers import AutoencoderKLWan, WanTransformer3DModel  # noqa: PLC0415  (seconds of import, only when writing)
    from transformers import UMT5Config, UMT5EncoderModel  # noqa: PLC0415  (seconds of import, only when writing)

    umt5_xxl = {
        "vocab_size": 256384,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    with init_empty_weights(include_buffers=False):
        modules: dict[str, Any] = {
            "transformer": WanTransformer3DModel(num_layers=layers),
            "transformer_2": WanTransformer3DModel(num_layers=layers),
            "vae": AutoencoderKLWan(),
            "text_encoder": UMT5EncoderModel(UMT5Config(**umt5_xxl)),
        }
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        _write_hollow_shards(folder / name, stem, module, shard_bytes)
        _write_config(folder / name, module)
    _write_tokenizer(folder / "tokenizer", 512)
    _write_index(folder, experts=2)
    return folder


def _draw(module: torch.nn.Module) -> None:
    """Redraw what the classes initialise to zero or to a constant, so that every parameter matters to the output."""
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            centre = 1.0 if "norm" in name and not name.endswith("bias") else 0.0
            torch.nn.init.normal_(parameter, mean=centre, std=0.05)
        elif name.endswith("proj_out.weight"):
            torch.nn.init.normal_(parameter, std=0.1)


def _write_tokenizer(folder: Path, text_length: int) -> int:
    """A Unigram tokenizer of single characters with byte fallback; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  (seconds of import, only when writing)

    letters = [_SPACE, *(chr(code) for code in range(33, 127))]
    words = [_SPACE + word for word in ("a", "red", "green", "blue", "circle", "square", "moves", "left", "right")]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    vocabulary += [(f"<0x{byte:02X}>", -12.0) for byte in range(256)]
    vocabulary += [(letter, -6.0) for letter in letters] + [(word, -3.0) for word in words]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(replacement=_SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106  (a vocabulary entry, no credential)
        eos_token="</s>",  # noqa: S106  (a vocabulary entry, no credential)
        unk_token="<unk>",  # noqa: S106  (a vocabulary entry, no credential)
        model_max_length=text_length,
    ).save_pretrained(folder)
    return len(vocabulary)


def _write_index(folder: Path, *, experts: int) -> None:
    scheduler = {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "solver_order": 2,
        "solver_type": "bh2",
    }
    index: dict[str, Any] = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if experts == 2:
        index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_json(folder / "model_index.json", index)


def _write_manifest(folder: Path, size: Size, defaults: Mapping[str, object]) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(size.z_dim, 3, generator=generator).mul(0.2).tolist()
    manifest = {
        "schema_version": 1,
        "id": "rushes-untrained",
        "name": "Rushes untrained",
        "licence": "Apache-2.0",
        "demonstration": True,
        "notice": NOTICE,
        "defaults": {
            "width": 64,
            "height": 64,
            "num_frames": 9,
            "fps": 16,
            "steps": 8,
            "solver": "unipc",
            "sigma_rule": "wan",
            "flow_shift": 3.0,
            "boundary_ratio": 0.875,
            "guidance_scale_high": 4.0,
            "guidance_scale_low": 3.0,
            "negative_prompt": "",
            **defaults,
        },
        "limits": {"max_width": 256, "max_height": 256, "max_frames": 81, "max_steps": 100},
        "text": {"max_length": size.text_length},
        "latent_rgb": {"factors": factors, "bias": [0.0, 0.0, 0.0]},
        "files": {
            shard.relative_to(folder).as_posix(): {
                "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
                "size": shard.stat().st_size,
            }
            for shard in sorted(folder.glob("*/*.safetensors"))
        },
    }
    _write_json(folder / "rushes.json", manifest)


def _write_config(folder: Path, module: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(module, "save_config"):
        module.save_config(folder)
    else:
        module.config.architectures = [type(module).__name__]
        module.config.save_pretrained(folder)


def _write_hollow_shards(folder: Path, stem: str, module: torch.nn.Module, shard_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_split({name: tensor.shape for name, tensor in module.named_parameters()}, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else f"{stem}.safetensors"
        weight_map |= dict.fromkeys(shapes, name)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for key, shape in shapes.items():
            begin, end = end, end + 2 * shape.numel()
            header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(8 + len(encoded) + end)
    if len(shards) > 1:
        _write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _split(shapes: Mapping[str, torch.Size], shard_bytes: int) -> Iterator[dict[str, torch.Size]]:
    shard: dict[str, torch.Size] = {}
    held = 0
    for name, shape in shapes.items():
        if shard and held + 2 * shape.numel() > shard_bytes:
            yield shard
            shard, held = {}, 0
        shard[name] = shape
        held += 2 * shape.numel()
    yield shard


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
