"""Tenants, keys, quotas, usage; cached answers, batches, deletion, another one."""

import asyncio
import time
import uuid
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from pydantic import ValidationError

from rushes.v1 import catalog_pb2, usage_pb2
from rushes.v1 import generation_pb2 as gp
from rushes.v1.usage_pb2_grpc import UsageServiceStub
from services.gateway.config import GatewayConfig
from services.gateway.store.database import open_database
from services.gateway.store.jobs import JobStore
from services.gateway.store.tenants import Quota, TenantStore
from services.gateway.views import STORY
from tests.gateway.history_checker import check_histories
from tests.gateway.stage_servers import Behaviour
from tests.gateway.suite import clip, eventually, kind, kinds, suite
from tests.gateway.test_generation import reason

SPEC = gp.GenerationSpec(prompt="a red circle", seed=7)
CREATE = gp.CreateGenerationRequest(spec=SPEC)


@asynccontextmanager
async def tenant_store(url: str):
    """The tenants of a database, as an administrator reaches them."""
    async with open_database(url) as database:
        jobs = JobStore(database, clock=time.time, story=STORY)
        yield TenantStore(database, secret=await jobs.secret("api-keys"), clock=time.time)


def bearer(key: str):
    return (("authorization", f"Bearer {key}"),)


async def refused(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), reason(error.value)


async def test_every_method_is_closed_without_a_valid_key(tmp_path):
    wrong = bearer("rsh_00000000_" + "x" * 43)
    # Whatever else is asked for: the key is asked for first, once the request is one.
    valid = {"spec": SPEC, "specs": [SPEC], "id": "x"}
    async with suite(tmp_path, api_keys=True) as running, grpc.aio.insecure_channel(running.address) as channel:
        for file in (gp, catalog_pb2, usage_pb2):
            for service in file.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    asked = method.input_type
                    given = {name: value for name, value in valid.items() if name in asked.fields_by_name}
                    request = GetMessageClass(asked)(**given).SerializeToString()
                    for metadata, expected in (((), "API_KEY_MISSING"), (wrong, "API_KEY_INVALID")):
                        path = f"/{service.full_name}/{method.name}"
                        if method.server_streaming:
                            call = channel.unary_stream(path)(request, metadata=metadata).read()
                        else:
                            call = channel.unary_unary(path)(request, metadata=metadata)
                        assert await refused(call) == (grpc.StatusCode.UNAUTHENTICATED, expected), path


