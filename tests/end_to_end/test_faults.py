"""Processes are killed, stopped and lost in the middle of the work; the clip stays the same."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from rushes.client import Client, generation_spec
from rushes.v1.generation_pb2 import GenerationEvent, GenerationSpec
from tests.end_to_end.collector import Collector, collecting
from tests.end_to_end.history import check_database, check_history
from tests.end_to_end.processes import ServiceProcess, Suite, running_suite

pytestmark = pytest.mark.timeout(900)

PROMPT = "a green square falls downward in the snow"


def spec() -> GenerationSpec:
    """Long enough to be hit in the middle."""
    return generation_spec(PROMPT, width=128, height=128, num_frames=17, steps=60, seed=9)


async def undisturbed(client: Client) -> str:
    """SHA-256 of the clip when nothing happens."""
    events = [event async for event in client.generate(spec())]
    check_history(events)
    return events[-1].succeeded.generation.video.sha256


async def disturbed(client: Client, at_step: int, disturb: "asyncio.Future[None]") -> list[GenerationEvent]:
    """All events of a generation that resolves `disturb` once `at_step` has run."""
    events = []
    async for event in client.generate(spec()):
        events.append(event)
        if event.HasField("step") and event.step.index >= at_step and not disturb.done():
            disturb.set_result(None)
    check_history(events)
    return events


async def hit(suite: Suite, client: Client, victims: Sequence[str], how: str, at_step: int) -> list[GenerationEvent]:
    """Run a generation; in the middle of it `kill` or `stop` the busiest of the victims, then start it again."""
    moment: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    services = [suite.services[label] for label in victims]
    before = [service.processor_seconds() for service in services]
    async with asyncio.TaskGroup() as group:
        events = group.create_task(disturbed(client, at_step, moment))
        await moment
        worked = [service.processor_seconds() - start for service, start in zip(services, before, strict=True)]
        busiest = services[worked.index(max(worked))]
        if how == "stop":
            assert await busiest.stop() == 0
        else:
            await busiest.kill()
        await busiest.start()
    return events.result()


async def test_a_killed_or_drained_denoiser_is_continued_by_another_and_the_frames_stay(
    tmp_path: Path, model: Path
) -> None:
    denoisers = {"first": {}, "second": {}}
    async with (
        running_suite(tmp_path, model, denoisers=denoisers, checkpoint_seconds="0") as suite,
        Client(suite.address) as client,
    ):
        expected = await undisturbed(client)
        for how in ("kill", "stop"):
            events = await hit(suite, client, tuple(denoisers), how, 20)
            assert events[-1].succeeded.generation.video.sha256 == expected
            reasons = {event.resumed.reason for event in events if event.HasField("resumed")}
            assert reasons
            assert reasons <= {"STAGE_LOST", "STAGE_DRAINED"}
    check_database(tmp_path / "rushes.db")


async def test_a_killed_gateway_comes_back_and_its_watcher_misses_nothing(tmp_path: Path, model: Path) -> None:
    async with (
        running_suite(tmp_path, model, checkpoint_seconds="0", lease_seconds="2") as suite,
        Client(suite.address) as client,
    ):
        expected = await undisturbed(client)
        events = await hit(suite, client, ("gateway",), "kill", 25)
        assert events[-1].succeeded.generation.video.sha256 == expected
        assert any(event.HasField("resumed") for event in events)
        for victim in ("encoder", "postprocess"):
            events = await hit(suite, client, (victim,), "kill", 25)
            assert events[-1].succeeded.generation.video.sha256 == expected
    check_database(tmp_path / "rushes.db")


async def test_two_pools_of_one_expert_each_give_the_frames_of_one_process_with_both_and_their_jobs_overlap(
    tmp_path: Path, model: Path
) -> None:
    found: dict[str, list[str]] = {}
    async with collecting() as collector:
        traced = {"otlp-endpoint": collector.address}
        pools = {"high": {"experts": "high", **traced}, "low": {"experts": "low", **traced}}
        for name, denoisers in (("split", pools), ("both", None)):
            (tmp_path / name).mkdir()
            async with (
                running_suite(tmp_path / name, model, denoisers=denoisers) as suite,
                Client(suite.address) as client,
            ):
                # A first clip, so that the gateway has met every pool.
                await events_of(client, 8, steps=4)
                async with asyncio.TaskGroup() as group:
                    jobs = [group.create_task(events_of(client, seed)) for seed in (9, 10)]
                both = [job.result() for job in jobs]
            ended = [events[-1].succeeded.generation for events in both]
            found[name] = [generation.video.sha256 for generation in ended]
            for events in both:
                check_history(events)
                hand_overs = [event.resumed.reason for event in events if event.HasField("resumed")]
                assert hand_overs == (["EXPERT_BOUNDARY"] if name == "split" else [])
            if name == "split":
                traces = [generation.trace_id for generation in ended]
    assert found["split"] == found["both"]
    # The processes are gone, so that all spans have been sent.
    steps = [[steps_of(collector, trace, expert) for expert in ("high", "low")] for trace in traces]
    assert [[len(phase) for phase in job] for job in steps] == [[len(phase) for phase in steps[0]]] * 2
    first, second = sorted(steps, key=lambda job: job[0][0])
    together = [one for one in second[0] for other in first[1] if one[0] < other[1] and other[0] < one[1]]
    assert together, "no high-noise step of the second job ran during a low-noise step of the first"


async def events_of(client: Client, seed: int, steps: int = 60) -> list[GenerationEvent]:
    """All events of a generation."""
    wanted = generation_spec(PROMPT, width=128, height=128, num_frames=17, steps=steps, seed=seed)
    return [event async for event in client.generate(wanted)]


def steps_of(collector: Collector, trace: str, expert: str) -> list[tuple[int, int]]:
    """Beginning and end of each step of `expert` in the exported trace, in nanoseconds."""
    return sorted(
        (span.start_time_unix_nano, span.end_time_unix_nano)
        for _, span in collector.spans
        if span.trace_id.hex() == trace and span.name == "denoise.step"
        if any(one.key == "expert" and one.value.string_value == expert for one in span.attributes)
    )


@pytest.mark.parametrize("service", ["denoiser", "postprocess", "encoder"])
async def test_a_stage_without_its_part_of_the_model_does_not_start_and_names_it(tmp_path: Path, service: str) -> None:
    process = ServiceProcess(name=service, folder=tmp_path, flags={"model": str(tmp_path)})
    with pytest.raises(RuntimeError, match=r"model_index\.json"):
        await process.start()
