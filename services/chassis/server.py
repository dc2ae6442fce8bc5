"""The gRPC server of a service: its ports, what every service serves beside its own, and how it stops."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.chassis.config import ServiceConfig
from services.chassis.errors import ErrorInterceptor
from services.chassis.inflight import InFlight
from services.chassis.logs import logger
from services.chassis.telemetry import Telemetry, TelemetryInterceptor
from services.chassis.validation import ValidationInterceptor

_UNIX: Final = "unix:"
_SETTLE_SECONDS: Final = 0.2
YEARS: Final = 10.0**9
"""Seconds that stand for ever, where grpc.aio does another thing without a timeout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mounted:
    """One gRPC service of a process: the generated `add_…_to_server`, its servicer, and its full name."""

    add_to_server: Callable[[Any, grpc.aio.Server], None]
    servicer: Any
    full_name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """A server that serves: the addresses as bound, in the form that a client dials."""

    server: grpc.aio.Server
    addresses: tuple[str, ...]


@asynccontextmanager
async def listening(
    config: ServiceConfig, telemetry: Telemetry, mounted: Sequence[Mounted], draining: asyncio.Event
) -> AsyncIterator[Listening]:
    """Serve `mounted` with health, reflection and channelz for the block; drain at its end, `draining` set first.

    Raises `OSError` for an address that cannot be listened on.
    """
    in_flight = InFlight()
    server = grpc.aio.server(
        interceptors=(in_flight, TelemetryInterceptor(telemetry), ErrorInterceptor(), ValidationInterceptor()),
        options=_options(config),
    )
    names = [service.full_name for service in mounted]
    for service in mounted:
        service.add_to_server(service.servicer, server)
    status = await _health(names)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    channelz.add_channelz_servicer(server)
    own = (health.SERVICE_NAME, reflection.SERVICE_NAME, "grpc.channelz.v1.Channelz")
    reflection.enable_server_reflection((*names, *own), server)

    if config.exposed and config.tls is None:
        logger(__name__).warning("plaintext", addresses=config.exposed, rule="anyone on the way can read and change it")
    addresses = tuple(_bind(server, address, config) for address in config.listen.split(","))
    await server.start()
    for name in ("", *names):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    logger(__name__).info("serving", addresses=addresses, services=names)
    try:
        yield Listening(server=server, addresses=addresses)
    finally:
        draining.set()
        await status.enter_graceful_shutdown()
        await _drain(server, in_flight, config)
        _remove_sockets(addresses)


async def _health(names: Sequence[str]) -> health.aio.HealthServicer:
    # Before anything is set grpcio's servicer answers SERVING for the server as a whole.
    status = health.aio.HealthServicer()
    for name in ("", *names):
        await status.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    return status


async def _drain(server: grpc.aio.Server, in_flight: InFlight, config: ServiceConfig) -> None:
    log = logger(__name__)
    stopping: asyncio.Task[None] | None = None
    try:
        log.info("draining", in_flight=in_flight.describe(), seconds=config.drain_seconds)
        await asyncio.sleep(config.drain_seconds)
        # Refuses new calls from here on. The grace is kept below and not by grpc.aio: when its own runs out just as the
        # other stop has destroyed the server, it reaches into freed memory.
        stopping = asyncio.create_task(server.stop(YEARS))
        if await in_flight.idle(config.grace_seconds):
            # What is left are health watches and reflection streams; without any, the server stops by itself.
            await asyncio.wait({stopping}, timeout=_SETTLE_SECONDS)
        else:
            log.warning("grace_over", cancelled=in_flight.describe())
    finally:
        await server.stop(None)  # Cancels what is left.
        if stopping is not None:
            await stopping
    if not await in_flight.idle(config.grace_seconds):
        log.error("calls_left_behind", in_flight=in_flight.describe())
    log.info("stopped")


def _options(config: ServiceConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        # With it two servers on one port would share its traffic in silence.
        ("grpc.so_reuseport", 0),
        # The suite's clients ping every 40 s, also below a quiet stream; gRPC would hang up after two such pings.
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def _bind(server: grpc.aio.Server, address: str, config: ServiceConfig) -> str:
    if address.startswith(_UNIX):
        _refuse_living_socket(address)
    try:
        tls = config.tls
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, tls.server_credentials())
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: it is in use, or not an address of this machine") from error
    return address if address.startswith(_UNIX) else f"{address.rpartition(':')[0]}:{port}"


def _remove_sockets(addresses: Sequence[str]) -> None:
    for address in addresses:
        if address.startswith(_UNIX):
            Path(address.removeprefix(_UNIX)).unlink(missing_ok=True)


def _refuse_living_socket(address: str) -> None:
    """gRPC unlinks a socket file that is in its way, also one that another server listens on."""
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(address.removeprefix(_UNIX)) == 0:
            raise OSError(f"cannot listen on {address}: another process does")