async def test_keys_open_their_own_tenant_and_nothing_else(tmp_path):
    async with suite(tmp_path, api_keys=True) as running, tenant_store(running.config.database_url) as store:
        for name in ("acme", "other"):
            await store.put(name, Quota())
        acme, known = await store.issue("acme")
        other, _ = await store.issue("other")
        reader, _ = await store.issue("acme", scopes=["read"])
        late, _ = await store.issue("acme", expires=time.time() - 1)
        assert await refused(running.stub.CreateGeneration(CREATE, metadata=bearer(reader))) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "SCOPE_MISSING",
        )
        assert (await refused(running.stub.CreateGeneration(CREATE, metadata=bearer(late))))[1] == "API_KEY_EXPIRED"
        made = (await running.stub.CreateGeneration(CREATE, metadata=bearer(acme))).generation
        get = gp.GetGenerationRequest(id=made.id)
        assert (await running.stub.GetGeneration(get, metadata=bearer(reader))).generation.id == made.id
        hidden = await refused(running.stub.GetGeneration(get, metadata=bearer(other)))
        assert hidden == (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND")
        listed = await running.stub.ListGenerations(gp.ListGenerationsRequest(), metadata=bearer(other))
        assert not listed.generations
        await store.revoke(known.prefix)
        assert (await refused(running.stub.GetGeneration(get, metadata=bearer(acme))))[1] == "API_KEY_INVALID"


async def test_quotas_refuse_and_name_themselves(tmp_path):
    behaviour = Behaviour(step_seconds=0.3, slots=1)
    async with suite(tmp_path, behaviour, api_keys=True) as running, tenant_store(running.config.database_url) as store:
        for name, quota in {
            "rate": Quota(requests_per_minute=1),
            "queue": Quota(max_queued=1),
            "month": Quota(device_seconds_per_month=0.0),
        }.items():
            await store.put(name, quota)
            key, _ = await store.issue(name)
            codes = []
            for _ in range(4):
                try:
                    await running.stub.CreateGeneration(CREATE, metadata=bearer(key))
                except grpc.aio.AioRpcError as error:
                    codes.append((error.code(), reason(error)))
            expected = {"rate": "RATE_LIMITED", "queue": "TENANT_QUEUE_FULL", "month": "QUOTA_EXHAUSTED"}[name]
            assert set(codes) == {(grpc.StatusCode.RESOURCE_EXHAUSTED, expected)}, name


async def test_usage_counts_every_generation_once(tmp_path):
    async with suite(tmp_path, Behaviour(step_seconds=0.01)) as running:
        for _ in range(3):
            await running.generate()
        async with grpc.aio.insecure_channel(running.address) as channel:
            stub = UsageServiceStub(channel)
            (bucket,) = (await stub.GetUsage(usage_pb2.GetUsageRequest())).buckets
            assert (bucket.generations, bucket.frames, bucket.pixels) == (3, 15, 3 * 64 * 64 * 5)
            assert bucket.denoise_seconds >= 3 * 6 * 0.01
            empty = usage_pb2.GetUsageRequest()
            empty.start_time.FromSeconds(10)
            empty.end_time.FromSeconds(10)
            assert (await refused(stub.GetUsage(empty)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_finished_clip_answers_an_equal_request_that_allows_it(tmp_path):
    async with suite(tmp_path) as running:
        first = await running.generate(SPEC)
        again = await running.generate(SPEC, cache=gp.CACHE_MODE_PREFER)
        assert again[-1].succeeded.generation.cached_from == first[0].generation_id
        assert clip(again) == clip(first)
        assert running.behaviour.calls.count("denoise") == 1
        bypass = await running.generate(SPEC, cache=gp.CACHE_MODE_BYPASS)
        assert not bypass[-1].succeeded.generation.cached_from
        assert running.behaviour.calls.count("denoise") == 2


async def test_equal_requests_in_flight_are_computed_once(tmp_path):
    async with suite(tmp_path, Behaviour(step_seconds=0.1)) as running:
        leader = asyncio.create_task(running.generate(SPEC))
        await eventually(lambda: running.behaviour.steps)
        followers = [asyncio.create_task(running.generate(SPEC, cache=gp.CACHE_MODE_PREFER)) for _ in range(3)]
        clips = {clip(await one) for one in (leader, *followers)}
        assert len(clips) == 1
        assert running.behaviour.calls.count("denoise") == 1
        async with open_database(running.config.database_url) as database:
            await check_histories(database, kind, all_ended=True)


async def test_followers_of_a_cancelled_generation_are_computed_for_themselves(tmp_path):
    async with suite(tmp_path, Behaviour(step_seconds=0.1)) as running:
        leader = (await running.stub.CreateGeneration(CREATE)).generation
        follower = asyncio.create_task(running.generate(SPEC, cache=gp.CACHE_MODE_PREFER))
        await eventually(lambda: running.behaviour.steps)
        await running.stub.CancelGeneration(gp.CancelGenerationRequest(id=leader.id))
        assert kinds(await follower)[-1] == "succeeded"


async def test_a_batch_is_accepted_as_a_whole_and_once(tmp_path):
    async with suite(tmp_path) as running:
        specs = [gp.GenerationSpec(prompt=f"number {place}") for place in range(5)]
        request = gp.CreateGenerationsRequest(request_id=str(uuid.uuid4()), specs=specs)
        made = (await running.stub.CreateGenerations(request)).generations
        again = (await running.stub.CreateGenerations(request)).generations
        assert [one.id for one in again] == [one.id for one in made]
        assert [one.spec.prompt for one in made] == [one.prompt for one in specs]
        assert {one.spec.tier for one in made} == {gp.TIER_DRAFT}
        bad = gp.CreateGenerationsRequest(specs=[*specs, gp.GenerationSpec(prompt="a", width=1024)])
        assert (await refused(running.stub.CreateGenerations(bad)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert len((await running.stub.ListGenerations(gp.ListGenerationsRequest())).generations) == 5


async def test_another_one_has_the_same_settings_and_another_seed(tmp_path):
    async with suite(tmp_path) as running:
        first = (await running.generate(SPEC))[-1].succeeded.generation
        request = gp.RegenerateGenerationRequest(id=first.id)
        second = (await running.stub.RegenerateGeneration(request)).generation
        assert second.spec.seed != first.spec.seed
        second.spec.seed = first.spec.seed
        assert second.spec == first.spec


async def test_a_deleted_generation_is_gone(tmp_path):
    async with suite(tmp_path, Behaviour(step_seconds=0.1)) as running:
        made = (await running.stub.CreateGeneration(CREATE)).generation
        delete = gp.DeleteGenerationRequest(id=made.id)
        assert await refused(running.stub.DeleteGeneration(delete)) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "NOT_ENDED",
        )
        await running.stub.CancelGeneration(gp.CancelGenerationRequest(id=made.id))
        await running.stub.DeleteGeneration(delete)
        assert (await refused(running.stub.DeleteGeneration(delete)))[0] is grpc.StatusCode.NOT_FOUND


def test_a_gateway_beyond_this_machine_needs_keys_and_tls():
    for listen in ("0.0.0.0:50050", "127.0.0.1:0,10.0.0.1:50050"):
        with pytest.raises(ValidationError, match="beyond this machine"):
            GatewayConfig(listen=listen)
        assert GatewayConfig(listen=listen, insecure=True).listen == listen
    for listen in ("127.0.0.1:0", "unix:/tmp/x.sock", "localhost:0"):
        assert GatewayConfig(listen=listen).listen == listen
    with pytest.raises(ValidationError, match="each address is host:port"):
        GatewayConfig(listen="50050")
