from collections import deque

import grpc
import pytest
from google.rpc import error_details_pb2

from rushes.client import (
    Client,
    DataLoss,
    Exhausted,
    GenerationCancelled,
    GenerationFailed,
    Internal,
    InvalidRequest,
    NotFound,
    RetryPolicy,
    RushesError,
    Unavailable,
    generation_at_end,
)
from rushes.v1.generation_pb2 import GenerationEvent
from tests.clients.conftest import QUICK
from tests.clients.scripted_gateway import Fault, Script, serving, status

TOTAL = 14
UNAVAILABLE = status(grpc.StatusCode.UNAVAILABLE, "the gateway is going away", "DRAINING")


def sequences(events: list[GenerationEvent]) -> list[int]:
    return [event.sequence for event in events if event.sequence]


def kinds(events: list[GenerationEvent]) -> list[str]:
    return [event.WhichOneof("event") or "" for event in events]


async def test_generate_gives_every_event_once_and_ends_with_the_terminal_one(client: Client) -> None:
    events = [event async for event in client.generate("a red circle")]

    assert sequences(events) == list(range(1, TOTAL + 1))
    assert kinds(events)[-1] == "succeeded"
    assert "heartbeat" not in kinds(events)
    ended = generation_at_end(events[-1])
    assert ended is not None
    assert ended.video.num_frames == 17


@pytest.mark.parametrize("lost_after", range(TOTAL))
async def test_a_stream_lost_after_any_event_goes_on_without_gap_or_duplicate(
    client: Client, script: Script, lost_after: int
) -> None:
    script.faults = deque([Fault(after=lost_after, status=UNAVAILABLE)])

    events = [event async for event in client.generate("a red circle")]

    assert sequences(events) == list(range(1, TOTAL + 1))
    assert len(script.created) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(after=3, plain=grpc.StatusCode.UNAVAILABLE),
        Fault(after=3, plain=grpc.StatusCode.INTERNAL),
        Fault(after=3, plain=grpc.StatusCode.CANCELLED),
        Fault(after=3, ends=True),
        Fault(after=3, silent=True),
        Fault(after=3, skips=2),
    ],
    ids=["unavailable", "reset", "cancelled", "ended early", "silent", "events skipped"],
)
async def test_whatever_breaks_the_stream_it_goes_on_from_the_cursor(
    client: Client, script: Script, fault: Fault
) -> None:
    script.faults = deque([fault])

    events = [event async for event in client.generate("a red circle")]

    assert sequences(events) == list(range(1, TOTAL + 1))
    assert [watch.after_sequence for watch in script.seen("WatchGeneration")] == [3]


async def test_events_that_are_sent_again_are_kept_back(client: Client, script: Script) -> None:
    script.faults = deque([Fault(after=5, status=UNAVAILABLE), Fault(after=99, rewinds=4)])

    events = [event async for event in client.generate("a red circle")]

    assert sequences(events) == list(range(1, TOTAL + 1))


async def test_many_losses_in_a_row_are_survived_and_told(gateway: str, script: Script) -> None:
    script.faults = deque([Fault(after=1, status=UNAVAILABLE)] * 8)
    heard: list[RushesError] = []

    async with Client(gateway, retry=QUICK, on_reconnect=heard.append) as client:
        events = [event async for event in client.generate("a red circle")]

    assert sequences(events) == list(range(1, TOTAL + 1))
    assert [failure.reason for failure in heard] == ["DRAINING"] * 8


async def test_a_gateway_that_restarts_in_mid_stream_is_found_again(address: str, script: Script) -> None:
    seen: list[GenerationEvent] = []
    script.step_seconds = 0.02
    async with Client(address, retry=QUICK) as client:
        stream = client.generate("a red circle")
        async with serving(script, address):
            seen += [await anext(stream) for _ in range(7)]
        async with serving(script, address):
            seen += [event async for event in stream]

    assert sequences(seen) == list(range(1, TOTAL + 1))


async def test_a_refused_connection_before_the_first_event_creates_one_generation_only(
    client: Client, script: Script
) -> None:
    script.unary_faults = deque([UNAVAILABLE, UNAVAILABLE])

    events = [event async for event in client.generate("a red circle")]

    assert kinds(events)[-1] == "succeeded"
    assert len({request.request_id for request in script.seen("Generate")}) == 1
    assert len(script.created) == 1


