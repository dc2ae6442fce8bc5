"""The encoder process: `python -m services.encoder --model DIR`."""

import sys
from functools import partial

from services.chassis.config import load
from services.chassis.lifecycle import serve
from services.encoder.config import EncoderConfig
from services.encoder.service import open_encoder


def main() -> None:
    """Serve until told to stop."""
    config = load(EncoderConfig, sys.argv[1:])
    serve(config, "encoder", partial(open_encoder, config))


if __name__ == "__main__":
    main()
