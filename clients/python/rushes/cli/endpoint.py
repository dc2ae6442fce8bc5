"""Which gateway a command talks to."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rushes.cli.refusal import CommandRefused
from rushes.cli.state import StateFolder, default_folder
from rushes.client import Client, RushesError, Tls


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A gateway's address, None for the one of the state folder, and how to be let in."""

    gateway: str | None = None
    api_key: str | None = None
    tls: bool = False
    ca: Path | None = None
    state: Path | None = None

    def folder(self) -> StateFolder:
        """The state folder."""
        return StateFolder(self.state or default_folder())

    def running(self) -> str | None:
        """The address of a gateway that is there already: the named one, or the one that runs on the state folder."""
        if self.gateway is not None:
            return self.gateway
        holder = self.folder().running()
        return holder.gateway if holder is not None and holder.gateway else None

    @asynccontextmanager
    async def client(
        self, address: str | None = None, on_reconnect: Callable[[RushesError], None] | None = None
    ) -> AsyncIterator[Client]:
        """A client of the gateway at the address (by default the running one), which answers.

        Raises `Unavailable` if it does not, `CommandRefused` if there is none or the address is not one.
        """
        where = address or self.running()
        if where is None:
            raise CommandRefused(
                "--gateway", "no gateway runs on this machine: start one with `rushes up`, or name one", code=3
            )
        try:
            tls = Tls(ca=self.ca) if self.tls or self.ca else None
            client = Client(where, api_key=self.api_key, tls=tls, on_reconnect=on_reconnect)
        except ValueError as refused:
            raise CommandRefused("--gateway", str(refused)) from None
        async with client:
            await client.ready()
            yield client
