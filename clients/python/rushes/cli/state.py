"""The state folder: what the suite on this machine keeps between commands, and who holds it at the moment."""

import asyncio
import fcntl
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rushes.cli.refusal import CommandRefused

Kind = Literal["up", "generate", "read"]

POLL_SECONDS = 0.2


def default_folder() -> Path:
    """The user's data folder, as the platform has it."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "rushes"
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "rushes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who holds, or last held, a state folder: which command, its process, and the gateway it serves (once it does)."""

    kind: str
    pid: int
    gateway: str = ""


class StateFolder:
    """Jobs, clips and logs of the suite on this machine. One process at a time runs a gateway on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as unusable:
            raise CommandRefused("--state", f"cannot be used: {unusable.strerror}") from None

    @property
    def log(self) -> Path:
        """Where an embedded suite writes its log."""
        return self.path / "rushes.log"

    @property
    def database_url(self) -> str:
        """The jobs of this folder."""
        return f"sqlite:///{self.path.resolve() / 'rushes.db'}"

    @property
    def artifacts_url(self) -> str:
        """The clips of this folder."""
        return str(self.path.resolve() / "artifacts")

    @property
    def certificates(self) -> Path:
        """Where a suite on this machine keeps the development certificate that it signs its files with."""
        return self.path / "c2pa"

    @property
    def _lock(self) -> Path:
        return self.path / "holder.json"

    @asynccontextmanager
    async def held(
        self, kind: Kind, on_wait: Callable[[Holder], None], *, joins: Collection[str] = ()
    ) -> AsyncIterator["Hold | Holder"]:
        """Hold the folder for the block; waits while another process does, telling `on_wait` once.

        Yields the other holder instead, as soon as it serves a gateway, if it is of a kind that the caller `joins`.
        """
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            told = False
            while not _try_lock(descriptor):
                holder = self.holder()
                if holder is not None and holder.kind in joins and holder.gateway:
                    yield holder
                    return
                if holder is not None and not told:
                    on_wait(holder)
                    told = True
                await asyncio.sleep(POLL_SECONDS)
            hold = Hold(descriptor, kind, self.holder())
            hold.serve_at("")
            yield hold
            hold.serve_at("")
        finally:
            os.close(descriptor)

    def holder(self) -> Holder | None:
        """Who wrote itself down last; it need not be alive."""
        try:
            return Holder(**json.loads(self._lock.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def running(self) -> Holder | None:
        """Who holds the folder at this moment; None if nobody does."""
        try:
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return None if _try_lock(descriptor) else self.holder()
        finally:
            os.close(descriptor)


class Hold:
    """The holding of a state folder. `before` is who held it last."""

    def __init__(self, descriptor: int, kind: Kind, before: Holder | None) -> None:
        self._descriptor = descriptor
        self._kind = kind
        self.before = before
        self.pid = os.getpid()

    def serve_at(self, gateway: str) -> None:
        """Write down where this process's gateway answers."""
        content = json.dumps(asdict(Holder(kind=self._kind, pid=self.pid, gateway=gateway))).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
