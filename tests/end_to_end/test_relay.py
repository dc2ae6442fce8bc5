"""Four processes, one prompt, one clip."""

import asyncio
import hashlib
import io
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import av
import pytest
import pytest_asyncio

from rushes.client import (
    Client,
    GateRule,
    InvalidRequest,
    NotFound,
    TraceContext,
    generation_at_end,
    generation_spec,
    inspection_policy,
)
from rushes.v1.finishing_pb2 import InspectionCheck, InspectionPolicy
from rushes.v1.generation_pb2 import Generation, GenerationEvent, GenerationSpec, GenerationState
from services.gateway.takes import seed_of
from tests.end_to_end.collector import Collector, collecting
from tests.end_to_end.history import check_database, check_history
from tests.end_to_end.processes import Suite, running_suite
from tests.end_to_end.unsigned import unsigned

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

PROMPT = "a red circle moves left across a blue background"
LONG = {"width": 128, "height": 128, "num_frames": 17, "steps": 90}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[Collector]:
    """Where every service sends its spans."""
    async with collecting() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def suite(tmp_path_factory: pytest.TempPathFactory, model: Path, collector: Collector) -> AsyncIterator[Suite]:
    """Four processes for all tests of this file; at the end the database holds only finished generations."""
    folder = tmp_path_factory.mktemp("suite")
    os.environ["RUSHES_OTLP_ENDPOINT"] = collector.address
    try:
        async with running_suite(folder, model) as running:
            yield running
    finally:
        del os.environ["RUSHES_OTLP_ENDPOINT"]
    check_database(folder / "rushes.db")


@pytest_asyncio.fixture(loop_scope="module")
async def client(suite: Suite) -> AsyncIterator[Client]:
    """A caller."""
    async with Client(suite.address) as opened:
        yield opened


async def whole(client: Client, spec: GenerationSpec) -> tuple[list[GenerationEvent], bytes]:
    """Every event of a generation, and the bytes of its clip as they came."""
    events = [event async for event in client.generate(spec)]
    check_history(events)
    return events, b"".join(event.fragment.data for event in events if event.HasField("fragment"))


async def test_a_clip_that_the_gate_refuses_is_made_again_by_the_real_stages(client: Client) -> None:
    size = {"width": 64, "height": 64, "num_frames": 5, "steps": 3}
    measured = inspection_policy([GateRule(check=name, action="note", threshold=-1) for name in ("blur", "blocking")])

    async def made(seed: int, policy: InspectionPolicy) -> tuple[list[GenerationEvent], Generation]:
        events = [
            event async for event in client.generate(generation_spec(PROMPT, seed=seed, inspection=policy, **size))
        ]
        check_history(events)
        ended = generation_at_end(events[-1])
        assert ended is not None
        return events, ended

    for seed in range(11, 19):
        first, later = [(await made(each, measured))[1].video for each in (seed, seed_of(seed, 2))]
        scores = {
            rule.check: [
                max(found.score for found in video.findings if found.check == rule.check) for video in (first, later)
            ]
            for rule in measured.rules
        }
        check, (worse, better) = max(scores.items(), key=lambda one: one[1][0] / one[1][1])
        if worse > 1.01 * better:
            break
    else:
        pytest.fail("no first take is worse than its second")
    name = InspectionCheck.Name(check).removeprefix("INSPECTION_CHECK_").lower()
    rule = GateRule(check=name, action="retry", threshold=(worse + better) / 2)
    events, ended = await made(seed, inspection_policy([rule]))

    (retaken,) = [event.retaken for event in events if event.HasField("retaken")]
    assert (retaken.seed, retaken.finding.check) == (seed_of(seed, 2), check)
    # The finding is that of the first frames, which were enough.
    assert rule.threshold < retaken.finding.score <= worse * 1.0001
    assert (ended.video.seed, ended.video.takes, ended.video.sha256) == (seed_of(seed, 2), 2, later.sha256)
    assert not [found for found in ended.video.findings if found.check == check]


