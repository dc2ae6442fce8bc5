"""The device that a process computes on, and the one thread that owns it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, ParamSpec, TypeVar

import torch

from services.chassis.errors import FailedPrecondition

P = ParamSpec("P")
T = TypeVar("T")

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_END: Final = object()


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


def _limit_threads(threads: int | None) -> None:
    # Other processes of the suite compute on the same cores: more threads than cores spin against each other.
    if threads is not None:
        torch.set_num_threads(threads)
