"""What every process that holds weights can be told."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.chassis.config import ServiceConfig


class ModelServiceConfig(ServiceConfig):
    """The configuration of a service that loads a part of a model."""

    model: Path = Field(description="folder of the model in diffusers layout")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto, cpu or cuda:N; auto is the first GPU, else the CPU",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="type of the weights; auto is bfloat16 on a GPU and float32 on the CPU"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads that one computation uses; torch's own choice if unset"
    )
