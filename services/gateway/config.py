"""What the gateway can be told."""

from pydantic import Field, model_validator

from services.chassis.config import Listen, ServiceConfig
from services.gateway.tier_config import TiersConfig


class GatewayConfig(ServiceConfig):
    """Configuration of one gateway process."""

    listen: Listen = Field("127.0.0.1:50050", description="addresses to serve on, separated by commas")
    encoder: str = Field("127.0.0.1:50051", description="addresses of the encoders, separated by commas")
    denoiser: str = Field("127.0.0.1:50052", description="addresses of the denoisers of both experts")
    postprocess: str = Field("127.0.0.1:50053", description="addresses of the postprocessors")
    database_url: str = Field(
        "sqlite:///rushes.db", pattern=r"^(sqlite|postgresql)://", description="sqlite:///path or postgresql://…"
    )
    artifacts_url: str = Field("rushes-artifacts", description="folder, or s3://, gs://, az:// URL, for clips")
    stage_wait_seconds: float = Field(60.0, ge=0, description="how long to wait at start for all stages to answer")
    refresh_seconds: float = Field(2.0, gt=0, le=60, description="how often the stages are asked what they are")
    lease_seconds: float = Field(15.0, ge=0.2, le=600, description="how long a silent gateway keeps a generation")
    max_losses: int = Field(3, ge=1, le=100, description="leases that a generation may lose before it fails")
    max_stage_losses: int = Field(
        5,
        ge=0,
        le=100,
        description="how often in a row a stage may be lost under a generation, with no checkpoint in between, before"
        " it fails",
    )
    max_queued: int = Field(10_000, ge=1, description="generations that may wait at once")
    tiers: TiersConfig = TiersConfig()
    checkpoint_seconds: float = Field(30.0, ge=0, description="device time between checkpoints; 0 for every step")
    heartbeat_seconds: float = Field(10.0, ge=0.05, le=60, description="silence after which a stream says it is alive")
    retention_hours: float = Field(168.0, gt=0, description="how long a finished generation is kept")
    sweep_seconds: float = Field(600.0, gt=0, description="how often what is past retention is cleared up")
    api_keys: bool = Field(False, description="ask every caller for an API key")
    insecure: bool = Field(False, description="serve beyond this machine without keys or TLS")

    @model_validator(mode="after")
    def _check_exposure(self) -> "GatewayConfig":
        if self.exposed and not self.insecure and not (self.api_keys and self.tls_certificate):
            raise ValueError(f"listen {self.exposed[0]} is beyond this machine: it needs api_keys and TLS, or insecure")
        return self

    @property
    def encoders(self) -> list[str]:
        """Addresses of the encoders."""
        return _split(self.encoder)

    @property
    def denoisers(self) -> list[str]:
        """Addresses of the denoisers."""
        return _split(self.denoiser)

    @property
    def postprocessors(self) -> list[str]:
        """Addresses of the postprocessors."""
        return _split(self.postprocess)


def _split(addresses: str) -> list[str]:
    return [address.strip() for address in addresses.split(",") if address.strip()]
