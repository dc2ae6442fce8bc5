"""Requests that cannot be meant: each is refused with one clear, typed error, and changes nothing."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from rushes.v1 import generation_pb2 as gp
from services.gateway.store.tenants import Quota
from tests.gateway.suite import eventually, suite
from tests.gateway.test_tenants import bearer, refused, tenant_store

CREATE = gp.CreateGenerationRequest(spec=gp.GenerationSpec(prompt="a red circle", seed=7))


async def test_no_method_tells_a_tenant_that_the_generation_of_another_exists(tmp_path):
    async with suite(tmp_path, api_keys=True) as running, tenant_store(running.config.database_url) as store:
        keys = []
        for name in ("acme", "other"):
            await store.put(name, Quota())
            keys.append((await store.issue(name))[0])
        made = (await running.stub.CreateGeneration(CREATE, metadata=bearer(keys[0]))).generation
        other = {"metadata": bearer(keys[1])}
        for call in (
            running.stub.GetGeneration(gp.GetGenerationRequest(id=made.id), **other),
            running.stub.CancelGeneration(gp.CancelGenerationRequest(id=made.id), **other),
            running.stub.DeleteGeneration(gp.DeleteGenerationRequest(id=made.id), **other),
            running.stub.RegenerateGeneration(gp.RegenerateGenerationRequest(id=made.id), **other),
            running.stub.WatchGeneration(gp.WatchGenerationRequest(id=made.id), **other).read(),
            running.stub.DownloadVideo(gp.DownloadVideoRequest(id=made.id), **other).read(),
        ):
            assert await refused(call) == (grpc.StatusCode.NOT_FOUND, "GENERATION_NOT_FOUND")
        await eventually(lambda: "render" in running.behaviour.calls)


@pytest.mark.parametrize(
    ("cursor", "code"),
    [(-1, grpc.StatusCode.INVALID_ARGUMENT), (10_000, grpc.StatusCode.OUT_OF_RANGE)],
)
@pytest.mark.parametrize("ended", [False, True])
async def test_a_cursor_that_nobody_was_given_is_refused(tmp_path, cursor, code, ended):
    async with suite(tmp_path) as running:
        if ended:
            made = (await running.generate())[0].generation_id
        else:
            running.behaviour.step_seconds = 0.2
            made = (await running.stub.CreateGeneration(CREATE)).generation.id
        watched = running.stub.WatchGeneration(gp.WatchGenerationRequest(id=made, after_sequence=cursor))
        assert (await refused(watched.read()))[0] is code


async def test_a_request_id_of_another_request_is_answered_with_the_name_of_the_first(tmp_path):
    async with suite(tmp_path) as running:
        request_id = "0b9a3c5e-3a0f-4a63-9a59-0b3d3a8f2c11"
        request = gp.CreateGenerationRequest(spec=CREATE.spec, request_id=request_id)
        first = await running.stub.CreateGeneration(request)
        request.spec.prompt = "another prompt"
        with pytest.raises(grpc.aio.AioRpcError) as reused:
            await running.stub.CreateGeneration(request)
        assert reused.value.code() is grpc.StatusCode.ALREADY_EXISTS
        (details,) = (
            value for key, value in reused.value.trailing_metadata() or () if key == "grpc-status-details-bin"
        )
        resource = error_details_pb2.ResourceInfo()
        assert any(one.Unpack(resource) for one in status_pb2.Status.FromString(details).details)
        assert resource.resource_name == first.generation.id
