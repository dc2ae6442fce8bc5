"""Who gets a slot, and how it becomes free again: refusals, cancellation, deadlines, draining."""

import asyncio

import grpc
import pytest

from services.chassis.errors import Exhausted, RushesError, Unavailable, from_rpc_error
from tests.postprocess.calls import Clip, Requests, Service, draw_latents, refusal, render, render_requests
from tests.postprocess.conftest import OpenService


async def test_a_call_without_a_free_slot_is_refused_at_once(postprocess: OpenService) -> None:
    requests = render_requests(draw_latents(9))
    async with postprocess(slots=1, retry_after_seconds=7) as service:
        first = service.stub.Render()
        await first.write(requests[0])
        await first.wait_for_connection()
        refused = await _refused_when_busy(service, requests)
        for request in requests[1:]:
            await first.write(request)
        await first.done_writing()
        answers = [response.WhichOneof("message") async for response in first]

    assert isinstance(refused, Exhausted)
    assert refused.retry_after_seconds == 7
    assert answers[-1] == "result"


async def _refused_when_busy(service: Service, requests: Requests) -> RushesError:
    """The refusal of a call, as soon as the call before it has arrived."""
    while True:
        try:
            await render(service, requests)
        except grpc.aio.AioRpcError as refused:
            return from_rpc_error(refused)


async def _render_when_free(service: Service, requests: Requests) -> Clip:
    """The clip, as soon as the service does not refuse it for want of a slot."""
    while True:
        try:
            return await render(service, requests)
        except grpc.aio.AioRpcError as refused:
            if refused.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            await asyncio.sleep(0.01)


async def test_cancelling_stops_the_work_and_frees_the_slot(postprocess: OpenService) -> None:
    async with postprocess(slots=1) as service:
        call = service.stub.Render(iter(render_requests(draw_latents(81, width=256, height=256))))
        async for response in call:
            if response.HasField("progress"):
                break
        assert response.progress.frames_decoded < 9
        call.cancel()
        clip = await _render_when_free(service, render_requests(draw_latents(1)))

    assert clip.result.num_frames == 1


async def test_a_deadline_ends_the_call(postprocess: OpenService) -> None:
    async with postprocess(slots=1) as service:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in service.stub.Render(
                iter(render_requests(draw_latents(81, width=256, height=256))), timeout=0.4
            ):
                pass
        clip = await _render_when_free(service, render_requests(draw_latents(1)))

    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert clip.result.num_frames == 1


async def test_a_draining_service_takes_no_new_work(postprocess: OpenService) -> None:
    async with postprocess() as service:
        service.running.draining.set()
        refused = await refusal(service, render_requests(draw_latents(1)))

    assert isinstance(refused, Unavailable)
