import datetime as dt
from collections import deque
from pathlib import Path

import grpc
import pytest

from rushes.client import Client, InvalidRequest, NotFound, RetryPolicy, Tls, TraceContext, Unavailable, generation_spec
from rushes.client.channel import is_local, target
from rushes.client.retry import Patience
from rushes.v1 import generation_pb2, sampling_pb2
from rushes.v1.catalog_pb2_grpc import add_CatalogServiceServicer_to_server
from tests.clients.conftest import QUICK
from tests.clients.scripted_gateway import Fault, Script, ScriptedGateway, status

UNAVAILABLE = status(grpc.StatusCode.UNAVAILABLE, "the gateway is going away", "DRAINING")


async def test_a_creation_that_is_repeated_is_one_generation(client: Client, script: Script) -> None:
    script.unary_faults = deque([UNAVAILABLE, UNAVAILABLE])

    generation = await client.create("a red circle")

    assert len(script.seen("CreateGeneration")) == 3
    assert [made.id for made in script.created.values()] == [generation.id]


async def test_the_list_reads_every_page(client: Client) -> None:
    ids = [(await client.create("a red circle")).id for _ in range(7)]

    assert [generation.id async for generation in client.list(page_size=3)] == ids


async def test_many_generations_are_handed_in_at_once(client: Client, script: Script) -> None:
    made = await client.create_many(["a red circle", generation_spec("a blue star", seed=9)])

    assert [(one.spec.prompt, one.spec.seed) for one in made] == [("a red circle", 0), ("a blue star", 9)]
    assert len(script.seen("CreateGenerations")) == 1


async def test_a_generation_is_made_again_with_another_seed_and_removed(client: Client) -> None:
    first = await client.create(generation_spec("a red circle", seed=4))

    assert (await client.regenerate(first.id)).spec.seed == 5
    again = await client.regenerate(first.id, seed=0)
    assert (again.spec.seed, again.spec.prompt) == (0, "a red circle")
    await client.delete(first.id)
    with pytest.raises(NotFound):
        await client.get(first.id)


async def test_a_deletion_that_was_lost_is_not_repeated_by_itself(client: Client, script: Script) -> None:
    first = await client.create("a red circle")
    script.unary_faults = deque([UNAVAILABLE])

    with pytest.raises(Unavailable):
        await client.delete(first.id)
    assert len(script.seen("DeleteGeneration")) == 1


async def test_usage_is_asked_for_a_range(client: Client, script: Script) -> None:
    start = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)

    (bucket,) = await client.usage(start=start, bucket=dt.timedelta(hours=1))

    assert (bucket.generations, bucket.denoise_seconds) == (3, 12.5)
    (request,) = script.seen("GetUsage")
    assert (request.start_time.ToDatetime(dt.UTC), request.bucket.seconds) == (start, 3600)
    assert not request.HasField("end_time")


async def test_a_cached_clip_is_taken_only_when_asked_for(client: Client, script: Script) -> None:
    [event async for event in client.generate("a red circle", prefer_cache=True)]
    await client.create("a red circle")

    assert [request.cache for _, request, _ in script.calls] == [
        *(generation_pb2.CACHE_MODE_PREFER, generation_pb2.CACHE_MODE_UNSPECIFIED)
    ]


async def test_models_and_limits_are_read(client: Client) -> None:
    (model,) = await client.models()
    assert (model.id, model.notice) == ("scripted", "follows a script")
    assert (await client.limits()).max_prompt_characters == 8000


async def test_every_call_is_the_root_of_a_trace(client: Client, script: Script) -> None:
    await client.create("a red circle")
    [event async for event in client.generate("a red circle")]

    traces = [TraceContext.parse(metadata["traceparent"]) for _, _, metadata in script.calls]
    assert len({trace.trace_id for trace in traces}) == 2


async def test_one_generation_is_one_trace_however_often_its_stream_is_mended(client: Client, script: Script) -> None:
    trace = TraceContext.new()
    script.faults = deque([Fault(after=2, status=UNAVAILABLE)] * 3)
    [event async for event in client.generate("a red circle", trace=trace)]

    assert len(script.calls) == 4
    assert {metadata["traceparent"] for _, _, metadata in script.calls} == {trace.header()[1]}


