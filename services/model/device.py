"""The device that a process computes on, and the one thread that owns it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Generic, ParamSpec, TypeVar

import torch

from services.chassis.errors import FailedPrecondition

P = ParamSpec("P")
T = TypeVar("T")

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_END: Final = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead(Generic[T]):
    """An item, and whether the thread has gone on to the next one without being asked."""

    item: T
    going_on: bool


@dataclass(kw_only=True, slots=True)
class _Flow(Generic[T]):
    """What a stream's thread and its consumer tell each other; each field is written by one of them only."""

    arrived: asyncio.Queue[Ahead[T] | BaseException | None]
    made: int = 0
    dealt_with: int = 0
    stopped: bool = False


def choose_device(wanted: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU; `cpu` and `cuda:N` are themselves.

    Raises `FailedPrecondition` for a CUDA device that is not there.
    """
    if wanted == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(wanted)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            raise FailedPrecondition(
                f"{wanted} is not there: {found} CUDA devices are visible.", reason="DEVICE_MISSING"
            )
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 on the CPU; otherwise `float32`, `bfloat16` or `float16`."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[wanted]


class DeviceThread:
    """One thread that owns the device: whatever touches it runs there, one call after another."""

    def __init__(self, name: str = "device", threads: int | None = None) -> None:
        """`threads`: how many CPU threads a computation uses; None leaves the choice to torch."""
        self._executor = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix=name, initializer=_limit_threads, initargs=(threads,)
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str = "device", threads: int | None = None) -> AsyncIterator["DeviceThread"]:
        """A device thread that is joined, its last call finished, when the context ends."""
        thread = cls(name, threads)
        try:
            yield thread
        finally:
            await asyncio.to_thread(thread._executor.shutdown, wait=True)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function`'s result, computed on the thread. A caller that is cancelled leaves a started call to finish."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    async def iterate(self, generator: Generator[T, None, None]) -> AsyncGenerator[T, None]:
        """The generator's items, each computed on the thread while nothing else runs there.

        Between two items other callers take their turn. When the consumer stops, is cancelled or fails, the item in
        work is finished and the generator closed on the same thread before this returns.
        """
        try:
            while (item := await self.run(next, generator, _END)) is not _END:
                yield item  # type: ignore[misc]  # the sentinel is gone
        finally:
            await asyncio.shield(self.run(generator.close))

    async def stream(
        self, generator: Generator[T, None, None], goes_on: Callable[[T], bool]
    ) -> AsyncGenerator[Ahead[T], None]:
        """The generator's items as from `iterate`, the next begun before the consumer has dealt with the last.

        After each item the thread asks `goes_on(item)`, which must neither block nor touch the event loop; if so, and
        if the consumer has dealt with every item before this one, it goes on at once, after whatever else waits for the
        thread: no more than one item is begun ahead of the consumer's. Otherwise the next item is begun when it is
        asked for. The consumer takes all items in order; one that stops in between loses the item in work.
        """
        loop, flow = asyncio.get_running_loop(), _Flow[T](arrived=asyncio.Queue())

        def post(news: Ahead[T] | BaseException | None) -> None:
            loop.call_soon_threadsafe(flow.arrived.put_nowait, news)

        def make() -> None:
            if flow.stopped:
                return
            try:
                item = next(generator)
                flow.made += 1
                going_on = not flow.stopped and flow.dealt_with >= flow.made - 1 and goes_on(item)
            except StopIteration:
                post(None)
                return
            except BaseException as failure:  # noqa: BLE001  (the consumer raises it)
                post(failure)
                return
            if going_on:
                # Through the queue: others that wait for the thread have their turn first.
                self._executor.submit(make)
            post(Ahead(item=item, going_on=going_on))

        going_on = False
        try:
            while True:
                if not going_on:
                    self._executor.submit(make)
                news = await flow.arrived.get()
                if isinstance(news, BaseException):
                    try:
                        raise news
                    finally:
                        # Its traceback holds this frame, and with it what the failed item was made of.
                        del news
                if news is None:
                    return
                going_on = news.going_on
                yield news
                flow.dealt_with += 1
        finally:
            flow.stopped = True
            await asyncio.shield(self.run(generator.close))


def _limit_threads(threads: int | None) -> None:
    # Other processes of the suite compute on the same cores: more threads than cores spin against each other.
    if threads is not None:
        torch.set_num_threads(threads)
