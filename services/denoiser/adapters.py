"""Low-rank adapters (Hu et al., arXiv:2106.09685): files of either key layout, read against an expert's layers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank:
    """What an adapter adds to a layer's output, up (down x): `down` [rank, in], `up` [out, rank] times alpha / rank."""

    down: torch.Tensor
    up: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both matrices."""
        return int(self.down.nbytes + self.up.nbytes)


Adapter: TypeAlias = Mapping[str, LowRank]
"""The updates of one expert, by the layer's diffusers name."""


class AdapterMisfit(ValueError):
    """The file is no adapter of this expert; the message names the key."""


_PREFIX: Final = re.compile(r"^(base_model\.model\.|transformer\.|transformer_2\.|diffusion_model\.|model\.)*")
_KEY: Final = re.compile(
    r"^(?P<layer>.+)\.(?:(?P<down>lora_A|lora_down)|(?P<up>lora_B|lora_up)|(?P<alpha>alpha))(?:\.default)?(?:\.weight)?$"
)
# The original Wan names of a block's layers, as scripts/convert_wan_to_diffusers.py renames them.
_RENAMES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"\.self_attn\.([qkv])$"), r".attn1.to_\1"),
    (re.compile(r"\.self_attn\.o$"), ".attn1.to_out.0"),
    (re.compile(r"\.cross_attn\.([qkv])$"), r".attn2.to_\1"),
    (re.compile(r"\.cross_attn\.o$"), ".attn2.to_out.0"),
    (re.compile(r"\.ffn\.0$"), ".ffn.net.0.proj"),
    (re.compile(r"\.ffn\.2$"), ".ffn.net.2"),
)
_ADAPTABLE: Final = re.compile(r"^blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ffn\.net\.(0\.proj|2))$")


def read_adapter(path: Path, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Adapter:
    """The adapter in `path` for the expert `module`, in `dtype` on `device`.

    Keys are diffusers' and PEFT's (`transformer.blocks.0.attn1.to_q.lora_A.weight`) or the original Wan's
    (`diffusion_model.blocks.0.self_attn.q.lora_down.weight`), with or without `alpha`. Raises `AdapterMisfit` naming
    the key: an unknown one, a layer that the expert has not, half a pair, a shape that does not fit.
    """
    parts: dict[str, dict[str, tuple[str, torch.Tensor]]] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            for key in stream.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                layer, role = _parsed(key)
                parts.setdefault(layer, {})[role] = (key, stream.get_tensor(key))
    except (SafetensorError, OSError):
        raise AdapterMisfit(f"{path.name} is no usable safetensors file") from None
    if not parts:
        raise AdapterMisfit(f"{path.name} is empty")
    return MappingProxyType({layer: _low_rank(layer, part, module, dtype, device) for layer, part in parts.items()})


def _parsed(key: str) -> tuple[str, str]:
    match = _KEY.match(_PREFIX.sub("", key))
    if match is None:
        raise AdapterMisfit(f"{key} is no key of a low-rank adapter")
    layer = match["layer"]
    for pattern, replacement in _RENAMES:
        layer = pattern.sub(replacement, layer)
    if not _ADAPTABLE.match(layer):
        raise AdapterMisfit(f"{key} is for a layer that adapters do not change")
    return layer, next(role for role in ("down", "up", "alpha") if match[role])


def _low_rank(
    layer: str,
    part: Mapping[str, tuple[str, torch.Tensor]],
    module: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
) -> LowRank:
    if "down" not in part or "up" not in part:
        lonely = part.get("down") or part.get("up") or part["alpha"]
        raise AdapterMisfit(f"{lonely[0]} lacks its other half")
    (down_key, down), (up_key, up) = part["down"], part["up"]
    try:
        linear = module.get_submodule(layer)
    except AttributeError:
        raise AdapterMisfit(f"{down_key} is for a layer that this model has not") from None
    rank = down.shape[0] if down.dim() == 2 else 0
    if rank == 0 or down.shape[1] != linear.in_features:
        raise AdapterMisfit(f"{down_key} has shape {list(down.shape)}, not [rank, {linear.in_features}]")
    if tuple(up.shape) != (linear.out_features, rank):
        raise AdapterMisfit(f"{up_key} has shape {list(up.shape)}, not [{linear.out_features}, {rank}]")
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise AdapterMisfit(f"{down_key} or its other half is not finite")
    alpha = float(part["alpha"][1]) if "alpha" in part else float(rank)
    return LowRank(down=down.to(device, dtype), up=(up.float() * (alpha / rank)).to(device, dtype))
