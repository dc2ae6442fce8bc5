"""What the denoiser can be told."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from services.denoiser.shapes import VideoShape
from services.model.config import ModelServiceConfig


def _check_shapes(value: str) -> str:
    for text in value.split(",") if value else ():
        VideoShape.parse(text)
    return value


Shapes = Annotated[str, AfterValidator(_check_shapes)]


class DenoiserConfig(ModelServiceConfig):
    """The configuration of one denoiser process."""

    experts: Literal["high", "low", "both", "swap"] = Field(
        "both",
        description="which experts this process serves; swap serves both with one at a time on the device",
    )
    swap_seconds: float = Field(
        60.0,
        ge=0,
        le=86400,
        description="with --experts swap: device seconds that a step may wait for those of the expert on the device",
    )
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
    step_sharing: Literal["off", "auto", "on"] = Field(
        "off",
        description="evaluate steps of runs of one shape together: auto where measurement at start says that it pays;"
        " results then equal those of lone runs within rounding and not bit for bit",
    )
    step_sharers: int = Field(4, ge=2, le=64, description="most runs that share a step")
    shapes: Shapes = Field(
        "",
        description="sizes to warm up and to measure at start, WIDTHxHEIGHTxFRAMES, separated by commas; the model's"
        " default if unset",
    )
    prefix_cache_bytes: int = Field(
        512 * 2**20,
        ge=0,
        description="host memory for states at the expert boundary, which requests that ask for it begin from",
    )
    preview_decoder: Literal["auto", "projection", "tiny", "vae", "measure"] = Field(
        "auto",
        description="what makes previews: auto takes the tiny decoder that the manifest names, else the projection;"
        " measure takes the model's own decoder where that is cheap",
    )
    attention: str = Field(
        "sdpa",
        description="the kernel for self-attention: sdpa leaves it to torch, measure takes the fastest at start, or a"
        " name that DescribeDenoiser lists",
    )
    linear: Literal["weights", "float8"] = Field(
        "weights", description="type of the blocks' linear layers; float8 is for GPUs of capability 8.9 and above"
    )
    compile: bool = Field(False, description="compile the blocks by torch.compile, at the first use of each size")
    compile_cache: Path | None = Field(None, description="folder that keeps what was compiled between processes")
    offload: bool = Field(False, description="keep the blocks in host memory, for cards that do not hold an expert")
    engines: Path | None = Field(
        None,
        description="folder of experts that services.denoiser.export wrote, run by TensorRT or, on the CPU, ONNX"
        " Runtime",
    )
    memory_bytes: int | None = Field(
        None,
        gt=0,
        description="memory for runs beside the weights, which admission goes by; if unset, what is free on a GPU"
        " after loading, and not counted on the CPU",
    )
    cache: Path | None = Field(None, description="folder for what is measured once, such as the memory of a size")
    warm_up: bool = Field(True, description="run each expert once before serving")
    strict_reference: bool = Field(
        False, description="refuse to start where the model differs from Wan's reference in anything that is checked"
    )

    def measured_shapes(self, default: VideoShape) -> tuple[VideoShape, ...]:
        """The sizes of `shapes`, or `default`."""
        return tuple(VideoShape.parse(text) for text in self.shapes.split(",")) if self.shapes else (default,)
