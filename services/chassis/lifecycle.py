"""The life of a service: load, listen, SERVING, stop, NOT_SERVING, drain, stop with grace, close in reverse order.

The port opens when everything is loaded, so an open port is readiness. Signals belong to `serve`, which owns its
process; `run_server` has no global state and may run many times in one process and on one event loop.
"""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from opentelemetry.sdk.trace.export import SpanExporter

from services.chassis.config import ServiceConfig
from services.chassis.errors import RushesError
from services.chassis.logs import configure_logging, logger
from services.chassis.server import YEARS, Mounted, listening
from services.chassis.signals import stop_signals
from services.chassis.telemetry import Telemetry, configure

__all__ = ["Mounted", "OpenService", "Running", "run_server", "serve"]

OpenService: TypeAlias = Callable[[asyncio.Event], AbstractAsyncContextManager[Sequence[Mounted]]]
"""Called with the event that is set when draining begins: a stage then checkpoints and hands its work back.

Entering loads (to refuse to start is to raise), leaving closes what was opened.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A service that serves. `addresses` are as bound, in the form that a client dials."""

    name: str
    addresses: tuple[str, ...]
    metrics_address: str | None
    draining: asyncio.Event = field(repr=False)
    telemetry: Telemetry = field(repr=False)
    server: grpc.aio.Server = field(repr=False)

    @property
    def address(self) -> str:
        """The first address."""
        return self.addresses[0]


@asynccontextmanager
async def run_server(
    config: ServiceConfig, name: str, open_service: OpenService, *, span_exporters: Sequence[SpanExporter] = ()
) -> AsyncIterator[Running]:
    """Serve for the block, and drain at its end; `span_exporters` get each span as it ends.

    Raises what `open_service` raises, and `OSError` for an address that cannot be listened on.
    """
    draining = asyncio.Event()
    async with AsyncExitStack() as stack:
        telemetry = configure(name, config, span_exporters=span_exporters)
        stack.push_async_callback(telemetry.close)
        with telemetry.current():
            mounted = await stack.enter_async_context(open_service(draining))
            metrics_address = None
            if config.metrics_port is not None:
                endpoint = telemetry.endpoint(_metrics_host(config), config.metrics_port)
                metrics_address = await stack.enter_async_context(endpoint)
            bound = await stack.enter_async_context(listening(config, telemetry, mounted, draining))
        yield Running(
            name=name,
            addresses=bound.addresses,
            metrics_address=metrics_address,
            draining=draining,
            telemetry=telemetry,
            server=bound.server,
        )


def serve(config: ServiceConfig, name: str, open_service: OpenService) -> None:
    """Be the service `name` until SIGTERM or SIGINT; a second signal kills.

    Prints `ready <name> <address>[,<address>…]` on stdout once it serves. Exits 1, with the reason in the log, when it
    cannot start or breaks.
    """
    configure_logging(name, config.log_level)
    try:
        asyncio.run(_serve(config, name, open_service))
    except RushesError as error:
        logger(__name__).error("failed", reason=error.reason, message=error.message)
        raise SystemExit(1) from None
    except Exception:  # noqa: BLE001 - the end of the process: whatever it was goes to the log, and the exit code says so
        logger(__name__).exception("failed")
        raise SystemExit(1) from None


async def _serve(config: ServiceConfig, name: str, open_service: OpenService) -> None:
    stop = asyncio.Event()
    ready = asyncio.Event()
    loading = asyncio.current_task()

    def on_signal() -> None:
        stop.set()
        if loading is not None and not ready.is_set():
            loading.cancel()

    with stop_signals(on_signal):
        try:
            async with run_server(config, name, open_service) as running:
                ready.set()
                _settle()
                sys.stdout.write(f"ready {name} {','.join(running.addresses)}\n")
                sys.stdout.flush()
                await _until(stop, running.server)
        except asyncio.CancelledError:
            if ready.is_set() or not stop.is_set():
                raise
            logger(__name__).info("stopped_while_loading")


def _settle() -> None:
    """Take what was loaded out of the garbage collector's rounds, each of which holds up every call for as long."""
    gc.collect()
    gc.freeze()


async def _until(stop: asyncio.Event, server: grpc.aio.Server) -> None:
    """Wait for `stop`. Raises what broke the server when it ends by itself."""
    asked = asyncio.create_task(stop.wait())
    # Without a timeout grpc.aio hands out the future that its own `stop` waits for, and cancelling would break that.
    ended = asyncio.create_task(server.wait_for_termination(timeout=YEARS))
    try:
        await asyncio.wait({asked, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await ended
            raise RuntimeError("the gRPC server ended by itself")
    finally:
        asked.cancel()
        ended.cancel()
        await asyncio.wait({asked, ended})


def _metrics_host(config: ServiceConfig) -> str:
    tcp = [address for address in config.listen.split(",") if not address.startswith("unix:")]
    return tcp[0].rpartition(":")[0].strip("[]") if tcp else "127.0.0.1"
