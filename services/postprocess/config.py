"""What the postprocess service can be told."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from services.model.config import ModelServiceConfig

TileEdge = Annotated[int, Field(ge=0, le=8192, multiple_of=16)]


class PostprocessConfig(ModelServiceConfig):
    """The configuration of one postprocess process."""

    content_producer: str = Field(
        "Rushes", min_length=1, max_length=256, description="who is named as the producer in the metadata of a clip"
    )
    c2pa_certificate: Path | None = Field(
        None, description="PEM certificate chain that finished files are signed with (C2PA); not signed if unset"
    )
    c2pa_key: Path | None = Field(None, description="PEM private key of the certificate")
    c2pa_algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] | None = Field(
        None, description="algorithm of the signature; the key's own if unset"
    )
    slots: int = Field(2, ge=1, le=64, description="clips that may be rendered at once, chunk by chunk in turn")
    retry_after_seconds: float = Field(
        2.0, gt=0, le=3600, description="when a caller that finds every slot taken is told to come back"
    )
    tile_size: Literal["auto"] | TileEdge = Field(
        "auto",
        description="longest edge of a decoder tile in pixels, 0 for whole pictures; auto takes whole pictures or the"
        " largest tiles that the memory for decoding allows",
    )
    tile_overlap: int = Field(96, ge=0, le=1024, multiple_of=8, description="least overlap of two tiles in pixels")
    decode_memory_bytes: int | None = Field(
        None,
        gt=0,
        description="memory for the decoding of all slots, which auto tiles go by; if unset, what is free on a GPU"
        " after loading, and not counted on the CPU",
    )
    hardware_encoder: bool = Field(
        True, description="encode by NVENC where an encoder opens; its bytes may differ from run to run"
    )
    encoder_threads: int = Field(
        1,
        ge=0,
        le=64,
        description="threads of the video encoder; with 1 equal frames give equal bytes, 0 takes all cores",
    )
    upscaler_runtime: Literal["auto", "torch", "onnxruntime", "tensorrt"] = Field(
        "auto", description="what runs upscaling networks; auto measures those present at the start"
    )
    upscaler_tile: int = Field(
        512, ge=64, le=768, description="longest edge in pixels that an upscaling network enlarges in one piece"
    )
    upscaler_margin: int = Field(
        32, ge=0, le=128, description="pixels around a tile that an upscaling network sees and that are thrown away"
    )
    frame_scaler: Literal["auto", "measure", "opencv", "dali"] = Field(
        "auto",
        description="what scales and colours frames; auto is OpenCV on the CPU and DALI, where installed, on a GPU; "
        "measure takes the fastest at the start",
    )

    @model_validator(mode="after")
    def _check_c2pa(self) -> "PostprocessConfig":
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise ValueError("c2pa_certificate and c2pa_key go together (RUSHES_C2PA_CERTIFICATE, RUSHES_C2PA_KEY)")
        if self.c2pa_algorithm is not None and self.c2pa_certificate is None:
            raise ValueError("c2pa_algorithm (RUSHES_C2PA_ALGORITHM) needs c2pa_certificate and c2pa_key")
        return self
