"""The experts that this process holds."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel

from services.denoiser.experts import Expert
from services.denoiser.reference import Difference, differences
from services.denoiser.residence import Residence
from services.denoiser.settings import Settings
from services.denoiser.transformer import Transformer
from services.model.errors import ModelRefused
from services.model.folder import ModelFolder
from services.model.manifest import Manifest
from services.model.weights import load_module

_CHOICES: Mapping[str, tuple[Expert, ...]] = {
    "high": (Expert.HIGH,),
    "low": (Expert.LOW,),
    "both": (Expert.HIGH, Expert.LOW),
    "swap": (Expert.HIGH, Expert.LOW),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertPool:
    """Loaded experts of one model. A model of one transformer has no boundary: `Expert.HIGH` serves every step.

    `ways` are the ways of computing that change the bits of a result, beside the weights' type.
    """

    experts: Mapping[Expert, Transformer]
    manifest: Manifest
    fingerprint: str
    dtype: torch.dtype
    device: torch.device
    has_boundary: bool
    differences: tuple[Difference, ...]
    ways: tuple[str, ...] = ()
    residence: Residence | None = None

    @classmethod
    def load(cls, folder: ModelFolder, choice: str, dtype: torch.dtype, device: torch.device) -> "ExpertPool":
        """Load the experts named by `choice`. Raises `ModelRefused`.

        `high`, `low` and `both` are loaded to stay. With `swap` one of both is on the device at a time, also now.
        """
        has_boundary = folder.has(Expert.LOW)
        wanted = [expert for expert in _CHOICES[choice] if has_boundary or expert is Expert.HIGH]
        if not wanted:
            raise ModelRefused("model_index.json", f"names no {Expert.LOW}, so there is no low-noise expert to load")
        residence = Residence() if choice == "swap" and len(wanted) > 1 else None
        experts = {}
        for expert in wanted:
            component = folder.component(expert)
            transformer = Transformer(load_module(component, WanTransformer3DModel, dtype, device))
            experts[expert] = transformer if residence is None else residence.settle(expert, component, transformer)
        if residence is not None:
            residence.bring_in(Expert.HIGH)
        return cls(
            experts=experts,
            manifest=folder.manifest,
            fingerprint=folder.fingerprint,
            dtype=dtype,
            device=device,
            has_boundary=has_boundary,
            differences=differences(folder),
            residence=residence,
        )

    @property
    def first(self) -> Transformer:
        """One of the experts: they are of one shape."""
        return next(iter(self.experts.values()))

    @property
    def resident(self) -> tuple[Expert, ...]:
        """The experts whose weights are on the device; any thread may ask."""
        if self.residence is None:
            return tuple(self.experts)
        here = self.residence.resident
        return () if here is None else (here,)

    @property
    def dtype_name(self) -> str:
        """The weights' type, for example `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def numerics(self) -> str:
        """How results are computed: pools of the same may continue each other's states."""
        return " ".join((self.dtype_name, *self.ways))

    @property
    def defaults(self) -> Settings:
        """The model's default settings."""
        return Settings.of(self.manifest.defaults)