async def test_a_shared_prefix_gives_the_same_clip_through_all_services_and_says_what_it_reused(client: Client) -> None:
    def asked(*, reuse: bool, low: float | None = None) -> GenerationSpec:
        size = {"width": 64, "height": 64, "num_frames": 5, "seed": 11}
        return generation_spec(PROMPT, **size, preset="draft", guidance_scale_low=low, reuse_prefix=reuse)

    await whole(client, asked(reuse=True))
    again, clip = await whole(client, asked(reuse=True, low=1.5))
    straight, other = await whole(client, asked(reuse=False, low=1.5))
    reused = [event.denoising.reused_steps for event in again if event.HasField("denoising")]
    steps = [event.step.index for event in again if event.HasField("step")]
    assert 0 < reused[0] == steps[0]
    assert not any(event.denoising.reused_steps for event in straight)
    assert clip == other
    ended = generation_at_end(again[-1])
    assert ended is not None
    assert (ended.spec.preset, ended.spec.sampling.guidance_scale_low) == ("draft", 1.5)


async def test_a_prompt_becomes_a_clip_of_the_asked_size_length_and_rate(client: Client) -> None:
    spec = generation_spec(PROMPT, width=96, height=64, num_frames=13, fps=12, steps=4, seed=3, preview_every_steps=1)
    events, clip = await whole(client, spec)
    ended = generation_at_end(events[-1])
    assert ended is not None
    assert ended.state == GenerationState.GENERATION_STATE_SUCCEEDED
    finished = b"".join([piece async for piece in client.video(ended.id)])
    assert hashlib.sha256(finished).hexdigest() == ended.video.sha256
    with av.open(io.BytesIO(clip)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (stream.width, stream.height, len(frames)) == (96, 64, 13)
        assert stream.average_rate == 12
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "queued"
    assert kinds.count("step") == 4
    assert "preview" in kinds
    assert kinds.index("fragment") < kinds.index("artifact")


async def test_the_embedded_suite_gives_the_same_bytes_as_four_processes_and_signs_them(
    client: Client, model: Path, tmp_path: Path
) -> None:
    spec = generation_spec(PROMPT, steps=6, seed=11)
    events, _ = await whole(client, spec)
    clip = b"".join([piece async for piece in client.video(events[-1].generation_id)])
    target = tmp_path / "clip.mp4"
    command = [sys.executable, "-m", "rushes.cli", "generate", PROMPT, "--steps", "6", "--seed", "11", "--json"]
    options = {
        "--model": model,
        "--output": target,
        "--state": tmp_path / "state",
        "--device": "cpu",
        "--dtype": "float32",
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        *(str(part) for option in options.items() for part in option),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert [json.loads(line) for line in output.splitlines()]
    # The four have no certificate: what was signed here is what they give, to the byte.
    assert unsigned(target.read_bytes()) == clip
    assert target.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


async def test_cancelling_stops_the_device_within_a_step_and_frees_the_slot(client: Client) -> None:
    events: list[GenerationEvent] = []
    async for event in client.generate(generation_spec(PROMPT, **LONG, seed=1)):  # type: ignore[arg-type]
        events.append(event)
        if event.HasField("step") and event.step.index == 2:
            await client.cancel(event.generation_id)
            at_cancel = len([one for one in events if one.HasField("step")])
    check_history(events)
    assert events[-1].HasField("cancelled")
    steps = len([event for event in events if event.HasField("step")])
    assert events[-1].cancelled.steps_run == steps
    # The request travels while the device works: what was under way when it arrived may finish, and one step more.
    assert steps <= at_cancel + 20
    again, _ = await whole(client, generation_spec(PROMPT, steps=2, seed=1))
    assert again[-1].HasField("succeeded")


async def test_a_generation_goes_on_when_its_caller_goes_away(client: Client) -> None:
    async with aclosing(client.generate(generation_spec(PROMPT, **LONG, seed=2))) as events:  # type: ignore[arg-type]
        async for event in events:
            if event.HasField("step"):
                left = event
                break
    seen = [event async for event in client.watch(left.generation_id, after_sequence=left.sequence)]
    assert next(event.sequence for event in seen if event.sequence) == left.sequence + 1
    assert seen[-1].HasField("succeeded")
    full = [event async for event in client.watch(left.generation_id)]
    check_history(full)


async def test_a_caller_that_asks_for_it_takes_its_generation_with_it(client: Client) -> None:
    stream = client.generate(generation_spec(PROMPT, **LONG, seed=3), cancel_on_disconnect=True)  # type: ignore[arg-type]
    async with aclosing(stream) as events:
        async for event in events:
            if event.HasField("step"):
                left = event
                break
    full = [event async for event in client.watch(left.generation_id)]
    check_history(full)
    assert full[-1].HasField("cancelled")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"prompt": ""}, "spec.prompt"),
        ({"prompt": "   "}, "spec.prompt"),
        ({"prompt": "a\x07b"}, "spec.prompt"),
        ({"prompt": "x" * 8001}, "spec.prompt"),
        ({"width": 65}, "spec.width"),
        ({"height": 100_000 * 16}, "spec.height"),
        ({"num_frames": 16}, "spec.num_frames"),
        ({"num_frames": 4001}, "spec.num_frames"),
        ({"steps": 0}, "spec.sampling.steps"),
        ({"steps": 999}, "spec.sampling.steps"),
        ({"guidance_scale_high": float("nan")}, "spec.sampling.guidance_scale_high"),
        ({"guidance_scale_low": float("inf")}, "spec.sampling.guidance_scale_low"),
        ({"flow_shift": -1.0}, "spec.sampling.flow_shift"),
        ({"seed": -5}, "spec.seed"),
        ({"model": "no-such-model"}, "spec.model"),
        ({"model": "../../etc/passwd"}, "spec.model"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
async def test_bad_input_is_refused_with_field_and_rule(client: Client, settings: dict[str, Any], field: str) -> None:
    before = len([one async for one in client.list()])
    with pytest.raises(InvalidRequest) as refused:
        await client.create(generation_spec(**{"prompt": PROMPT, **settings}))
    assert field in [violation.field for violation in refused.value.violations]
    assert all(violation.rule for violation in refused.value.violations)
    assert len([one async for one in client.list()]) == before


async def test_an_enum_that_is_not_one_is_refused(client: Client) -> None:
    spec = generation_spec(PROMPT)
    spec.sampling.solver = 77  # type: ignore[assignment]
    with pytest.raises(InvalidRequest) as refused:
        await client.create(spec)
    assert [violation.field for violation in refused.value.violations] == ["spec.sampling.solver"]


async def test_an_unknown_generation_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound):
        await client.get("nothing")


