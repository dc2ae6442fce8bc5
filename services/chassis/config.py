"""One frozen configuration per process: flag, then `RUSHES_*` variable, then default. A wrong value stops it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from services.chassis.flags import Flags
from services.chassis.tls import TlsFiles


def _check_listen(value: str) -> str:
    for address in value.split(","):
        if address.startswith("unix:"):
            if len(address) <= len("unix:") or len(address.removeprefix("unix:").encode()) > 107:
                raise ValueError("a unix socket is unix:/path.sock, the path at most 107 bytes long")
            continue
        host, colon, port = address.rpartition(":")
        if not (colon and host and port.isdecimal() and int(port) < 65536):
            raise ValueError("each address is host:port (port 0 takes any free one) or unix:/path.sock")
    return value


Listen = Annotated[str, AfterValidator(_check_listen)]
"""Addresses to serve on, separated by commas: `host:port` or `unix:/path.sock`."""

_THIS_MACHINE: Final = ("unix:", "127.", "localhost:", "[::1]:")


def beyond_this_machine(listen: str) -> list[str]:
    """The addresses of `listen` that other machines can reach."""
    return [address for address in listen.split(",") if not address.startswith(_THIS_MACHINE)]


class ServiceConfig(BaseSettings):
    """What every service can be told. A service's own configuration is a subclass with its own fields."""

    model_config = SettingsConfigDict(
        env_prefix="RUSHES_", env_nested_delimiter="__", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    listen: Listen = Field(
        default="127.0.0.1:0", description="addresses to serve on: host:port or unix:/path.sock, separated by commas"
    )
    metrics_port: int | None = Field(
        default=None, ge=0, lt=65536, description="port of the Prometheus endpoint; none if unset"
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="OTLP/gRPC collector for traces and metrics, http(s)://host:port",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is logged"
    )
    grace_seconds: float = Field(
        default=30.0, ge=0, le=86400, description="how long calls in flight may go on after SIGTERM"
    )
    drain_seconds: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="how long to accept calls as NOT_SERVING first, until balancers have noticed",
    )
    max_message_bytes: int = Field(default=4 * 2**20, ge=2**20, le=2**30, description="largest message, both ways")
    tls_certificate: Path | None = Field(
        default=None, description="PEM certificate chain of this server; plaintext if unset"
    )
    tls_key: Path | None = Field(default=None, description="PEM key of the certificate")
    tls_authority: Path | None = Field(
        default=None, description="PEM certificates of the authority that clients must show"
    )

    @model_validator(mode="after")
    def _check_tls(self) -> "ServiceConfig":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_authority is not None and self.tls_certificate is None:
            raise ValueError("tls_authority needs tls_certificate and tls_key")
        return self

    @property
    def exposed(self) -> list[str]:
        """The addresses of `listen` that other machines can reach."""
        return beyond_this_machine(self.listen)

    @property
    def tls(self) -> TlsFiles | None:
        """The server's TLS files, or None for plaintext."""
        if self.tls_certificate is None:
            return None
        return TlsFiles(certificate=self.tls_certificate, key=self.tls_key, authority=self.tls_authority)


ConfigT = TypeVar("ConfigT", bound=BaseSettings)


def load(config_class: type[ConfigT], argv: Sequence[str], *, program: str | None = None) -> ConfigT:
    """The configuration of this process from `argv` (without the program's name) and the environment.

    `--help` prints every flag with its variable and default, and exits 0. A value that breaks a rule, a missing one and
    an unknown flag exit 2 with the flag or variable and the rule on stderr; the value itself is never repeated.
    """
    flags = Flags(config_class, program)
    given = flags.parse(argv)
    try:
        return config_class(**given)
    except ValidationError as error:
        complaints = [flags.complaint(given, detail["loc"], detail["msg"], detail["type"]) for detail in error.errors()]
    except SettingsError as error:
        complaints = [flags.unreadable(str(error))]
    sys.stderr.write("".join(f"{complaint}\n" for complaint in complaints))
    raise SystemExit(2)
