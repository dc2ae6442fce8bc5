"""What the encoder can be told."""

from pydantic import Field

from services.model.config import ModelServiceConfig


class EncoderConfig(ModelServiceConfig):
    """The configuration of one encoder process."""

    slots: int = Field(16, ge=1, le=1024, description="calls that may be served at once; the device does one at a time")
    retry_after_seconds: float = Field(
        1.0, gt=0, le=3600, description="when a caller that finds every slot taken is told to come back"
    )
    cache_mebibytes: int = Field(
        256, ge=0, le=2**20, description="memory for the embeddings of recent texts; 0 keeps none"
    )
