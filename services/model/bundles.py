"""Torch tensors to bundles on the wire and back, bfloat16 included, without a detour over numpy floats."""

from collections.abc import Mapping

import torch

from services.chassis.bundles import Bundle, Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def to_bundle(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Bundle:
    """`tensors`, copied to host memory, row-major and little-endian, under their safetensors dtype names."""
    return Bundle(tensors={name: _to_wire(tensor) for name, tensor in tensors.items()}, metadata=dict(metadata))


def to_tensors(bundle: Bundle, device: torch.device | str) -> dict[str, torch.Tensor]:
    """The bundle's tensors on `device`, in the dtypes that they travelled in. Raises `ValueError` for another dtype."""
    return {name: _from_wire(name, tensor).to(device) for name, tensor in bundle.tensors.items()}


def _to_wire(tensor: torch.Tensor) -> Tensor:
    host = tensor.detach().to("cpu").contiguous()
    data = host.reshape(-1).view(torch.uint8).numpy().tobytes() if host.numel() else b""
    return Tensor(dtype=_NAMES[tensor.dtype], shape=tuple(tensor.shape), data=data)


def _from_wire(name: str, tensor: Tensor) -> torch.Tensor:
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}, which is no dtype of a bundle")
    dtype = _DTYPES[tensor.dtype]
    if not len(tensor.data):
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8).view(dtype).reshape(tensor.shape)
