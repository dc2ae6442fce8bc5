"""A model's own statement of its defaults and limits: `rushes.json` beside `model_index.json`."""

import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.model.errors import ModelRefused
from services.model.presets import PresetEntry

MANIFEST_FILE = "rushes.json"

PLAIN_UPSCALER = "lanczos"
"""Id of the upscaler that needs no network."""

_ID = r"^[a-z0-9][a-z0-9._-]{0,62}$"

WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，"
    "残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，"
    "三条腿，背景人很多，倒着走"
)
"""`sample_neg_prompt` of Wan-Video/Wan2.2 `wan/configs/shared_config.py`."""


class Source(enum.StrEnum):
    """Where a default in force came from."""

    MANIFEST = "manifest"
    WAN_REFERENCE = "wan-reference"
    SCHEDULER_CONFIG = "scheduler-config"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Defaults(_Strict):
    """What a generation uses when its request leaves a setting out; field defaults are Wan2.2-T2V-A14B's own.

    Lengths are in pixels and frames; `flow_shift` and the guidance scales have no unit; `boundary_ratio` is a share of
    the 1000 training timesteps. Source: Wan-Video/Wan2.2 `wan/configs/wan_t2v_A14B.py`.
    """

    width: Annotated[int, Field(gt=0, multiple_of=16)] = 1280
    height: Annotated[int, Field(gt=0, multiple_of=16)] = 720
    num_frames: Annotated[int, Field(gt=0)] = 81
    fps: Annotated[int, Field(gt=0, le=240)] = 16
    steps: Annotated[int, Field(gt=0)] = 40
    solver: Literal["unipc", "euler", "dpmpp_2m"] = "unipc"
    sigma_rule: Literal["wan", "diffusers"] = "wan"
    flow_shift: Annotated[float, Field(gt=0)] = 12.0
    boundary_ratio: Annotated[float, Field(ge=0, le=1)] = 0.875
    guidance_scale_high: Annotated[float, Field(ge=0)] = 4.0
    guidance_scale_low: Annotated[float, Field(ge=0)] = 3.0
    guidance_timestep_min: Annotated[float, Field(ge=0, le=1000)] = 0.0
    guidance_timestep_max: Annotated[float, Field(ge=0, le=1000)] = 1000.0
    negative_prompt: str = WAN_NEGATIVE_PROMPT

    @model_validator(mode="after")
    def _check_interval(self) -> "Defaults":
        if self.guidance_timestep_min > self.guidance_timestep_max:
            raise ValueError("guidance_timestep_min must not be greater than guidance_timestep_max")
        return self


class Limits(_Strict):
    """The largest generation that the model accepts; without a manifest the reference's largest sizes."""

    max_width: Annotated[int, Field(gt=0)] = 1280
    max_height: Annotated[int, Field(gt=0)] = 1280
    max_frames: Annotated[int, Field(gt=0)] = 81
    max_steps: Annotated[int, Field(gt=0)] = 100


class TextLimits(_Strict):
    """`max_length`: tokens to which a prompt is truncated, and to which its embedding is zero-padded."""

    max_length: Annotated[int, Field(gt=0, le=4096)] = 512


class LatentRgb(_Strict):
    """An affine map from normalised latents to RGB in [-1, 1]: `factors` is [z_dim][3], `bias` is [3]."""

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


WAN21_LATENT_RGB = LatentRgb(
    factors=(
        (-0.1299, -0.1692, 0.2932),
        (0.0671, 0.0406, 0.0442),
        (0.3568, 0.2548, 0.1747),
        (0.0372, 0.2344, 0.1420),
        (0.0313, 0.0189, -0.0328),
        (0.0296, -0.0956, -0.0665),
        (-0.3477, -0.4059, -0.2925),
        (0.0166, 0.1902, 0.1975),
        (-0.0412, 0.0267, -0.1364),
        (-0.1293, 0.0740, 0.1636),
        (0.0680, 0.3019, 0.1128),
        (0.0032, 0.0581, 0.0639),
        (-0.1251, 0.0927, 0.1699),
        (0.0060, -0.0633, 0.0005),
        (0.3477, 0.2275, 0.2950),
        (0.1984, 0.0913, 0.1861),
    ),
    bias=(-0.1835, -0.0868, -0.3360),
)
"""Latents of the Wan 2.1 VAE to RGB: ComfyUI `comfy/latent_formats.py`, `Wan21.latent_rgb_factors`."""


