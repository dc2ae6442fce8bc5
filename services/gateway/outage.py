"""A database that is away: restarted, unreachable, or without room to write. Work waits for it; callers are told so."""

import functools
import inspect
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from services.chassis.errors import Unavailable
from services.chassis.logs import logger

DATABASE_AWAY = (OperationalError, InterfaceError, NoConnection)
"""What the store raises while its database cannot be used; the same call may work a little later."""
RETRY_AFTER_SECONDS = 1.0

ServicerT = TypeVar("ServicerT")


def answers_outages(servicer: type[ServicerT]) -> type[ServicerT]:
    """A class decorator: the calls of a servicer answer UNAVAILABLE while the database is away."""
    for name, method in list(vars(servicer).items()):
        if inspect.isasyncgenfunction(method):
            setattr(servicer, name, _stream(method))
        elif inspect.iscoroutinefunction(method) and not name.startswith("_"):
            setattr(servicer, name, _unary(method))
    return servicer


def _unary(method: Any) -> Any:
    @functools.wraps(method)
    async def answer(self: object, request: Any, context: Any) -> Any:
        try:
            return await method(self, request, context)
        except DATABASE_AWAY as away:
            raise _unavailable(away) from away

    return answer


def _stream(method: Any) -> Any:
    @functools.wraps(method)
    async def answer(self: object, request: Any, context: Any) -> AsyncGenerator[Any, None]:
        try:
            async with aclosing(method(self, request, context)) as responses:
                async for response in responses:
                    yield response
        except DATABASE_AWAY as away:
            raise _unavailable(away) from away

    return answer


def _unavailable(away: Exception) -> Unavailable:
    logger(__name__).warning("store.away", error=type(away).__name__, cause=str(getattr(away, "orig", away)))
    return Unavailable(
        "The job store is not available.", reason="STORE_UNAVAILABLE", retry_after_seconds=RETRY_AFTER_SECONDS
    )