async def test_the_parts_of_the_latency_add_up_and_one_trace_spans_all_services(
    client: Client, collector: Collector
) -> None:
    trace = TraceContext.new()
    spec = generation_spec(PROMPT, steps=8, seed=5, width=128, height=128)
    events = [event async for event in client.generate(spec, trace=trace)]
    check_history(events)
    ended = generation_at_end(events[-1])
    assert ended is not None
    latency = ended.latency
    parts = [
        latency.queue_seconds,
        latency.encode_seconds,
        latency.high_noise_seconds,
        latency.low_noise_seconds,
        latency.preview_seconds,
        latency.hand_off_seconds,
        latency.decode_seconds,
        latency.video_encode_seconds,
        latency.transfer_seconds,
        latency.other_seconds,
    ]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(latency.total_seconds, rel=0.02)
    assert latency.high_noise_seconds > 0
    assert latency.low_noise_seconds > 0
    assert latency.decode_seconds > 0
    assert len([span for span in latency.spans if span.name == "denoise.step"]) == 8
    assert ended.trace_id == latency.trace_id == trace.trace_id
    for _ in range(100):
        if len(collector.services_of(ended.trace_id)) == 4:
            break
        await asyncio.sleep(0.2)
    assert {name.removeprefix("rushes-") for name in collector.services_of(ended.trace_id)} == {
        "encoder",
        "denoiser",
        "postprocess",
        "gateway",
    }
