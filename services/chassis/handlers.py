"""One way to stand around a handler, whatever its arity: the seam that every server interceptor here uses.

A streaming handler is driven by `context.write` instead of being handed to grpc.aio as a generator. grpc.aio drops the
generator where it is when the call is cancelled during a write, and its `finally` then runs whenever the garbage
collector comes by; here it is closed before the call ends.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final, TypeAlias

import grpc

from services.chassis.incoming import Check, Context, Incoming

# In quotes where grpc is generic for the type checker only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Found: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[Found]]
Around: TypeAlias = Callable[[Context, Any], AbstractAsyncContextManager[None]]

_INFRASTRUCTURE: Final = "/grpc."


def is_infrastructure(method: str) -> bool:
    """Whether `method` belongs to gRPC's own services (health, reflection, channelz) and not to the suite."""
    return method.startswith(_INFRASTRUCTURE)


def wrap(
    handler: Handler,
    around: Around,
    *,
    check: Check | None = None,
    decode: Callable[[bytes], Any] | None = None,
    own_task: bool = False,
) -> Handler:
    """`handler` run inside `around(context, request)`, each of its request messages passed to `check` first.

    A request stream reaches `around` and the handler as `Incoming`.
    A response that is bytes is one that the handler has serialised.
    `around` sees every exception that leaves the handler, `check` may raise, and `decode` replaces the handler's
    request deserializer. With `own_task` the handler runs in a child task, so that in `around` the call's own task
    counts as being cancelled only when gRPC cancelled it: a TaskGroup whose child fails leaves that count raised on
    Python 3.11.
    """

    async def respond(request: Any, context: Context) -> Any:
        if check is not None and isinstance(request, Incoming):
            request.add_check(check)
        elif check is not None:
            check(request)
        responses = behavior(request, context)
        if not isinstance(responses, AsyncGenerator):
            return await responses
        async with aclosing(responses):
            async for response in responses:
                await context.write(response)
        return None

    async def call(request: Any, context: Context) -> Any:
        if handler.request_streaming and not isinstance(request, Incoming):
            request = Incoming(context)
        async with around(context, request):
            response = respond(request, context)
            return await (asyncio.create_task(response) if own_task else response)

    arity = (handler.request_streaming, handler.response_streaming)
    behavior: Callable[[Any, Context], Any] = getattr(handler, _ATTRIBUTES[arity])
    return _FACTORIES[arity](
        call,
        request_deserializer=decode or handler.request_deserializer,
        response_serializer=_passing(handler.response_serializer),
    )


def _passing(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes] | None:
    """`serialize`, but letting bytes pass: the response of a handler that has serialised it, once for many calls."""
    if serialize is None:
        return None
    return lambda response: response if isinstance(response, bytes) else serialize(response)


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
