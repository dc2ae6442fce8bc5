"""One way to stand around a handler, whatever its arity: the seam that every server interceptor here uses.

A streaming handler is driven by `context.write` instead of being handed to grpc.aio as a generator. grpc.aio drops the
generator where it is when the call is cancelled during a write, and its `finally` then runs whenever the garbage
collector comes by; here it is closed before the call ends.
"""

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final, TypeAlias

import grpc

# In quotes where grpc is generic for the type checker only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Found: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[Found]]
Around: TypeAlias = Callable[[Context], AbstractAsyncContextManager[None]]
Check: TypeAlias = Callable[[Any], None]

_INFRASTRUCTURE: Final = "/grpc."


def is_infrastructure(method: str) -> bool:
    """Whether `method` belongs to gRPC's own services (health, reflection, channelz) and not to the suite."""
    return method.startswith(_INFRASTRUCTURE)


def wrap(
    handler: Handler, around: Around, *, check: Check | None = None, decode: Callable[[bytes], Any] | None = None
) -> Handler:
    """`handler` run inside `around(context)`, each of its request messages passed to `check` first.

    `around` sees every exception that leaves the handler, `check` may raise, and `decode` replaces the handler's
    request deserializer.
    """

    async def unary(request: Any, context: Context) -> Any:
        async with around(context):
            return await behavior(_incoming(request, check), context)

    async def stream(request: Any, context: Context) -> None:
        async with around(context):
            responses = behavior(_incoming(request, check), context)
            if not isinstance(responses, AsyncGenerator):
                await responses  # A coroutine writes by itself.
                return
            async with aclosing(responses):
                async for response in responses:
                    await context.write(response)

    arity = (handler.request_streaming, handler.response_streaming)
    behavior: Callable[[Any, Context], Any] = getattr(handler, _ATTRIBUTES[arity])
    return _FACTORIES[arity](
        stream if handler.response_streaming else unary,
        request_deserializer=decode or handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


class _Checked:
    """A request stream whose messages are checked as they are read.

    Not a generator: a reader that is cancelled leaves nothing behind that would have to be closed.
    """

    def __init__(self, requests: AsyncIterable[Any], check: Check) -> None:
        self._requests = aiter(requests)
        self._check = check

    def __aiter__(self) -> "_Checked":
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._requests)
        self._check(message)
        return message


def _incoming(request: Any, check: Check | None) -> Any:
    if check is None:
        return request
    if isinstance(request, AsyncIterable):
        return _Checked(request, check)
    check(request)
    return request


_ATTRIBUTES: Final = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
_FACTORIES: Final[dict[tuple[bool, bool], Callable[..., Handler]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