async def test_the_api_key_goes_with_every_call(gateway: str, script: Script) -> None:
    async with Client(gateway, api_key="rk_1", retry=QUICK) as client:
        generation = await client.create("a red circle")
        [event async for event in client.watch(generation.id)]

    assert [metadata["authorization"] for _, _, metadata in script.calls] == ["Bearer rk_1"] * 2


async def test_an_api_key_does_not_cross_a_network_in_clear_text() -> None:
    with pytest.raises(ValueError, match="clear text"):
        Client("gateway.example:443", api_key="rk_1")
    async with Client("127.0.0.1:1", api_key="rk_1"):
        pass
    async with Client("gateway.example:443", api_key="rk_1", allow_plaintext_key=True):
        pass


async def test_a_gateway_on_this_machine_is_not_asked_for_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    server = grpc.aio.server()
    add_CatalogServiceServicer_to_server(ScriptedGateway(Script()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"127.0.0.1:{port}", retry=QUICK) as client:
            assert [model.id for model in await client.models()] == ["scripted"]
    finally:
        await server.stop(None)


async def test_an_absent_gateway_is_unavailable(address: str) -> None:
    async with Client(address, retry=RetryPolicy(first_seconds=0.01, patience_seconds=0.05)) as client:
        with pytest.raises(Unavailable, match="no gateway answers at unix:"):
            await client.ready(timeout_seconds=0.1)
        with pytest.raises(Unavailable):
            await client.get("g-1")


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "[::1]:50051", "dns:///host:1", "unix:/a.sock", "unix:///a"])
def test_addresses_in_all_forms_are_taken(address: str) -> None:
    assert target(address) == address


@pytest.mark.parametrize("address", ["", "host", "host:", "host:0", "host:70000", "unix:", "a b:1", "http://host:1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="gateway address"):
        target(address)


def test_local_addresses_are_told_from_others() -> None:
    assert all(map(is_local, ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/a.sock"]))
    assert not any(map(is_local, ["10.0.0.1:1", "gateway:1", "0.0.0.0:1"]))


def test_settings_reach_their_fields_and_the_rest_stays_unset() -> None:
    spec = generation_spec(
        "a red circle", steps=8, solver="euler", guidance_scale_low=0.0, seed=0, preview_every_steps=2
    )

    assert (spec.prompt, spec.seed, spec.sampling.steps) == ("a red circle", 0, 8)
    assert spec.sampling.solver == sampling_pb2.SOLVER_EULER
    assert spec.sampling.HasField("guidance_scale_low")
    assert not spec.sampling.HasField("guidance_scale_high")
    assert spec.HasField("seed")
    assert not spec.HasField("width")
    assert not spec.HasField("negative_prompt")
    assert not generation_spec("a red circle").HasField("sampling")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"solver": "magic"}, "sampling.solver"),
        ({"sigma_rule": "magic"}, "sampling.sigma_rule"),
        ({"seed": 2**80}, "seed"),
        ({"width": 2**40}, "width"),
        ({"prompt": "\ud800"}, "prompt"),
    ],
)
def test_a_value_that_the_wire_cannot_carry_is_refused_with_its_field(settings: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        generation_spec(**{"prompt": "a red circle", **settings})  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("header", ["", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-xyz-abc-01"])
def test_a_malformed_trace_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="traceparent"):
        TraceContext.parse(header)


def test_waits_grow_to_their_longest_and_never_undercut_the_server() -> None:
    policy = RetryPolicy(first_seconds=1.0, longest_seconds=8.0, patience_seconds=100.0)
    instant = 0.0
    patience = Patience(policy, clock=lambda: instant, jitter=lambda _low, high: high)
    lost = Unavailable("lost")

    waits = []
    for _ in range(6):
        waits.append(patience.next_wait(lost))
        instant += waits[-1]
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert patience.next_wait(Unavailable("busy", retry_after_seconds=30.0)) == 30.0
    instant += 75.0
    with pytest.raises(Unavailable, match="lost"):
        patience.next_wait(lost)
    patience.renew()
    assert patience.next_wait(lost) == 1.0


async def test_a_certificate_that_cannot_be_read_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Client("gateway.example:443", tls=Tls(ca=tmp_path / "none.pem"))
