"""Adapters (Hu et al., arXiv:2106.09685): files of any of the usual key layouts, read against an expert's layers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What an adapter changes of a layer; None where it does not.

    A linear layer W x + b gains up (down x), `down` [rank, in] and `up` [out, rank] times alpha / rank, and its W and b
    gain `weight` and `bias`. So do those of a norm; of a block or the whole expert, `weight` is the modulation's.
    """

    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Those that are there."""
        return tuple(tensor for each in fields(self) if (tensor := getattr(self, each.name)) is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


Adapter: TypeAlias = Mapping[str, Update]
"""The updates of one expert, by the diffusers name of the layer: of a block, or empty, for a modulation."""


class AdapterMisfit(ValueError):
    """The file is no adapter of this expert; the message names the key."""


_PREFIX: Final = re.compile(r"^(base_model\.model\.|transformer\.|transformer_2\.|diffusion_model\.|model\.)*")
_KEY: Final = re.compile(
    r"^(?P<layer>.+)\.(?P<role>lora_A|lora_down|lora_B|lora_up|alpha|diff_b|diff_m|diff)"
    r"(?:\.default)?(?P<part>\.weight|\.bias)?$"
)
# `diff`, `diff_b` and `diff_m` (of a modulation) are what LightX2V's `tools/extract/lora_extractor.py` writes for all
# that is no matrix; PEFT calls the bias of a layer `lora_B.bias`.
_ROLES: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {(role, ".weight"): "down" for role in ("lora_A", "lora_down")}
    | {(role, ".weight"): "up" for role in ("lora_B", "lora_up")}
    | {("lora_B", ".bias"): "bias", ("lora_up", ".bias"): "bias"}
    | {("alpha", ""): "alpha", ("diff", ""): "weight", ("diff_b", ""): "bias", ("diff_m", ""): "weight"}
)
# kohya's and musubi-tuner's layout has underscores for dots.
_UNDERSCORED: Final = re.compile(r"^lora_unet_blocks_(\d+)_(self_attn|cross_attn|ffn)_([qkvo02])(?=\.)")
# The original Wan names, as diffusers' scripts/convert_wan_to_diffusers.py renames them.
_RENAMES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"\.self_attn\.([qkv])$"), r".attn1.to_\1"),
    (re.compile(r"\.self_attn\.o$"), ".attn1.to_out.0"),
    (re.compile(r"\.cross_attn\.([qkv])$"), r".attn2.to_\1"),
    (re.compile(r"\.cross_attn\.o$"), ".attn2.to_out.0"),
    (re.compile(r"\.self_attn\.norm_([qk])$"), r".attn1.norm_\1"),
    (re.compile(r"\.cross_attn\.norm_([qk])$"), r".attn2.norm_\1"),
    (re.compile(r"\.norm3$"), ".norm2"),
    (re.compile(r"\.ffn\.0$"), ".ffn.net.0.proj"),
    (re.compile(r"\.ffn\.2$"), ".ffn.net.2"),
    (re.compile(r"^(text|time)_embedding\.0$"), r"condition_embedder.\1_embedder.linear_1"),
    (re.compile(r"^(text|time)_embedding\.2$"), r"condition_embedder.\1_embedder.linear_2"),
    (re.compile(r"^time_projection\.1$"), "condition_embedder.time_proj"),
    (re.compile(r"^head\.head$"), "proj_out"),
)
_MODULATED: Final = re.compile(r"^(blocks\.\d+|head)$")
_ADAPTABLE: Final = re.compile(
    r"^(blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0|norm_[qk])|ffn\.net\.(0\.proj|2)|norm2)"
    r"|condition_embedder\.((text|time)_embedder\.linear_[12]|time_proj)|proj_out|patch_embedding)$"
)


def read_adapter(path: Path, module: nn.Module, dtype: torch.dtype, device: torch.device) -> Adapter:
    """The adapter in `path` for the expert `module`, in `dtype` on `device`; what the expert keeps in float32, in that.

    Keys are diffusers' and PEFT's (`transformer.blocks.0.attn1.to_q.lora_A.weight`), the original Wan's
    (`diffusion_model.blocks.0.self_attn.q.lora_down.weight`) with or without `alpha`, `diff`, `diff_b` and `diff_m`, or
    kohya's (`lora_unet_blocks_0_self_attn_q.lora_down.weight`). Updates that are zero throughout are left out. Raises
    `AdapterMisfit` naming the key: an unknown one, a layer that the expert has not, half a pair, a shape that does not
    fit, a value that is not finite.
    """
    parts: dict[str, dict[str, tuple[str, torch.Tensor]]] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as stream:
            for key in stream.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                layer, role = _parsed(key)
                if role in parts.setdefault(layer, {}):
                    raise AdapterMisfit(f"{key} is there twice, the other time as {parts[layer][role][0]}")
                parts[layer][role] = (key, stream.get_tensor(key))
    except (SafetensorError, OSError):
        raise AdapterMisfit(f"{path.name} is no usable safetensors file") from None
    if not parts:
        raise AdapterMisfit(f"{path.name} is empty")
    updates = {layer: _update(layer, part, module, dtype, device) for layer, part in parts.items()}
    return MappingProxyType({layer: update for layer, update in updates.items() if update.tensors})


def _parsed(key: str) -> tuple[str, str]:
    """The layer's diffusers name, and which part of an update the key is."""
    match = _KEY.match(_UNDERSCORED.sub(r"blocks.\1.\2.\3", _PREFIX.sub("", key)))
    role = None if match is None else _ROLES.get((match["role"], match["part"] or _default_part(match["role"])))
    if match is None or role is None:
        raise AdapterMisfit(f"{key} is no key of a low-rank adapter")
    layer = match["layer"]
    if match["role"] == "diff_m":
        if not _MODULATED.match(layer):
            raise AdapterMisfit(f"{key} is for a layer that has no modulation")
        return "" if layer == "head" else layer, role
    for pattern, replacement in _RENAMES:
        layer = pattern.sub(replacement, layer)
    if not _ADAPTABLE.match(layer):
        raise AdapterMisfit(f"{key} is for a layer that adapters do not change")
    return layer, role


