"""A generation through the gateway and three real servers."""

import asyncio
import hashlib
import uuid

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from rushes.v1 import catalog_pb2, postprocess_pb2
from rushes.v1 import generation_pb2 as gp
from rushes.v1.catalog_pb2_grpc import CatalogServiceStub
from services.gateway.store.database import open_database
from tests.gateway.history_checker import check_histories
from tests.gateway.stage_servers import MODEL, Behaviour
from tests.gateway.suite import clip, eventually, kind, kinds, suite


def reason(error: grpc.aio.AioRpcError) -> str:
    for detail in rpc_status.from_call(error).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return ""


def fields(error: grpc.aio.AioRpcError) -> set[str]:
    for detail in rpc_status.from_call(error).details:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            return {violation.field for violation in bad.field_violations}
    return set()


async def test_a_prompt_becomes_a_clip_and_every_event_comes_once_and_in_order(tmp_path):
    async with suite(tmp_path) as running:
        events = await running.generate()
        durable = [event for event in events if event.sequence]
        assert [event.sequence for event in durable] == list(range(1, len(durable) + 1))
        found = kinds(events)
        assert found[:4] == ["queued", "started", "encoded", "denoising"]
        assert found[-1] == "succeeded"
        assert found.count("step") == 6
        assert "preview" in {event.WhichOneof("event") for event in events}
        ended = events[-1].succeeded.generation
        assert hashlib.sha256(clip(events)).hexdigest() == ended.video.sha256
        assert ended.state == gp.GENERATION_STATE_SUCCEEDED
        assert (ended.spec.width, ended.spec.num_frames, ended.spec.sampling.steps) == (64, 5, 6)
        assert ended.progress == 1.0
        async with open_database(running.config.database_url) as database:
            assert await check_histories(database, kind, all_ended=True) == 1


async def test_the_parts_of_the_latency_add_up_to_the_whole(tmp_path):
    async with suite(tmp_path, Behaviour(step_seconds=0.02)) as running:
        ended = (await running.generate())[-1].succeeded.generation
        latency = ended.latency
        parts = sum(
            getattr(latency, field.name)
            for field in latency.DESCRIPTOR.fields
            if field.name.endswith("_seconds") and field.name != "total_seconds"
        )
        assert parts == pytest.approx(latency.total_seconds, rel=0.02)
        assert latency.high_noise_seconds >= 0.06
        assert latency.low_noise_seconds >= 0.06
        assert latency.trace_id == ended.trace_id
        assert all(
            0 <= span.start_seconds <= span.start_seconds + span.duration_seconds <= latency.total_seconds + 0.01
            for span in latency.spans
        )
        seen = await running.stub.GetGeneration(gp.GetGenerationRequest(id=ended.id))
        assert seen.generation.latency == latency


async def test_the_callers_trace_goes_on(tmp_path):
    trace_id = uuid.uuid4().hex
    async with suite(tmp_path) as running:
        request = gp.CreateGenerationRequest(spec=gp.GenerationSpec(prompt="a"))
        metadata = (("traceparent", f"00-{trace_id}-{'1' * 16}-01"),)
        made = await running.stub.CreateGeneration(request, metadata=metadata)
        assert made.generation.trace_id == trace_id


async def test_a_watch_that_is_dropped_anywhere_resumes_without_a_gap_or_a_duplicate(tmp_path):
    async with suite(tmp_path) as running:
        whole = [event for event in await running.generate() if event.sequence]
        for cursor in range(len(whole) + 1):
            request = gp.WatchGenerationRequest(id=whole[0].generation_id, after_sequence=cursor)
            again = [response.event async for response in running.stub.WatchGeneration(request)]
            assert [event for event in again if event.sequence] == whole[cursor:]