async def test_missing_events_that_never_come_are_data_loss(client: Client, script: Script) -> None:
    script.faults = deque([Fault(after=2, skips=1)] + [Fault(after=0, skips=1)] * 20)

    with pytest.raises(DataLoss, match="events 3 to 3") as caught:
        [event async for event in client.generate("a red circle")]

    assert caught.value.reason == "EVENTS_MISSING"


async def test_a_rule_that_is_broken_is_named_and_not_tried_again(client: Client, script: Script) -> None:
    with pytest.raises(InvalidRequest) as caught:
        [event async for event in client.generate("")]

    assert [(violation.field, violation.rule) for violation in caught.value.violations] == [
        ("spec.prompt", "must not be empty")
    ]
    assert caught.value.reason == "INVALID_REQUEST"
    assert str(caught.value) == "spec.prompt: must not be empty"
    assert len(script.seen("Generate")) == 1


async def test_a_full_queue_says_when_to_come_back(client: Client, script: Script) -> None:
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromMilliseconds(2500)
    script.unary_faults = deque([status(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", "QUEUE_FULL", delay)])

    with pytest.raises(Exhausted) as caught:
        [event async for event in client.generate("a red circle")]

    assert caught.value.retry_after_seconds == 2.5
    assert caught.value.reason == "QUEUE_FULL"


async def test_a_fault_of_the_server_is_not_tried_again(client: Client, script: Script) -> None:
    script.faults = deque([Fault(after=2, status=status(grpc.StatusCode.INTERNAL, "internal error 7f3a", "INTERNAL"))])

    with pytest.raises(Internal, match="7f3a"):
        [event async for event in client.generate("a red circle")]

    assert script.seen("WatchGeneration") == []


async def test_watching_what_does_not_exist_is_not_found(client: Client, script: Script) -> None:
    with pytest.raises(NotFound) as caught:
        [event async for event in client.watch("g-none")]

    assert caught.value.reason == "GENERATION_UNKNOWN"
    assert len(script.seen("WatchGeneration")) == 1


async def test_a_watch_begins_after_its_cursor(client: Client) -> None:
    generation = await client.create("a red circle")

    events = [event async for event in client.watch(generation.id, after_sequence=10)]

    assert sequences(events) == list(range(11, TOTAL + 1))


async def test_patience_ends(gateway: str, script: Script) -> None:
    script.faults = deque([Fault(after=0, status=UNAVAILABLE)] * 10_000)
    generation_id = "g-1"
    impatient = RetryPolicy(first_seconds=0.01, longest_seconds=0.01, patience_seconds=0.05)

    async with Client(gateway, retry=impatient) as client:
        generation_id = (await client.create("a red circle")).id
        script.unary_faults = deque([UNAVAILABLE] * 10_000)
        with pytest.raises(Unavailable) as caught:
            [event async for event in client.watch(generation_id)]

    assert caught.value.reason == "DRAINING"


async def test_waiting_raises_how_a_generation_ended(client: Client, script: Script) -> None:
    generation = await client.create("a red circle")
    assert (await client.wait(generation.id)).video.num_frames == 17

    script.ends_in = "failed"
    with pytest.raises(GenerationFailed, match="denoiser: the device was lost") as failed:
        await client.wait(generation.id)
    assert failed.value.reason == "DEVICE_LOST"

    script.ends_in = "cancelled"
    with pytest.raises(GenerationCancelled):
        await client.wait(generation.id)


async def test_leaving_a_stream_that_was_mended_still_cancels_when_asked_to(client: Client, script: Script) -> None:
    script.faults = deque([Fault(after=2, status=UNAVAILABLE)])
    stream = client.generate("a red circle", cancel_on_disconnect=True)
    for _ in range(5):
        event = await anext(stream)
    await stream.aclose()

    assert script.cancelled == {event.generation_id}


async def test_leaving_a_stream_leaves_the_generation_alone_by_default(client: Client, script: Script) -> None:
    script.faults = deque([Fault(after=2, status=UNAVAILABLE)])
    stream = client.generate("a red circle")
    for _ in range(5):
        await anext(stream)
    await stream.aclose()

    assert script.cancelled == set()
