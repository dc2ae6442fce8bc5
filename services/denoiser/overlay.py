"""Layers with what adapters change laid over them; exactly the layers' own output where there is nothing."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, TypeAlias

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812  (torch's own abbreviation)

from services.denoiser.adapters import Update

Updates: TypeAlias = Mapping[nn.Module, Sequence[tuple[Update, float]]]
"""The weighted updates of every layer that is changed."""
NO_UPDATES: Final[Updates] = MappingProxyType({})


def linear(layer: nn.Module, x: torch.Tensor, updates: Updates) -> torch.Tensor:
    """The layer's output plus what adapters add to it."""
    return added(layer, layer(x), x, updates)


def added(layer: nn.Module, y: torch.Tensor, x: torch.Tensor, updates: Updates) -> torch.Tensor:
    """`y`, the fresh output of `layer` for `x`, plus what adapters add to it: in place, for it may be very wide."""
    if not updates:
        return y
    for update, weight in updates.get(layer, ()):
        rows, sums = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        if update.down is not None and update.up is not None:
            sums.addmm_(F.linear(rows, update.down.to(x.dtype)), update.up.to(y.dtype).t(), alpha=weight)
        if update.weight is not None:
            sums.addmm_(rows, update.weight.to(y.dtype).flatten(1).t(), alpha=weight)
        if update.bias is not None:
            sums.add_(update.bias, alpha=weight)
    return y


def norm(layer: nn.Module, x: torch.Tensor, updates: Updates) -> torch.Tensor:
    """The output of a norm whose weight and bias adapters change."""
    changes = updates.get(layer, ()) if updates else ()
    if not changes:
        normal: torch.Tensor = layer(x)
        return normal
    parameters: dict[str, torch.Tensor] = dict(layer.named_parameters())
    for update, weight in changes:
        for name in ("weight", "bias"):
            change = getattr(update, name)
            if change is not None:
                parameters[name] = parameters[name] + weight * change
    changed: torch.Tensor = functional_call(layer, parameters, (x,))
    return changed


def shifted(table: torch.Tensor, owner: nn.Module, updates: Updates) -> torch.Tensor:
    """A modulation's `table` as adapters change that of `owner`."""
    for update, weight in updates.get(owner, ()):
        if update.weight is not None:
            table = table + weight * update.weight.float()
    return table
