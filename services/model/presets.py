"""Presets: names for settings that go together, as a model's manifest states them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PresetAdapter(_Strict):
    """An adapter of the manifest, with its weight on each expert."""

    id: Annotated[str, Field(pattern=_NAME)]
    weight_high: Annotated[float, Field(ge=-4, le=4)] = 1.0
    weight_low: Annotated[float, Field(ge=-4, le=4)] = 1.0


class PresetEntry(_Strict):
    """Settings of the denoising loop in which a preset differs from the model's defaults; None is no difference."""

    name: Annotated[str, Field(pattern=_NAME)]
    description: str = ""
    steps: Annotated[int, Field(gt=0)] | None = None
    solver: Literal["unipc", "euler", "dpmpp_2m"] | None = None
    sigma_rule: Literal["wan", "diffusers"] | None = None
    flow_shift: Annotated[float, Field(gt=0, le=100)] | None = None
    boundary_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    guidance_scale_high: Annotated[float, Field(ge=0, le=100)] | None = None
    guidance_scale_low: Annotated[float, Field(ge=0, le=100)] | None = None
    guidance_timestep_min: Annotated[float, Field(ge=0, le=1000)] | None = None
    guidance_timestep_max: Annotated[float, Field(ge=0, le=1000)] | None = None
    step_cache: Literal["off", "first_block"] | None = None
    step_cache_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    adapters: Annotated[tuple[PresetAdapter, ...], Field(max_length=8)] = ()
