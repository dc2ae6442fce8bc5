import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services.chassis import errors
from services.chassis.channels import open_channel
from tests.chassis.probe import NAME, Caller, Probe, echo, probing, text

ERRORS = [
    errors.InvalidRequest(violations=[errors.FieldViolation(field="settings.steps", rule="must be at least 1")]),
    errors.InvalidRequest.of("prompt", "must not be empty", reason="PROMPT_EMPTY"),
    errors.Unauthenticated("Who are you?"),
    errors.PermissionDenied(),
    errors.NotFound("There is no generation g1.", resource=errors.Resource(kind="generation", name="g1")),
    errors.AlreadyExists(reason="REQUEST_ID_REUSED", metadata={"request_id": "r1"}),
    errors.FailedPrecondition(),
    errors.Aborted(),
    errors.Exhausted(
        retry_after_seconds=2.5, quota=errors.QuotaViolation(subject="tenant:acme", description="4 clips at a time")
    ),
    errors.Unavailable(retry_after_seconds=1),
    errors.Cancelled(),
    errors.DeadlineExceeded(),
    errors.DataLoss("The chunk at byte 7 fails its checksum."),
    errors.Unimplemented(),
    errors.Internal(),
]


def raising(error: BaseException) -> Probe:
    async def unary(_request: Any, _context: Any) -> StringValue:
        raise error

    async def down(_request: Any, _context: Any) -> AsyncIterator[StringValue]:
        yield text("first")
        raise error

    async def up(_requests: Any, _context: Any) -> StringValue:
        raise error

    async def both(requests: AsyncIterator[StringValue], _context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield request
            raise error

    return Probe(unary=unary, down=down, up=up, both=both)


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """How `call` fails, unary or after its messages."""

    async def ended() -> None:
        if hasattr(call, "__await__"):
            await call
        else:
            async for _ in call:
                pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ended()
    return caught.value


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}-{error.reason}")
async def test_an_error_arrives_as_it_was_raised(error: errors.RushesError) -> None:
    async with probing(raising(error)) as probe:
        raised = await failure(probe.caller.unary(text()))

    arrived = errors.from_rpc_error(raised)
    assert raised.code() is errors.CODES[type(error)]
    assert type(arrived) is type(error)
    assert vars(arrived) | {"reason": arrived.reason} == vars(error) | {"reason": error.reason}
    assert arrived.message == error.message == raised.details()


async def test_every_arity_ends_with_the_error() -> None:
    async with probing(raising(errors.NotFound())) as probe:
        caller = probe.caller
        calls = [caller.unary(text()), caller.down(text()), caller.up(iter([text()])), caller.both(iter([text()]))]
        assert [(await failure(call)).code() for call in calls] == [grpc.StatusCode.NOT_FOUND] * 4


def test_every_class_of_the_tree_has_a_code_of_its_own_and_a_sentence() -> None:
    for cls in errors.CODES:
        assert cls().message.endswith(".")
        assert cls.reason.isupper()
        assert len(cls.reason) <= 63
    assert len(set(errors.CODES.values())) == len(errors.CODES)


def test_a_class_outside_the_table_has_the_code_of_the_nearest_class_in_it() -> None:
    class ModelRefused(errors.FailedPrecondition):
        """The model is refused."""

    assert errors.code_of(ModelRefused()) is grpc.StatusCode.FAILED_PRECONDITION


async def test_an_unknown_exception_says_nothing_but_an_incident_id_that_the_log_has_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with probing(raising(KeyError("/srv/secret/path"))) as probe:
        raised = await failure(probe.caller.unary(text()))

    assert raised.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in f"{raised.details()}{raised.trailing_metadata()}"
    incident = errors.from_rpc_error(raised).metadata["incident"]
    logged = [record for record in caplog.records if incident in str(record.msg)]
    assert logged
    assert "/srv/secret/path" in str(logged[0].msg)


