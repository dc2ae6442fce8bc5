"""Strict loading: every key of the module, no other, each of the right shape, straight into its dtype and device."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn

from services.model.errors import ModelRefused
from services.model.folder import Component

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# `init_empty_weights` replaces a method of `nn.Module` for the whole process and puts back what it found: two threads
# at once would leave the replacement behind, and every module built later would be empty.
_BUILDING = threading.Lock()
_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


@contextmanager
def real_weights() -> Iterator[None]:
    """For the block no thread builds an empty module, so that one that is built in it gets its parameters."""
    with _BUILDING:
        yield


class _Slice(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _Shard(Protocol):
    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Slice: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


def load_module(component: Component, cls: type[ModuleT], dtype: torch.dtype, device: torch.device | str) -> ModuleT:
    """Build `cls` from the component's configuration and fill it from its shards, in eval mode and without gradients.

    Each tensor goes from the mapped file to `device` in `dtype`, one at a time, so that peak memory is the module and
    one tensor. Modules that the class keeps in float32 stay so. Raises `ModelRefused` naming file and key.
    """
    check_complete(component, cls)
    module = empty_module(component, cls)
    fill_module(module, component, dtype, device)
    return module.eval()


def fill_module(module: nn.Module, component: Component, dtype: torch.dtype, device: torch.device | str) -> None:
    """Place the component's weights in `module`, which was built for it, as `load_module` does."""
    keep = _kept_in_float32(module, dtype)
    names = _names_by_parameter(module)
    for shard in component.shards:
        for key, tensor in _tensors(component, shard):
            target = torch.float32 if keep & set(key.split(".")) else dtype
            placed = nn.Parameter(tensor.to(device=device, dtype=target), requires_grad=False)
            for name in names[key]:
                owner, _, leaf = name.rpartition(".")
                holder = module.get_submodule(owner)
                if leaf in holder._parameters:
                    holder._parameters[leaf] = placed
                else:
                    holder._buffers[leaf] = placed.data
    for name, buffer in module.named_buffers():
        if buffer.device != torch.device(device) and not buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._buffers[leaf] = buffer.to(device)


def check_complete(component: Component, cls: type[nn.Module]) -> int:
    """Compare the shards' headers with the module's keys and shapes, on the meta device, without reading a weight.

    Returns the number of parameters. Raises `ModelRefused` for a header that lies, and for a key that is missing,
    extra, there twice, of another shape or no floating-point tensor.
    """
    module = empty_module(component, cls)
    state: Mapping[str, torch.Tensor] = module.state_dict(keep_vars=True)
    names = _names_by_parameter(module)
    missing = dict(state)
    seen: set[str] = set()
    for shard in component.shards:
        file = component.relative(shard)
        with _open(component, shard) as stream:
            for key in stream.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                expected = state.get(key)
                if expected is None:
                    raise ModelRefused(file, f"{key} is no parameter of {component.class_name}")
                if key in seen:
                    raise ModelRefused(file, f"{key} is in another shard too")
                seen.add(key)
                entry = stream.get_slice(key)
                if tuple(entry.get_shape()) != tuple(expected.shape):
                    raise ModelRefused(file, f"{key} has shape {tuple(entry.get_shape())}, not {tuple(expected.shape)}")
                if entry.get_dtype() not in _FLOATS:
                    raise ModelRefused(file, f"{key} is {entry.get_dtype()}, not a floating-point tensor")
                for name in names[key]:
                    missing.pop(name, None)
    if missing:
        raise ModelRefused(component.name, f"{min(missing)} is in none of its files ({len(missing)} keys missing)")
    return sum(parameter.numel() for parameter in module.parameters())


def empty_module(component: Component, cls: type[ModuleT]) -> ModuleT:
    """`cls` built from the component's configuration, parameters on the meta device, computed buffers real."""
    config: Any = dict(component.config)
    with _BUILDING, init_empty_weights(include_buffers=False):
        if hasattr(cls, "load_config"):
            built = cls.from_config({key: value for key, value in config.items() if not key.startswith("_")})
        else:
            built = cls(cls.config_class.from_dict(config))
    return cast("ModuleT", built)


def _open(component: Component, shard: Path, device: str = "cpu") -> Any:
    try:
        return safe_open(shard, framework="pt", device=device)
    except (SafetensorError, OSError) as refused:
        raise ModelRefused(component.relative(shard), f"is no usable safetensors file: {refused}") from refused


def _tensors(component: Component, shard: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with _open(component, shard) as stream:
        for key in stream.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
            yield key, stream.get_tensor(key)


def _names_by_parameter(module: nn.Module) -> dict[str, list[str]]:
    """For every key all names of the same tensor: a tied embedding is stored once."""
    groups: dict[int, list[str]] = {}
    state = module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        groups.setdefault(id(tensor), []).append(name)
    tied = dict(getattr(module, "_tied_weights_keys", None) or {})
    for alias, original in tied.items():
        if alias in state and original in state and state[alias] is not state[original]:
            merged = groups.pop(id(state[alias])) + groups[id(state[original])]
            groups[id(state[original])] = merged
    return {name: group for group in groups.values() for name in group}


def _kept_in_float32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """The names of modules that the class keeps in float32: diffusers' for any half type, transformers' for float16."""
    if dtype not in (torch.float16, torch.bfloat16):
        return set()
    keep = set(getattr(module, "_keep_in_fp32_modules_strict", None) or [])
    if hasattr(type(module), "load_config") or dtype == torch.float16:
        keep |= set(getattr(module, "_keep_in_fp32_modules", None) or [])
    return keep
