"""`python -m services.gateway`."""

import sys

from services.chassis.config import load
from services.chassis.lifecycle import serve
from services.gateway.config import GatewayConfig
from services.gateway.service import open_gateway


def main() -> None:
    """Be the gateway until SIGTERM."""
    config = load(GatewayConfig, sys.argv[1:], program="rushes-gateway")
    serve(config, "gateway", lambda draining: open_gateway(config, draining))


if __name__ == "__main__":
    main()