async def test_a_cursor_beyond_the_last_event_is_refused(tmp_path):
    async with suite(tmp_path) as running:
        last = (await running.generate())[-1]
        request = gp.WatchGenerationRequest(id=last.generation_id, after_sequence=last.sequence + 1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.WatchGeneration(request).read()
        assert refused.value.code() == grpc.StatusCode.OUT_OF_RANGE
        assert reason(refused.value) == "OUT_OF_RANGE"


async def test_a_download_begins_at_any_offset(tmp_path):
    async with suite(tmp_path) as running:
        events = await running.generate()
        whole = clip(events)
        for offset in (0, 1, len(whole) - 1, len(whole)):
            request = gp.DownloadVideoRequest(id=events[0].generation_id, offset=offset)
            pieces = [piece async for piece in running.stub.DownloadVideo(request)]
            assert b"".join(piece.data for piece in pieces) == whole[offset:]
            assert pieces[-1].sha256 == hashlib.sha256(whole).hexdigest()
            assert pieces[-1].md5 == hashlib.md5(whole, usedforsecurity=False).hexdigest()
        request = gp.DownloadVideoRequest(id=events[0].generation_id, offset=len(whole) + 1)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.DownloadVideo(request).read()
        assert refused.value.code() == grpc.StatusCode.OUT_OF_RANGE
        assert reason(refused.value) == "OUT_OF_RANGE"


async def test_the_same_request_id_twice_is_one_generation(tmp_path):
    async with suite(tmp_path) as running:
        request_id = str(uuid.uuid4())
        spec = gp.GenerationSpec(prompt="a")
        first = await running.generate(spec, request_id=request_id)
        again = await running.generate(spec, request_id=request_id)
        assert [event for event in again if event.sequence] == [event for event in first if event.sequence]
        assert running.behaviour.calls.count("denoise") == 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.generate(gp.GenerationSpec(prompt="b"), request_id=request_id)
        assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert reason(refused.value) == "REQUEST_ID_REUSED"


async def test_pages_list_every_generation_once_newest_first(tmp_path):
    async with suite(tmp_path) as running:
        made = [(await running.generate())[0].generation_id for _ in range(5)]
        found, token = [], ""
        while True:
            request = gp.ListGenerationsRequest(page_size=2, page_token=token)
            page = await running.stub.ListGenerations(request)
            found += [one.id for one in page.generations]
            token = page.next_page_token
            if not token:
                break
        assert found == made[::-1]
        queued = gp.ListGenerationsRequest(states=[gp.GENERATION_STATE_QUEUED])
        assert not (await running.stub.ListGenerations(queued)).generations


async def test_a_page_token_that_was_tampered_with_is_refused(tmp_path):
    async with suite(tmp_path) as running:
        for _ in range(2):
            await running.generate()
        token = (await running.stub.ListGenerations(gp.ListGenerationsRequest(page_size=1))).next_page_token
        other_list = gp.ListGenerationsRequest(page_token=token, states=[gp.GENERATION_STATE_FAILED])
        tampered = gp.ListGenerationsRequest(page_token="AAAA" + token[4:])
        garbage = gp.ListGenerationsRequest(page_token="%%%")  # noqa: S106 - a cursor
        for request in (other_list, tampered, garbage):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.stub.ListGenerations(request)
            assert reason(refused.value) == "PAGE_TOKEN_INVALID"


async def test_cancelling_stops_the_device_and_ends_the_generation_once(tmp_path):
    async with suite(tmp_path, Behaviour(step_seconds=0.05)) as running:
        call = running.stub.Generate(
            gp.GenerateRequest(
                spec=gp.GenerationSpec(prompt="a", sampling={"steps": 100})  # type: ignore[arg-type]
            )
        )
        step = await running.until(call, "step")
        answer = await running.stub.CancelGeneration(gp.CancelGenerationRequest(id=step.generation_id))
        assert answer.generation.state == gp.GENERATION_STATE_CANCELLED
        cancelled = (await running.until(call, "cancelled")).cancelled
        assert cancelled.steps_run >= 1
        await eventually(lambda: not running.behaviour.running)
        assert len(running.behaviour.steps) <= cancelled.steps_run + 1
        again = await running.stub.CancelGeneration(gp.CancelGenerationRequest(id=step.generation_id))
        assert again.generation.state == gp.GENERATION_STATE_CANCELLED
        assert kinds(await running.generate())[-1] == "succeeded"
        async with open_database(running.config.database_url) as database:
            await check_histories(database, kind, all_ended=True)


@pytest.mark.parametrize("cancels", [True, False])
async def test_a_caller_that_goes_away_cancels_only_if_the_request_says_so(tmp_path, cancels):
    async with suite(tmp_path, Behaviour(step_seconds=0.05)) as running:
        request = gp.GenerateRequest(spec=gp.GenerationSpec(prompt="a"), cancel_on_disconnect=cancels)
        call = running.stub.Generate(request)
        queued = await running.until(call, "queued")
        call.cancel()
        watch = running.stub.WatchGeneration(gp.WatchGenerationRequest(id=queued.generation_id))
        await running.until(watch, "cancelled" if cancels else "succeeded")


async def test_a_deadline_that_passes_cancels_a_generation_that_is_bound_to_it(tmp_path):
    async with suite(tmp_path, Behaviour(step_seconds=0.5)) as running:
        spec = gp.GenerationSpec(prompt="a", sampling={"steps": 100})  # type: ignore[arg-type]
        call = running.stub.Generate(gp.GenerateRequest(spec=spec, cancel_on_disconnect=True), timeout=2)
        queued = await running.until(call, "queued")
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await running.until(call, "succeeded")
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        watch = running.stub.WatchGeneration(gp.WatchGenerationRequest(id=queued.generation_id))
        await running.until(watch, "cancelled")
        await eventually(lambda: not running.behaviour.running)


async def test_previews_are_not_made_when_they_are_not_wanted(tmp_path):
    async with suite(tmp_path) as running:
        spec = gp.GenerationSpec(prompt="a")
        spec.previews.every_steps = 0
        assert "preview" not in {event.WhichOneof("event") for event in await running.generate(spec)}


BAD = {
    "spec.prompt": [
        gp.GenerationSpec(),
        gp.GenerationSpec(prompt=" \n"),
        gp.GenerationSpec(prompt="x" * 8001),
        gp.GenerationSpec(prompt="a\x00b"),
    ],
    "spec.width": [gp.GenerationSpec(prompt="a", width=100), gp.GenerationSpec(prompt="a", width=4096)],
    "spec.height": [gp.GenerationSpec(prompt="a", height=0), gp.GenerationSpec(prompt="a", height=-16)],
    "spec.num_frames": [gp.GenerationSpec(prompt="a", num_frames=4), gp.GenerationSpec(prompt="a", num_frames=801)],
    "spec.seed": [gp.GenerationSpec(prompt="a", seed=-1)],
    "spec.model": [gp.GenerationSpec(prompt="a", model="nobody-knows-it"), gp.GenerationSpec(prompt="a", model="../x")],
    "spec.tier": [gp.GenerationSpec(prompt="a", tier=77)],  # type: ignore[arg-type]
    "spec.sampling.steps": [
        gp.GenerationSpec(prompt="a", sampling={"steps": steps})  # type: ignore[arg-type]
        for steps in (0, 101, 5000)
    ],
    "spec.sampling.guidance_scale_high": [
        gp.GenerationSpec(prompt="a", sampling={"guidance_scale_high": scale})  # type: ignore[arg-type]
        for scale in (float("nan"), float("inf"), -1.0)
    ],
    "spec.adapters[0].id": [gp.GenerationSpec(prompt="a", adapters=[{"id": "nobody"}])],  # type: ignore[list-item]
    "spec.sampling.guidance_timestep_min": [
        gp.GenerationSpec(
            prompt="a",
            sampling={"guidance_timestep_min": 900.0, "guidance_timestep_max": 899.0},  # type: ignore[arg-type]
        )
    ],
    "spec.previews.every_steps": [
        gp.GenerationSpec(prompt="a", previews={"every_steps": every})  # type: ignore[arg-type]
        for every in (-1, 7, 5000)
    ],
    "spec.preset": [gp.GenerationSpec(prompt="a", preset="fast"), gp.GenerationSpec(prompt="a", preset="x" * 99)],
    "spec.sampling.solver": [gp.GenerationSpec(prompt="a", sampling={"solver": 99})],  # type: ignore[arg-type]
}


async def test_bad_input_is_refused_before_any_device_work_naming_the_field(tmp_path):
    async with suite(tmp_path) as running:
        for field, specs in BAD.items():
            for spec in specs:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await running.stub.CreateGeneration(gp.CreateGenerationRequest(spec=spec))
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, field
                assert fields(refused.value) == {field}
        assert running.behaviour.calls == []
        assert kinds(await running.generate())[-1] == "succeeded"


async def test_an_unknown_generation_is_not_found_by_any_method(tmp_path):
    async with suite(tmp_path) as running:
        calls = [
            running.stub.GetGeneration(gp.GetGenerationRequest(id="nobody")),
            running.stub.CancelGeneration(gp.CancelGenerationRequest(id="nobody")),
            running.stub.WatchGeneration(gp.WatchGenerationRequest(id="nobody")).read(),
            running.stub.DownloadVideo(gp.DownloadVideoRequest(id="nobody")).read(),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_generation_without_a_clip_cannot_be_downloaded(tmp_path):
    async with suite(tmp_path, Behaviour(step_seconds=1)) as running:
        made = await running.stub.CreateGeneration(gp.CreateGenerationRequest(spec=gp.GenerationSpec(prompt="a")))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.DownloadVideo(gp.DownloadVideoRequest(id=made.generation.id)).read()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await running.stub.CancelGeneration(gp.CancelGenerationRequest(id=made.generation.id))


async def test_the_catalog_states_defaults_and_limits_of_the_models_that_run(tmp_path):
    async with suite(tmp_path) as running, grpc.aio.insecure_channel(running.address) as channel:
        stub = CatalogServiceStub(channel)
        (model,) = (await stub.ListModels(catalog_pb2.ListModelsRequest())).models
        assert (model.id, model.defaults.sampling.steps, model.limits.max_frames) == (MODEL, 6, 81)
        limits = await stub.GetLimits(catalog_pb2.GetLimitsRequest())
        assert (limits.max_prompt_characters, limits.max_running) == (8000, 4)


async def test_generations_queue_for_the_slots_and_know_their_place(tmp_path):
    async with suite(tmp_path, Behaviour(step_seconds=0.1, slots=1)) as running:
        request = gp.CreateGenerationRequest(spec=gp.GenerationSpec(prompt="a"))
        made = [(await running.stub.CreateGeneration(request)).generation for _ in range(4)]
        seen = [(await running.stub.GetGeneration(gp.GetGenerationRequest(id=one.id))).generation for one in made]
        waiting = [one.queue_position for one in seen if one.state == gp.GENERATION_STATE_QUEUED]
        assert waiting == sorted(set(waiting))
        assert all(one.eta_seconds > 0 for one in seen if not one.HasField("end_time"))
        watches = [running.stub.WatchGeneration(gp.WatchGenerationRequest(id=one.id)) for one in made]
        await asyncio.gather(*(running.until(watch, "succeeded") for watch in watches))


async def test_stills_are_those_that_were_asked_for(tmp_path):
    async with suite(tmp_path) as running:
        spec = gp.GenerationSpec(prompt="a", artifacts=[postprocess_pb2.ARTIFACT_KIND_POSTER])
        events = await running.generate(spec)
        made = [event.artifact.kind for event in events if event.HasField("artifact")]
        assert made == [postprocess_pb2.ARTIFACT_KIND_POSTER]