class FileEntry(_Strict):
    """What a file of the model folder must be: its SHA-256 in lower-case hexadecimal and its size in bytes."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


_PATH = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*"
_WEIGHTS_FILE = _PATH + r"\.safetensors$"
_ONNX_FILE = _PATH + r"\.onnx$"


class AdapterEntry(_Strict):
    """A low-rank adapter that requests may name: its id, and its file for each expert, relative to the model folder.

    `distilled_steps`: the steps that a distilled adapter was made for, two files for two experts; `draft` uses it.
    """

    id: Annotated[str, Field(pattern=_ID)]
    name: str = ""
    high: Annotated[str, Field(pattern=_WEIGHTS_FILE)] | None = None
    low: Annotated[str, Field(pattern=_WEIGHTS_FILE)] | None = None
    distilled_steps: Annotated[int, Field(gt=0, le=50)] | None = None


class UpscalerEntry(_Strict):
    """An upscaling network: its id, how much larger one pass makes a picture, and its safetensors file.

    `onnx` is the same network as `services.postprocess.export` writes it, for ONNX Runtime and TensorRT.
    """

    id: Annotated[str, Field(pattern=_ID)]
    name: str = ""
    scale: Annotated[int, Field(ge=2, le=8)]
    file: Annotated[str, Field(pattern=_WEIGHTS_FILE)]
    onnx: Annotated[str, Field(pattern=_ONNX_FILE)] | None = None


class Manifest(_Strict):
    """The content of `rushes.json`, or the reference's values where there is none.

    `id` names the model in requests, `notice` is one line that users are shown, `demonstration` marks a model that is
    not the published one. `preview_decoder` names a component of the model index, a small `AutoencoderKLWan`.
    `sources` says for every field of `defaults` where its value came from.
    """

    schema_version: Literal[1] = 1
    id: Annotated[str, Field(pattern=_ID)] = "wan2.2-t2v-a14b"
    name: str = "Wan2.2-T2V-A14B"
    licence: str = "Apache-2.0"
    demonstration: bool = False
    notice: str = ""
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    text: TextLimits = TextLimits()
    latent_rgb: LatentRgb = WAN21_LATENT_RGB
    preview_decoder: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")] | None = None
    files: Mapping[str, FileEntry] = Field(default_factory=dict)
    adapters: tuple[AdapterEntry, ...] = ()
    presets: tuple[PresetEntry, ...] = ()
    upscalers: tuple[UpscalerEntry, ...] = ()
    sources: Mapping[str, Source] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_adapters(self) -> "Manifest":
        if len({entry.id for entry in self.adapters}) != len(self.adapters):
            raise ValueError("two adapters have one id")
        for entry in self.adapters:
            for file in (entry.high, entry.low):
                if file is not None and file not in self.files:
                    raise ValueError(f"files must state the size and SHA-256 of {file}, of adapter {entry.id}")
        return self

    @model_validator(mode="after")
    def _check_upscalers(self) -> "Manifest":
        ids = [entry.id for entry in self.upscalers]
        if len(set(ids)) != len(ids):
            raise ValueError("two upscalers have one id")
        if PLAIN_UPSCALER in ids:
            raise ValueError(f"the upscaler {PLAIN_UPSCALER} is always there: give another id")
        for entry in self.upscalers:
            for file in (entry.file, entry.onnx):
                if file is not None and file not in self.files:
                    raise ValueError(f"files must state the size and SHA-256 of {file}, of upscaler {entry.id}")
        return self

    @model_validator(mode="after")
    def _check_presets(self) -> "Manifest":
        names = [preset.name for preset in self.presets]
        if len(set(names)) != len(names):
            raise ValueError("two presets have one name")
        if "standard" in names:
            raise ValueError("the preset standard is the manifest's defaults: state those")
        known = {entry.id for entry in self.adapters}
        for preset in self.presets:
            if preset.steps is not None and preset.steps > self.limits.max_steps:
                raise ValueError(f"preset {preset.name} has more steps than limits.max_steps")
            for use in preset.adapters:
                if use.id not in known:
                    raise ValueError(f"preset {preset.name} names {use.id}, which is no adapter of the manifest")
        return self

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read `folder/rushes.json`; without one every default is the Wan reference's.

        A manifest that leaves out `flow_shift` takes it from the scheduler's own configuration. Without a manifest it
        does not: the published conversion's scheduler says 3.0 where the reference uses 12.0.
        Raises `ModelRefused` naming the file and the field.
        """
        path = folder / MANIFEST_FILE
        if not path.exists():
            return cls(sources=dict.fromkeys(Defaults.model_fields, Source.WAN_REFERENCE))
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as unreadable:
            raise ModelRefused(MANIFEST_FILE, f"is not readable JSON: {unreadable}") from unreadable
        if not isinstance(content, dict) or "sources" in content:
            raise ModelRefused(MANIFEST_FILE, "must be an object of the manifest's fields")
        stated = content.get("defaults", {})
        sources = {name: Source.MANIFEST if name in stated else Source.WAN_REFERENCE for name in Defaults.model_fields}
        shift = scheduler_flow_shift(folder)
        if "flow_shift" not in stated and shift is not None:
            content["defaults"] = {**stated, "flow_shift": shift}
            sources["flow_shift"] = Source.SCHEDULER_CONFIG
        try:
            return cls.model_validate({**content, "sources": sources})
        except ValidationError as invalid:
            first = invalid.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ModelRefused(MANIFEST_FILE, f"{field}: {first['msg']}") from None


def scheduler_flow_shift(folder: Path) -> float | None:
    """The flow shift that `scheduler/scheduler_config.json` states, or None."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as unreadable:
        raise ModelRefused("scheduler/scheduler_config.json", f"is not readable JSON: {unreadable}") from unreadable
    shift = config.get("flow_shift", config.get("shift"))
    return float(shift) if shift is not None else None
