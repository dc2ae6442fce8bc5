"""Which calls are in flight, from the moment that they are accepted until their last `finally` has run."""

import asyncio
import time
from dataclasses import dataclass

import grpc

from services.chassis.handlers import Continuation, Found, is_infrastructure


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    method: str
    started: float


class InFlight(grpc.aio.ServerInterceptor):
    """The calls of the suite's own services.

    grpc.aio's `stop` returns when the statuses are sent, which may be before the handlers are done (grpc#37239), and it
    waits for health watches, which never end: so the drain looks here instead.
    """

    def __init__(self) -> None:
        self._calls: dict[asyncio.Task[object], _Call] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Found:
        """The next handler, unchanged: grpc.aio runs interceptors and handler in the call's own task."""
        task = asyncio.current_task()
        if task is not None and not is_infrastructure(handler_call_details.method):
            self._calls[task] = _Call(method=handler_call_details.method, started=time.monotonic())
            task.add_done_callback(self._forget)
        return await continuation(handler_call_details)

    def describe(self) -> list[str]:
        """Each call in flight with its age, for the log line that says what a drain waits for."""
        now = time.monotonic()
        return [f"{call.method} since {now - call.started:.1f} s" for call in self._calls.values()]

    async def idle(self, timeout_seconds: float) -> bool:
        """Wait until no call is in flight, at most so long; whether that came about."""
        deadline = time.monotonic() + timeout_seconds
        while self._calls:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await asyncio.wait(set(self._calls), timeout=left)
        return True

    def _forget(self, task: asyncio.Task[object]) -> None:
        del self._calls[task]
