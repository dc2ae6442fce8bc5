"""A channel to a gateway: address, transport security, API key."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

import grpc

MAX_MESSAGE_BYTES = 4 * 1024 * 1024

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The library waits up to two minutes before it dials again; a gateway restarts in seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

_HOST_PORT = re.compile(r"^(?:dns:///)?(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(\d{1,5})$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """Transport security. Without `ca` the system's roots are trusted; `certificate` and `key` identify the client.

    The files are PEM. `server_name` is the name to expect in the server's certificate, where it is not the address's.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None


def target(address: str) -> str:
    """The address as gRPC wants it: `host:port`, `[v6]:port`, `dns:///host:port` or `unix:/path.sock`.

    Raises ValueError naming the rule.
    """
    if address.startswith("unix:"):
        if not address.removeprefix("unix:").strip("/"):
            raise ValueError(f"gateway address {address!r}: unix: must be followed by a path")
        return address
    match = _HOST_PORT.match(address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"gateway address {address!r}: must be host:port or unix:/path.sock")
    return address


def is_local(address: str) -> bool:
    """True if nothing that is sent to the address leaves this machine."""
    if address.startswith("unix:"):
        return True
    match = _HOST_PORT.match(address)
    host = match[1].strip("[]") if match else address
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_channel(address: str, *, tls: Tls | None = None) -> grpc.aio.Channel:
    """A channel to the address; it connects when it is first used. Raises ValueError and OSError (unreadable PEM)."""
    where = target(address)
    # A proxy of the environment is for the world outside, not for a gateway on this machine.
    options = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not is_local(address))))
    if tls is None:
        return grpc.aio.insecure_channel(where, options=options)
    if (tls.certificate is None) != (tls.key is None):
        raise ValueError("tls: certificate and key must be given together")
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes() if tls.ca else None,
        private_key=tls.key.read_bytes() if tls.key else None,
        certificate_chain=tls.certificate.read_bytes() if tls.certificate else None,
    )
    name = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
    return grpc.aio.secure_channel(where, credentials, options=(*options, *name))
