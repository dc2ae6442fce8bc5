"""The kernels for self-attention that are present, and which of them is the fastest here."""

import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import Any, Final, TypeAlias

import torch
from torch.nn import functional as F  # noqa: N812  (torch's own abbreviation)
from torch.nn.attention import SDPBackend, sdpa_kernel

from services.chassis.errors import FailedPrecondition
from services.chassis.logs import logger

Attend: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(query, key, value) -> mixed, all [B, heads, L, head_dim]."""

SDPA: Final = "sdpa"
MAX_ERROR: Final = 0.02
"""A kernel that is farther from float32 is never chosen by measurement; bfloat16 kernels are below 0.01."""
_MARGIN: Final = 0.97
"""A kernel must be so much faster than one before it in the list: noise must not decide between processes."""
_CHECKED_TOKENS: Final = 512
_ROUNDS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """A kernel that is present; `seconds` and `error`, relative to float32, are 0 where it was not measured."""

    name: str
    seconds: float = 0.0
    error: float = 0.0


def present(device: torch.device) -> dict[str, Attend]:
    """The kernels that may run on `device`, by name; `sdpa`, which leaves the choice to torch, is first."""
    kernels: dict[str, Attend] = {SDPA: F.scaled_dot_product_attention}
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH}
    if device.type == "cuda":
        backends = {
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "flash": SDPBackend.FLASH_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }
        for name, (library, kernel) in _LIBRARIES.items():
            imported = _imported(library)
            if imported is not None:
                kernels[name] = partial(kernel, imported)
    return kernels | {name: partial(_restricted, backend) for name, backend in backends.items()}


def _imported(library: str) -> ModuleType | None:
    """The library if it is there and fits this torch: one that was built for another must not stop the process."""
    if find_spec(library) is None:
        return None
    try:
        return importlib.import_module(library)
    except (ImportError, OSError) as unfit:
        logger(__name__).warning("attention_library_unfit", library=library, error=str(unfit))
        return None


def named(name: str, device: torch.device) -> Attend:
    """The kernel of this name. Raises `FailedPrecondition` naming those that are present."""
    kernels = present(device)
    if name not in kernels:
        raise FailedPrecondition(
            f"The attention kernel {name} is not here; there are {', '.join(kernels)}.", reason="ATTENTION_MISSING"
        )
    return kernels[name]


def measure(
    kernels: Mapping[str, Attend], *, heads: int, tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> list[Timing]:
    """Time every kernel on one self-attention of so many tokens, the best of some rounds; those that fail are left out.

    The tensors lie in memory as the transformer's do, token by token. The error is that of a short one against float32.
    """
    generator = torch.Generator(device).manual_seed(0)

    def drawn(length: int) -> list[torch.Tensor]:
        shape = (1, length, heads, head_dim)
        tensors = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(3)]
        return [tensor.transpose(1, 2) for tensor in tensors]

    short, whole = drawn(min(tokens, _CHECKED_TOKENS)), drawn(tokens)
    exact = F.scaled_dot_product_attention(*(tensor.float() for tensor in short))
    timings = []
    for name, kernel in kernels.items():
        try:
            error = float((kernel(*short).float() - exact).norm() / exact.norm())
            seconds = min(_seconds(kernel, whole, device) for _ in range(_ROUNDS))
        except Exception as unfit:  # noqa: BLE001 - libraries differ in how they say that a size, type or card does not fit
            logger(__name__).info("attention_kernel_unfit", kernel=name, error=str(unfit))
            continue
        timings.append(Timing(name=name, seconds=seconds, error=error))
    return timings


def fastest(timings: Sequence[Timing]) -> str:
    """The kernel to use: the fastest that is exact enough, an earlier one where the difference is small."""
    exact = [timing for timing in timings if timing.error <= MAX_ERROR]
    best: Timing | None = None
    for timing in exact:
        if best is None or timing.seconds < _MARGIN * best.seconds:
            best = timing
    return best.name if best is not None else SDPA


def _seconds(kernel: Attend, inputs: Iterable[torch.Tensor], device: torch.device) -> float:
    began = time.monotonic()
    kernel(*inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - began


def _restricted(backend: SDPBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)


def _flash3(library: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """FlashAttention-3 takes [B, L, heads, head_dim]."""
    mixed = library.flash_attn_func(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    # Releases differ in whether they give the log-sum-exp too.
    return (mixed[0] if isinstance(mixed, tuple) else mixed).transpose(1, 2)


def _sage(library: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    mixed: torch.Tensor = library.sageattn(query, key, value, tensor_layout="HND")
    return mixed


_LIBRARIES: Final[Mapping[str, tuple[str, Callable[..., torch.Tensor]]]] = MappingProxyType(
    {"flash3": ("flash_attn_interface", _flash3), "sage": ("sageattention", _sage)}
)
