"""The same client for code without asyncio: every method runs the asynchronous one on a thread of its own."""

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

from rushes.client.channel import Tls
from rushes.client.client import Client
from rushes.client.errors import RushesError
from rushes.client.retry import RetryPolicy

P = ParamSpec("P")
T = TypeVar("T")

_END = object()


class LoopThread:
    """A thread that runs an event loop until it is stopped."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rushes-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine there and wait for it; an interrupt of the waiting thread cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Finish what is open and end the thread."""
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Stream(Iterator[T], Generic[T]):
    """An asynchronous iteration, step by step. Close it, or leave its `with` block, to end it early."""

    def __init__(self, thread: LoopThread, source: AsyncGenerator[T, None]) -> None:
        self._thread = thread
        self._source = source

    def __next__(self) -> T:
        item = self._thread.run(self._step())
        if item is _END:
            raise StopIteration
        return cast("T", item)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration."""
        self._thread.run(self._close())

    async def _step(self) -> object:
        return await anext(self._source, _END)

    async def _close(self) -> None:
        await self._source.aclose()


def _waiting(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, T]],
) -> "Callable[Concatenate[SyncClient, P], T]":
    def call(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.thread.run(method(self.client, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[Client, P], AsyncGenerator[T, None]],
) -> "Callable[Concatenate[SyncClient, P], Stream[T]]":
    def call(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> Stream[T]:
        return Stream(self.thread, method(self.client, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class SyncClient:
    """`Client` without asyncio: the same arguments and methods; streams are plain iterators.

    with SyncClient("127.0.0.1:50051") as client:
        for event in client.generate("a red circle moves left"):
            ...
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        allow_plaintext_key: bool = False,
        timeout_seconds: float = 30.0,
        retry: RetryPolicy | None = None,
        on_reconnect: Callable[[RushesError], None] | None = None,
    ) -> None:
        self.thread = LoopThread()

        async def connect() -> Client:
            return Client(
                address,
                api_key=api_key,
                tls=tls,
                allow_plaintext_key=allow_plaintext_key,
                timeout_seconds=timeout_seconds,
                retry=retry,
                on_reconnect=on_reconnect,
            )

        try:
            self.client = self.thread.run(connect())
        except BaseException:
            self.thread.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel and end the thread."""
        self.thread.run(self.client.close())
        self.thread.stop()

    ready = _waiting(Client.ready)
    generate = _iterating(Client.generate)
    create = _waiting(Client.create)
    create_many = _waiting(Client.create_many)
    regenerate = _waiting(Client.regenerate)
    delete = _waiting(Client.delete)
    watch = _iterating(Client.watch)
    wait = _waiting(Client.wait)
    get = _waiting(Client.get)
    list = _iterating(Client.list)
    cancel = _waiting(Client.cancel)
    video = _iterating(Client.video)
    download = _waiting(Client.download)
    frames = _iterating(Client.frames)
    models = _waiting(Client.models)
    limits = _waiting(Client.limits)
    usage = _waiting(Client.usage)
