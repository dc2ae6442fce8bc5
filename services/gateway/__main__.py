"""`python -m services.gateway`."""

import gc
import sys

from services.chassis.config import load
from services.chassis.lifecycle import serve
from services.gateway.config import GatewayConfig
from services.gateway.service import open_gateway

_YOUNG, _MIDDLE, _OLD = 20_000, 20, 10
"""When the garbage collector looks at objects that are new, not so new and old.

A message to each of a thousand watchers makes tens of thousands of objects that are gone a moment later. By Python's
own figures, 700, 10 and 10, many are found alive and kept as old, until so many seem to be old that all are looked at:
with a thousand watchers that stops the gateway for 0.1 s every few seconds.
"""


def main() -> None:
    """Be the gateway until SIGTERM."""
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)
    config = load(GatewayConfig, sys.argv[1:], program="rushes-gateway")
    serve(config, "gateway", lambda draining: open_gateway(config, draining))


if __name__ == "__main__":
    main()
