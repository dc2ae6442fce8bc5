"""What the denoiser can be told."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.model.config import ModelServiceConfig


class DenoiserConfig(ModelServiceConfig):
    """The configuration of one denoiser process."""

    experts: Literal["high", "low", "both"] = Field("both", description="which experts this process loads and serves")
    slots: int = Field(1, ge=1, le=64, description="generations that may be denoised at once, step by step in turn")
    retry_after_seconds: float = Field(
        5.0, gt=0, le=3600, description="when a caller that finds every slot taken is told to come back"
    )
    adapter_cache_bytes: int = Field(
        2 * 2**30, ge=0, description="how much of the adapters stays on the device between generations"
    )
    guidance_batch: Literal["auto", "measure", "on", "off"] = Field(
        "auto",
        description="evaluate positive and negative prompt in one batch: auto does so for small clips, measure where it"
        " is faster here",
    )
    prefix_cache_bytes: int = Field(
        512 * 2**20,
        ge=0,
        description="host memory for states at the expert boundary, which requests that ask for it begin from",
    )
    engines: Path | None = Field(
        None,
        description="folder of experts that services.denoiser.export wrote, run by TensorRT or, on the CPU, ONNX"
        " Runtime",
    )
    warm_up: bool = Field(True, description="run each expert once before serving")
    strict_reference: bool = Field(
        False, description="refuse to start where the model differs from Wan's reference in anything that is checked"
    )
