"""A real gateway over the small stages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from services.chassis.lifecycle import run_server
from services.gateway.config import GatewayConfig
from services.gateway.service import open_gateway
from tests.gateway.stage_servers import Addresses, Behaviour, stages

SETTINGS: dict[str, Any] = {
    "listen": "127.0.0.1:0",
    "grace_seconds": 5,
    "stage_wait_seconds": 60,
    "refresh_seconds": 0.2,
    "lease_seconds": 30,
    "checkpoint_seconds": 0,
}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A running gateway and what its stages do."""

    stub: GenerationServiceStub
    address: str
    behaviour: Behaviour
    config: GatewayConfig
    metrics: CollectorRegistry

    async def generate(self, spec: gp.GenerationSpec | None = None, **request: Any) -> list[gp.GenerationEvent]:
        """Every event of a new generation."""
        asked = gp.GenerateRequest(spec=spec or gp.GenerationSpec(prompt="a red circle", seed=7), **request)
        return [response.event async for response in self.stub.Generate(asked)]

    async def until(self, call: Any, kind: str) -> gp.GenerationEvent:
        """The next event of this kind on a stream."""
        async for response in call:
            if response.event.WhichOneof("event") == kind:
                return response.event
        raise AssertionError(f"the stream ended without {kind}")


def kind(payload: bytes) -> str:
    """What a stored event is."""
    return str(gp.GenerationEvent.FromString(payload).WhichOneof("event"))


def kinds(events: list[gp.GenerationEvent]) -> list[str | None]:
    """What durable events are, in order."""
    return [event.WhichOneof("event") for event in events if event.sequence]


def clip(events: list[gp.GenerationEvent]) -> bytes:
    """The clip that a viewer has put together."""
    data = b""
    for event in events:
        match event.WhichOneof("event"):
            case "rendering":
                data = b""
            case "fragment":
                assert event.fragment.offset == len(data)
                data += event.fragment.data
    return data


@asynccontextmanager
async def gateway(addresses: Addresses, behaviour: Behaviour, **settings: Any) -> AsyncIterator[Suite]:
    """A gateway over stages that run."""
    at = {"encoder": addresses.encoder, "denoiser": addresses.denoiser, "postprocess": addresses.postprocess}
    config = GatewayConfig(**{**SETTINGS, **at, **settings})
    async with (
        run_server(config, "gateway", lambda draining: open_gateway(config, draining)) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        yield Suite(
            stub=GenerationServiceStub(channel),
            address=running.address,
            behaviour=behaviour,
            config=config,
            metrics=running.telemetry.registry,
        )


@asynccontextmanager
async def suite(folder: Path, behaviour: Behaviour | None = None, **settings: Any) -> AsyncIterator[Suite]:
    """Stages and a gateway on a SQLite file in `folder`."""
    behaviour = behaviour or Behaviour()
    stored = {"database_url": f"sqlite:///{folder}/rushes.db", "artifacts_url": f"{folder}/artifacts"}
    async with stages(behaviour) as addresses, gateway(addresses, behaviour, **{**stored, **settings}) as running:
        yield running


async def eventually(condition: Any) -> None:
    """Wait until `condition()` holds; the test's own timeout ends it."""
    while not condition():  # noqa: ASYNC110 - what is waited for is a fact of the stages, and rings no bell
        await asyncio.sleep(0.01)
