"""A real service in a process of its own: what the tests of signals and exit codes start."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from google.protobuf.wrappers_pb2 import StringValue
from pydantic import Field, SecretStr

from services.chassis.config import ServiceConfig, load
from services.chassis.errors import FailedPrecondition
from services.chassis.lifecycle import Mounted, serve
from services.chassis.telemetry import logger
from tests.chassis.probe import Probe, echo, text


class ProcessConfig(ServiceConfig):
    """The probe's configuration."""

    loading: Literal["quick", "endless", "refused", "broken"] = Field("quick", description="how loading goes")
    key: SecretStr | None = Field(None, min_length=8, description="a secret")


def main() -> None:
    config = load(ProcessConfig, sys.argv[1:], program="probe")

    async def up(requests: AsyncIterator[StringValue], _context: Any) -> StringValue:
        return text("".join([request.value async for request in requests]))

    @asynccontextmanager
    async def open_service(draining: asyncio.Event) -> AsyncIterator[list[Mounted]]:
        async def down(_request: StringValue, _context: Any) -> AsyncIterator[StringValue]:
            yield text("working")
            await draining.wait()
            yield text("handed back")

        async def unary(request: StringValue, context: Any) -> StringValue:
            logger(__name__).info("asked", prompt=request.value, cookie="hunter2")
            return await echo(request, context)

        match config.loading:
            case "endless":
                logger(__name__).info("loading")
                await asyncio.Event().wait()
            case "refused":
                raise FailedPrecondition("model_index.json: is missing", reason="MODEL_REFUSED")
            case "broken":
                raise ZeroDivisionError
        yield [Probe(unary=unary, down=down, up=up).mounted]

    serve(config, "probe", open_service)


if __name__ == "__main__":
    main()
