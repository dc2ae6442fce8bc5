"""Real-ESRGAN's compact network, read from its weights alone (xinntao/Real-ESRGAN `realesrgan/archs/srvgg_arch.py`)."""

from collections.abc import Mapping
from math import isqrt

import torch
from torch import nn
from torch.nn import functional

ARCHITECTURE = "SRVGGNetCompact"


class Srvgg(nn.Module):
    """[B, 3, H, W] in 0..1 to [B, 3, s * H, s * W], not clamped: convolutions with PReLU, then a pixel shuffle."""

    def __init__(self, *, features: int, convolutions: int, scale: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1), nn.PReLU(features)]
        for _ in range(convolutions):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, 3 * scale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)
        self.scale = scale

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """The larger frames: what the layers give, added to the nearest neighbours."""
        detail = functional.pixel_shuffle(self.body(frames), self.scale)
        return detail + functional.interpolate(frames, scale_factor=float(self.scale), mode="nearest")


def read_srvgg(state: Mapping[str, torch.Tensor]) -> Srvgg:
    """The network that `state` holds the weights of. Raises `ValueError` naming the first key that does not fit."""
    first = state.get("body.0.weight")
    indices = [int(key.split(".")[1]) for key in state if key.startswith("body.") and key.split(".")[1].isdecimal()]
    if first is None or first.dim() != 4 or not indices:
        raise ValueError("body.0.weight is missing or no convolution's")
    last = state.get(f"body.{max(indices)}.weight")
    if last is None or max(indices) % 2 or (scale := isqrt(len(last) // 3)) < 2 or 3 * scale**2 != len(last):
        raise ValueError(f"body.{max(indices)}.weight does not end such a network")
    network = Srvgg(features=len(first), convolutions=max(indices) // 2 - 1, scale=scale)
    expected = network.state_dict()
    for key in sorted(expected.keys() | state.keys()):
        if key not in state or key not in expected:
            raise ValueError(f"{key} is {'missing' if key in expected else 'no parameter'} of {ARCHITECTURE}")
        if state[key].shape != expected[key].shape:
            raise ValueError(f"{key} has shape {list(state[key].shape)}, not {list(expected[key].shape)}")
    network.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    return network
