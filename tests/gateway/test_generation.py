"""A generation through the gateway and three real servers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from rushes.v1 import generation_pb2 as gp
from rushes.v1.generation_pb2_grpc import GenerationServiceStub
from services.chassis.lifecycle import run_server
from services.gateway.config import GatewayConfig
from services.gateway.service import open_gateway
from tests.gateway.stage_servers import Addresses, Behaviour, stages


@asynccontextmanager
async def gateway(addresses: Addresses, database_url: str, folder: Path, **settings) -> AsyncIterator[str]:
    config = GatewayConfig(
        listen="127.0.0.1:0",
        encoder=addresses.encoder,
        denoiser=addresses.denoiser,
        postprocess=addresses.postprocess,
        database_url=database_url,
        artifacts_url=str(folder / "artifacts"),
        **{"grace_seconds": 5, "stage_wait_seconds": 5, "refresh_seconds": 0.2, "lease_seconds": 2, **settings},
    )
    async with run_server(config, "gateway", lambda draining: open_gateway(config, draining)) as running:
        yield running.address


async def test_it(database_url, tmp_path):
    b = Behaviour()
    async with stages(b) as addresses, gateway(addresses, database_url, tmp_path) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = GenerationServiceStub(channel)
            events = [
                r.event async for r in stub.Generate(gp.GenerateRequest(spec=gp.GenerationSpec(prompt="a red circle")))
            ]
            print([(e.sequence, e.WhichOneof("event")) for e in events])
            print(events[-1])
