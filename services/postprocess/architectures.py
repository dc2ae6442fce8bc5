"""Which network a file of upscaler weights is: the compact one, or any that spandrel knows where it is installed."""

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from services.model.errors import ModelRefused
from services.model.folder import ModelFolder
from services.model.manifest import UpscalerEntry
from services.model.weights import real_weights
from services.postprocess.srvgg import ARCHITECTURE, read_srvgg


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A loaded upscaling network: [B, 3, H, W] in 0..1 to [B, 3, scale * H, scale * W] in `module`'s own dtype.

    `multiple` is what both edges of its input must be multiples of, `least_edge` how long they must be.
    """

    id: str
    name: str
    scale: int
    architecture: str
    module: nn.Module
    multiple: int = 1
    least_edge: int = 1


def load_network(folder: ModelFolder, entry: UpscalerEntry, device: torch.device) -> Network:
    """The network of `entry`, in float32, in eval mode, without gradients.

    Raises `ModelRefused` naming the file: another hash, an architecture that nothing here knows, a scale other than the
    manifest's, no RGB.
    """
    try:
        state = load_file(folder.checked_file(entry.file))
    except SafetensorError as unreadable:
        raise ModelRefused(entry.file, f"is no safetensors file: {unreadable}") from unreadable
    with real_weights():
        network = _built(entry, state)
    if network.scale != entry.scale:
        raise ModelRefused(entry.file, f"enlarges {network.scale} times, not {entry.scale} as the manifest says")
    network.module.to(device).eval().requires_grad_(requires_grad=False)
    return network


def _built(entry: UpscalerEntry, state: dict[str, torch.Tensor]) -> Network:
    try:
        module = read_srvgg(state)
    except ValueError as unfit:
        return _by_spandrel(entry, state, f"is no {ARCHITECTURE} ({unfit})")
    return Network(id=entry.id, name=entry.name, scale=module.scale, architecture=ARCHITECTURE, module=module)


def _by_spandrel(entry: UpscalerEntry, state: dict[str, torch.Tensor], otherwise: str) -> Network:
    try:
        import spandrel  # noqa: PLC0415  (an optional dependency, loaded where it is used)
    except ImportError as absent:
        raise ModelRefused(
            entry.file, f"{otherwise}; other architectures need the package spandrel, which does not import: {absent}"
        ) from absent
    try:
        found = spandrel.ModelLoader().load_from_state_dict(state)
    except (spandrel.UnsupportedModelError, RuntimeError, KeyError, ValueError) as unfit:
        raise ModelRefused(
            entry.file, f"is no network that spandrel knows: {str(unfit) or type(unfit).__name__}"
        ) from unfit
    if not isinstance(found, spandrel.ImageModelDescriptor) or (found.input_channels, found.output_channels) != (3, 3):
        raise ModelRefused(entry.file, "must take and give RGB pictures")
    needs = found.size_requirements
    return Network(
        id=entry.id,
        name=entry.name,
        scale=found.scale,
        architecture=found.architecture.name,
        module=found.model.float(),
        multiple=needs.multiple_of,
        least_edge=max(1, needs.minimum),
    )
