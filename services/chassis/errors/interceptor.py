"""The edge where exceptions become statuses."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import grpc
from grpc_status import rpc_status

from services.chassis.errors.status import to_status
from services.chassis.errors.tree import Cancelled, Internal, InvalidRequest, RushesError, Unimplemented
from services.chassis.handlers import Continuation, Found, Handler, is_infrastructure, wrap
from services.chassis.incoming import Context, Incoming
from services.chassis.logs import logger


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Ends every failed call with a `google.rpc.Status` of this suite, and lets nothing internal out.

    Exception groups are unwrapped (grpc.aio would answer UNKNOWN with their text), bytes that are no message of the
    method are an `InvalidRequest`, an unknown method is `Unimplemented`, and an unknown exception is `Internal` with an
    incident id that the log has too. A cancelled call is left cancelled: `CancelledError` always goes on.
    """

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Found:
        """The next handler, guarded; for a method that nobody serves, one that says so."""
        handler = await continuation(handler_call_details)
        if is_infrastructure(handler_call_details.method):
            return handler
        if handler is None:
            return UNKNOWN_METHOD
        decode = _forgiving(handler.request_deserializer) if handler.request_deserializer else None
        return wrap(handler, _translated, check=_refuse_undecodable, decode=decode, own_task=True)


@asynccontextmanager
async def _translated(context: Context, request: Any) -> AsyncIterator[None]:
    try:
        yield
    except asyncio.CancelledError:
        if not _is_cancelled():
            # Nobody cancelled this call: a handler raised the error of something else that was cancelled. grpc.aio
            # then sends no status at all, and the caller would wait for ever.
            with suppress(grpc.aio.AbortError):
                await _refuse(context, request, Cancelled())
        raise
    except BaseException as raised:
        error = _representative(raised)
        if _is_transport(error) or not isinstance(error, Exception):
            raise error from None
        if _is_cancelled():
            # The caller is gone and the handler failed while it cleaned up: the cancellation is what ends the call
            # (grpc#43360 leaks when it is swallowed), the failure is for the log.
            logger(__name__).warning("failed_while_cancelled", exc_info=raised)
            raise asyncio.CancelledError from raised
        await _refuse(context, request, _known(error, raised))


async def _refuse(context: Context, request: Any, error: Exception) -> None:
    if isinstance(request, Incoming):
        await request.drain()
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


def _is_transport(error: BaseException) -> bool:
    """Whether `error` is grpc.aio's own way of ending a call, and no status is to be sent.

    An abort has sent one already, a failed batch means that the other side is gone, and a stopped server sends nothing;
    only a wrong use of the API is a fault like any other.
    """
    return isinstance(error, grpc.aio.BaseError) and not isinstance(error, grpc.aio.UsageError)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _known(error: Exception, raised: BaseException) -> Exception:
    if isinstance(error, RushesError | grpc.aio.AioRpcError):
        return error
    incident = uuid.uuid4().hex
    logger(__name__).error("unexpected_exception", incident=incident, exc_info=raised)
    return Internal(metadata={"incident": incident})


def _representative(raised: BaseException) -> BaseException:
    """The exception that speaks for `raised`: of a group the first of the tree, as the rest is mostly its aftermath."""
    leaves = list(_leaves(raised))
    for wanted in (grpc.aio.AbortError, RushesError, grpc.aio.AioRpcError):
        for leaf in leaves:
            if isinstance(leaf, wanted) and not isinstance(leaf, Cancelled):
                return leaf
    return leaves[0]


def _leaves(raised: BaseException) -> Iterator[BaseException]:
    if isinstance(raised, BaseExceptionGroup):
        for child in raised.exceptions:
            yield from _leaves(child)
    else:
        yield raised


class _Undecodable:
    """Stands in a request's place when its bytes are no message of the method."""


def _forgiving(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`deserialize`, but answering `_Undecodable`: grpc.aio makes UNKNOWN with the text of an exception raised here."""

    def decode(data: bytes) -> Any:
        try:
            return deserialize(data)
        except Exception:  # noqa: BLE001 - whatever a deserializer raises, the bytes are to blame, and are refused
            return _Undecodable()

    return decode


def _refuse_undecodable(message: Any) -> None:
    if isinstance(message, _Undecodable):
        raise InvalidRequest("The request is no message of this method.", reason="MALFORMED_REQUEST")


async def _unknown_method(_requests: Any, context: Context) -> None:
    refusal = Unimplemented("There is no such method.", reason="UNKNOWN_METHOD")
    await _refuse(context, Incoming(context), refusal)


UNKNOWN_METHOD: Final[Handler] = grpc.stream_stream_rpc_method_handler(_unknown_method)
"""Answers whatever nobody serves. Not measured: its name is the caller's invention, and would become a label."""
