"""Linear layers in float8 (e4m3): a scale for every row of the weight, and for every token of the input as it comes."""

from collections.abc import Iterator

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own abbreviation)

FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FLOAT8).max
_ALIGNMENT = 16
_LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0")
_FFN = ("ffn.net.0.proj", "ffn.net.2")


class Float8Linear(nn.Module):
    """A linear layer whose product is taken in float8 and accumulated in float32.

    On CUDA devices of capability 8.9 and above the product is one kernel; elsewhere the same numbers are multiplied in
    float32, which is not faster, but has the same error.
    """

    def __init__(self, linear: nn.Linear, device: torch.device | None = None) -> None:
        """`device` is where it will compute, if that is not where its weight lies."""
        super().__init__()
        device = device or linear.weight.device
        self._one_kernel = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantised(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + b in the type of x."""
        rows, scale = quantised(x.reshape(-1, self.in_features))
        y = self._product(rows, scale, x.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def _product(self, rows: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self._one_kernel and rows.is_cuda:
            y: torch.Tensor = torch._scaled_mm(
                rows, self.weight.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=torch.bfloat16
            )
            y = y.to(dtype)
            return y if self.bias is None else y.add_(self.bias)
        weight = self.weight.float() * self.scale
        bias = None if self.bias is None else self.bias.float()
        return F.linear(rows.float() * scale, weight, bias).to(dtype)


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x`, [rows, columns], in float8, and the scale of every row, [rows, 1] float32, that gives it back."""
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / _LARGEST
    # One tensor of float32 beside x, which at the widest layer of a 720p clip has four gigabytes.
    return (x / scale).clamp_(-_LARGEST, _LARGEST).to(FLOAT8), scale


@torch.no_grad()
def to_float8(module: WanTransformer3DModel, device: torch.device | None = None) -> float:
    """Put the linear layers of all blocks into float8, in place; the greatest relative error of a layer.

    The error is that of its output for normally distributed input. The text's keys and values, which are computed once
    a run, the embeddings and the head keep their type; so does a layer whose sides are no multiples of 16. `device` is
    where they will compute, if they do not lie there. Each weight is let go before the next one is read.
    """
    worst = 0.0
    for parent, name, linear in _linears(module):
        x = torch.randn(_ALIGNMENT, linear.in_features, generator=torch.Generator().manual_seed(0))
        x = x.to(linear.weight.device, linear.weight.dtype)
        exact = linear(x).float()
        small = Float8Linear(linear, device)
        worst = max(worst, float((small(x).float() - exact).norm() / exact.norm()))
        setattr(parent, name, small)
    return worst


def _linears(module: WanTransformer3DModel) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for block in module.blocks:
        for path in (*_LAYERS, *_FFN):
            above, _, name = path.rpartition(".")
            parent = block.get_submodule(above)
            linear = getattr(parent, name)
            if linear.in_features % _ALIGNMENT == 0 and linear.out_features % _ALIGNMENT == 0:
                yield parent, name, linear