def _default_part(role: str) -> str:
    return ".weight" if role.startswith("lora") else ""


def _update(
    layer: str,
    part: Mapping[str, tuple[str, torch.Tensor]],
    module: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
) -> Update:
    for key, tensor in part.values():
        if not torch.isfinite(tensor.float()).all():
            raise AdapterMisfit(f"{key} is not finite")
    first_key = next(iter(part.values()))[0]
    try:
        target = module.get_submodule(layer)
    except AttributeError:
        raise AdapterMisfit(f"{first_key} is for a layer that this model has not") from None
    base = target.scale_shift_table if _MODULATED.match(layer or "head") else target.weight
    kept = dtype if base.dtype.itemsize == 1 else base.dtype
    placed: dict[str, torch.Tensor] = {}
    if {"down", "up", "alpha"} & set(part):
        placed |= _low_rank(part, target)
    for role, like in (("weight", base), ("bias", getattr(target, "bias", None))):
        if role in part:
            key, tensor = part[role]
            if like is None or tensor.shape != like.shape:
                expected = "no such part" if like is None else f"not {list(like.shape)}"
                raise AdapterMisfit(f"{key} has shape {list(tensor.shape)}, {expected}")
            placed[role] = tensor
    if all(bool((tensor == 0).all()) for role, tensor in placed.items() if role != "down"):
        return Update()
    return Update(**{role: tensor.to(device, kept) for role, tensor in placed.items()})


def _low_rank(part: Mapping[str, tuple[str, torch.Tensor]], target: nn.Module) -> dict[str, torch.Tensor]:
    if "down" not in part or "up" not in part:
        lonely = part.get("down") or part.get("up") or part["alpha"]
        raise AdapterMisfit(f"{lonely[0]} lacks its other half")
    (down_key, down), (up_key, up) = part["down"], part["up"]
    if not hasattr(target, "in_features"):
        raise AdapterMisfit(f"{down_key} is for a layer that is no matrix")
    rank = down.shape[0] if down.dim() == 2 else 0
    if rank == 0 or down.shape[1] != target.in_features:
        raise AdapterMisfit(f"{down_key} has shape {list(down.shape)}, not [rank, {target.in_features}]")
    if tuple(up.shape) != (target.out_features, rank):
        raise AdapterMisfit(f"{up_key} has shape {list(up.shape)}, not [{target.out_features}, {rank}]")
    if "alpha" in part and part["alpha"][1].numel() != 1:
        raise AdapterMisfit(f"{part['alpha'][0]} is not one number")
    alpha = float(part["alpha"][1]) if "alpha" in part else float(rank)
    return {"down": down, "up": up.float() * (alpha / rank)}
