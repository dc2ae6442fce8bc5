"""The denoiser process: `python -m services.denoiser --model DIR`."""

import sys
from functools import partial

from services.chassis.config import load
from services.chassis.lifecycle import serve
from services.denoiser.config import DenoiserConfig
from services.denoiser.service import open_denoiser


def main() -> None:
    """Serve until told to stop."""
    config = load(DenoiserConfig, sys.argv[1:])
    serve(config, "denoiser", partial(open_denoiser, config))


if __name__ == "__main__":
    main()
