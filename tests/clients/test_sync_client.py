import asyncio
import inspect
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from rushes.client import Client, InvalidRequest, SyncClient
from tests.clients.conftest import QUICK
from tests.clients.scripted_gateway import CLIP, Fault, Script, serving, status


@pytest.fixture
def sync_client(script: Script, address: str) -> Iterator[SyncClient]:
    up, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with serving(script, address):
            up.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    up.wait()
    try:
        with SyncClient(address, retry=QUICK) as client:
            yield client
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_the_twin_has_every_method() -> None:
    public = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}
    assert public <= set(dir(SyncClient))


def test_the_twin_takes_the_same_arguments() -> None:
    for name in ("__init__", "generate", "download", "list"):
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (SyncClient, Client))
        assert list(ours.parameters.values())[1:] == list(theirs.parameters.values())[1:], name


def test_a_clip_is_made_without_asyncio(sync_client: SyncClient, script: Script, tmp_path: Path) -> None:
    script.faults = deque([Fault(after=4, status=status(grpc.StatusCode.UNAVAILABLE, "gone", "DRAINING"))])

    events = list(sync_client.generate("a red circle"))

    assert [event.sequence for event in events if event.sequence] == list(range(1, 15))
    generation_id = events[0].generation_id
    assert sync_client.get(generation_id).id == generation_id
    assert [generation.id for generation in sync_client.list()] == [generation_id]
    sync_client.download(generation_id, tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == CLIP


def test_errors_pass_through(sync_client: SyncClient) -> None:
    with pytest.raises(InvalidRequest):
        list(sync_client.generate(""))


def test_a_stream_can_be_left_early(sync_client: SyncClient, script: Script) -> None:
    script.step_seconds = 60.0
    with sync_client.generate("a red circle") as events:
        assert next(events).WhichOneof("event") == "queued"
    assert sync_client.models()[0].id == "scripted"


def test_a_bad_address_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="gateway address"):
        SyncClient("nowhere")
    assert threading.active_count() == before