async def test_an_exception_group_is_unwrapped() -> None:
    async def unary(_request: Any, _context: Any) -> StringValue:
        async def refuse() -> None:
            raise errors.NotFound(reason="GENERATION_NOT_FOUND")

        async with asyncio.TaskGroup() as outer:
            async with asyncio.TaskGroup() as inner:
                inner.create_task(refuse())
            outer.create_task(refuse())
        return text()

    async with probing(Probe(unary=unary)) as probe:
        arrived = errors.from_rpc_error(await failure(probe.caller.unary(text())))

    assert type(arrived) is errors.NotFound
    assert arrived.reason == "GENERATION_NOT_FOUND"


async def test_of_a_group_the_error_of_the_tree_speaks() -> None:
    group = BaseExceptionGroup(
        "", [ValueError("aftermath"), errors.Cancelled(), errors.Exhausted(retry_after_seconds=1)]
    )
    async with probing(raising(group)) as probe:
        assert (await failure(probe.caller.unary(text()))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_abort_inside_a_task_group_is_what_the_caller_sees() -> None:
    async def unary(_request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> StringValue:
        async with asyncio.TaskGroup() as group:
            group.create_task(context.abort(grpc.StatusCode.OUT_OF_RANGE, "too far"))
        return text()

    async with probing(Probe(unary=unary)) as probe:
        raised = await failure(probe.caller.unary(text()))

    assert (raised.code(), raised.details()) == (grpc.StatusCode.OUT_OF_RANGE, "too far")


@pytest.mark.parametrize("method", ["Unary", "Down", "Up", "Both"])
async def test_bytes_that_are_no_message_are_an_invalid_request(method: str) -> None:
    async def down(request: StringValue, _context: Any) -> AsyncIterator[StringValue]:
        yield request

    async def up(requests: AsyncIterator[StringValue], _context: Any) -> StringValue:
        return await anext(requests)

    async def both(requests: AsyncIterator[StringValue], _context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield request

    async with probing(Probe(unary=echo, down=down, up=up, both=both)) as probe:
        raw: Any = probe.caller.channel.stream_stream(f"/{NAME}/{method}")
        arrived = errors.from_rpc_error(await failure(raw(iter([b"\xff\xff\xff"]))))

    assert type(arrived) is errors.InvalidRequest
    assert arrived.reason == "MALFORMED_REQUEST"


async def test_an_unknown_method_is_unimplemented_with_a_reason() -> None:
    async with probing(Probe(unary=echo)) as probe:
        arrived = errors.from_rpc_error(await failure(probe.caller.down(text())))

    assert type(arrived) is errors.Unimplemented
    assert arrived.reason == "UNKNOWN_METHOD"


async def test_a_cancelled_error_that_nobody_asked_for_ends_the_call_instead_of_hanging_it() -> None:
    async with probing(raising(asyncio.CancelledError())) as probe:
        assert (await failure(probe.caller.unary(text(), timeout=20))).code() is grpc.StatusCode.CANCELLED


async def test_a_client_that_cancels_closes_the_generator_also_below_a_blocked_write() -> None:
    closed = asyncio.Event()

    async def down(_request: Any, _context: Any) -> AsyncIterator[StringValue]:
        try:
            while True:
                yield text("x" * 2**20)  # More than the window takes: the write blocks soon.
        finally:
            closed.set()

    async with probing(Probe(down=down)) as probe:
        call = probe.caller.down(text())
        await call.read()
        call.cancel()
        await closed.wait()


@pytest.mark.parametrize("attempt", range(5))
async def test_a_client_that_is_still_sending_hears_the_refusal_and_not_an_internal_error(attempt: int) -> None:
    async def up(requests: AsyncIterator[StringValue], _context: Any) -> StringValue:
        await anext(requests)
        raise errors.Exhausted(retry_after_seconds=attempt)

    async def messages() -> AsyncIterator[StringValue]:
        for _ in range(20):
            yield text("x" * 2**20)

    async with probing(Probe(up=up)) as probe:
        assert (await failure(probe.caller.up(messages()))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_client_that_keeps_its_half_open_hears_the_refusal_all_the_same() -> None:
    async def both(requests: AsyncIterator[StringValue], _context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield request
            raise errors.NotFound

    async def messages() -> AsyncIterator[StringValue]:
        yield text()
        await asyncio.Event().wait()

    async with probing(Probe(both=both)) as probe:
        assert (await failure(probe.caller.both(messages()))).code() is grpc.StatusCode.NOT_FOUND


async def test_a_message_is_not_lost_when_its_reader_is_cancelled() -> None:
    reading, second = asyncio.Event(), asyncio.Event()

    async def up(requests: AsyncIterator[StringValue], _context: Any) -> StringValue:
        reader = asyncio.create_task(anext(requests))
        await asyncio.sleep(0)
        reading.set()
        reader.cancel()
        await asyncio.wait({reader})
        second.set()
        return text(",".join([request.value async for request in requests]))

    async def messages() -> AsyncIterator[StringValue]:
        await reading.wait()
        await second.wait()
        for word in ("a", "b"):
            yield text(word)

    async with probing(Probe(up=up)) as probe:
        assert (await probe.caller.up(messages())).value == "a,b"


async def test_a_deadline_cancels_the_handler() -> None:
    cancelled = asyncio.Event()

    async def unary(_request: Any, _context: Any) -> StringValue:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return text()

    async with probing(Probe(unary=unary)) as probe:
        assert (await failure(probe.caller.unary(text(), timeout=1))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await cancelled.wait()


async def test_a_handler_that_fails_while_it_is_cancelled_is_still_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    async def unary(_request: Any, _context: Any) -> StringValue:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
            raise errors.Cancelled("turned into an error on the way out")

    with caplog.at_level(logging.WARNING):
        async with probing(Probe(unary=unary)) as probe:
            call = probe.caller.unary(text())
            await started.wait()
            call.cancel()
            await cleaned.wait()

    assert any("failed_while_cancelled" in str(record.msg) for record in caplog.records)


async def test_an_error_of_a_stage_below_keeps_its_class_reason_and_details() -> None:
    error = errors.Exhausted("Busy.", reason="SLOTS_BUSY", retry_after_seconds=3)
    async with probing(raising(error)) as below:

        async def unary(request: StringValue, _context: Any) -> StringValue:
            response: StringValue = await below.caller.unary(request)
            return response

        async with probing(Probe(unary=unary)) as above:
            arrived = errors.from_rpc_error(await failure(above.caller.unary(text())))

    assert isinstance(arrived, errors.Exhausted)
    assert (arrived.message, arrived.reason, arrived.retry_after_seconds) == ("Busy.", "SLOTS_BUSY", 3)


async def test_a_stage_that_cannot_be_reached_is_unavailable_without_its_address() -> None:
    async with open_channel("unix:/nowhere/secret.sock") as channel:

        async def unary(request: StringValue, _context: Any) -> StringValue:
            response: StringValue = await Caller(channel).unary(request)
            return response

        async with probing(Probe(unary=unary)) as above:
            raised = await failure(above.caller.unary(text()))

    assert raised.code() is grpc.StatusCode.UNAVAILABLE
    assert "secret" not in f"{raised.details()}{raised.trailing_metadata()}"


async def test_an_endless_message_is_cut_and_still_arrives_as_what_it_is() -> None:
    rules = [errors.FieldViolation(field="名" * 1000, rule="規" * 1000) for _ in range(50)]
    async with probing(raising(errors.InvalidRequest(violations=rules))) as probe:
        arrived = errors.from_rpc_error(await failure(probe.caller.unary(text())))

    assert isinstance(arrived, errors.InvalidRequest)
    assert arrived.violations
    assert arrived.message.endswith("…")


async def test_a_message_over_the_limit_is_refused_and_the_next_one_is_served() -> None:
    async with probing(Probe(unary=echo)) as probe:
        raised = await failure(probe.caller.unary(text("x" * 4 * 2**20)))
        assert raised.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await probe.caller.unary(text("x"))).value == "x"
