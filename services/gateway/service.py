"""The gateway put together: database, artifacts, stages, dispatcher, services."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from rushes.v1 import catalog_pb2_grpc, generation_pb2_grpc, usage_pb2_grpc
from services.chassis.lifecycle import Mounted
from services.chassis.logs import logger
from services.gateway import views
from services.gateway.access import Access
from services.gateway.artifacts import Artifacts
from services.gateway.catalog import Catalog
from services.gateway.catalog_service import CatalogService
from services.gateway.chain import Patience
from services.gateway.config import GatewayConfig
from services.gateway.cost_model import CostModel
from services.gateway.creation import Creation
from services.gateway.dispatcher import Dispatcher
from services.gateway.gauges import Gauges
from services.gateway.generation_service import GenerationService
from services.gateway.housekeeping import Housekeeping
from services.gateway.rehearsal import Rehearsal
from services.gateway.run import Workshop
from services.gateway.scheduler import Scheduler
from services.gateway.stages import Stages
from services.gateway.store.database import open_database
from services.gateway.store.jobs import JobStore
from services.gateway.store.leases import LeaseStore
from services.gateway.store.tenants import TenantStore
from services.gateway.usage_service import UsageService
from services.gateway.watch import Previews, Watches


@asynccontextmanager
async def open_gateway(config: GatewayConfig, draining: asyncio.Event) -> AsyncIterator[Sequence[Mounted]]:
    """Everything of one gateway for the block. It opens when every stage has answered, or the wait for them is over."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(config.database_url))
        artifacts = Artifacts.open(config.artifacts_url)
        stages = Stages(encoders=config.encoders, denoisers=config.denoisers, postprocessors=config.postprocessors)
        stack.push_async_callback(stages.close)
        tiers = config.tiers.tiers
        jobs = JobStore(database, clock=time.time, story=views.STORY)
        leases = LeaseStore(
            database,
            tiers=tiers,
            lease_seconds=config.lease_seconds,
            clock=time.time,
            story=views.STORY,
        )
        costs, previews, catalog = CostModel(), Previews(database.notifications), Catalog(stages)
        watches = await stack.enter_async_context(
            Watches(
                jobs,
                database.notifications,
                previews,
                heartbeat_seconds=config.heartbeat_seconds,
                remote_previews=database.postgres,
            )
        )
        scheduler = Scheduler(jobs, stages, costs, tiers=tiers, max_queued=config.max_queued)
        workshop = Workshop(
            pools=stages,
            jobs=jobs,
            leases=leases,
            artifacts=artifacts,
            previews=previews,
            costs=costs,
            tiers={tier.number: tier for tier in tiers},
            patience=Patience(losses=config.max_stage_losses, checkpoint_seconds=config.checkpoint_seconds),
            clock=time.time,
            share_previews=database.postgres,
        )
        dispatcher = Dispatcher(
            workshop,
            owner=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"[:64],
            notifications=database.notifications,
            draining=draining,
            lease_seconds=config.lease_seconds,
            max_losses=config.max_losses,
            grace_seconds=config.grace_seconds,
        )
        await stack.enter_async_context(_refreshing(stages, config))
        housekeeping = Housekeeping(
            jobs,
            artifacts,
            retention_seconds=config.retention_hours * 3600,
            interval_seconds=config.sweep_seconds,
            clock=time.time,
        )
        await stack.enter_async_context(_task(housekeeping.run(), "housekeeping"))
        pools = (stages.encoders, stages.denoisers, stages.postprocessors)
        gauges = Gauges(jobs, pools, tiers, interval=config.refresh_seconds)
        await stack.enter_async_context(_task(gauges.run(), "gauges"))
        await stack.enter_async_context(_dispatching(dispatcher, draining))
        page_key = await jobs.secret("page-tokens")
        tenants = TenantStore(database, secret=await jobs.secret("api-keys"), clock=time.time)
        access = Access(tenants, jobs, keys=config.api_keys, clock=time.time)
        creation = Creation(
            jobs=jobs,
            catalog=catalog,
            scheduler=scheduler,
            access=access,
            rehearsal=Rehearsal(stages.postprocessors),
            clock=time.time,
        )
        yield [
            Mounted(
                add_to_server=generation_pb2_grpc.add_GenerationServiceServicer_to_server,
                servicer=GenerationService(
                    jobs=jobs,
                    watches=watches,
                    creation=creation,
                    access=access,
                    scheduler=scheduler,
                    artifacts=artifacts,
                    postprocessors=stages.postprocessors,
                    page_key=page_key,
                ),
                full_name="rushes.v1.GenerationService",
            ),
            Mounted(
                add_to_server=catalog_pb2_grpc.add_CatalogServiceServicer_to_server,
                servicer=CatalogService(
                    catalog,
                    stages,
                    access,
                    tiers=tiers,
                    max_queued=config.max_queued,
                    max_message_bytes=config.max_message_bytes,
                ),
                full_name="rushes.v1.CatalogService",
            ),
            Mounted(
                add_to_server=usage_pb2_grpc.add_UsageServiceServicer_to_server,
                servicer=UsageService(tenants, access, clock=time.time),
                full_name="rushes.v1.UsageService",
            ),
        ]


@asynccontextmanager
async def _refreshing(stages: Stages, config: GatewayConfig) -> AsyncIterator[None]:
    """Ask the stages what they are, over and over; entered when all have answered or the wait is over."""
    deadline = time.monotonic() + config.stage_wait_seconds
    await stages.refresh()
    while not stages.complete and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        await stages.refresh()
    if not stages.complete:
        logger(__name__).warning("stages.missing", waited=config.stage_wait_seconds)

    async def refresh_for_ever() -> None:
        while True:
            await asyncio.sleep(config.refresh_seconds)
            await stages.refresh()

    async with _task(refresh_for_ever(), "stages"):
        yield


@asynccontextmanager
async def _dispatching(dispatcher: Dispatcher, draining: asyncio.Event) -> AsyncIterator[None]:
    """Dispatch for the block; at its end let what runs finish."""
    task = asyncio.create_task(dispatcher.run(), name="dispatcher")
    try:
        yield
    finally:
        draining.set()
        await task


@asynccontextmanager
async def _task(coroutine: Coroutine[None, None, None], name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(coroutine, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
