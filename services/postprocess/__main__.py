"""The postprocess process: `python -m services.postprocess --model DIR`."""

import sys
from functools import partial

from services.chassis.config import load
from services.chassis.lifecycle import serve
from services.postprocess.config import PostprocessConfig
from services.postprocess.service import open_postprocess


def main() -> None:
    """Serve until told to stop."""
    config = load(PostprocessConfig, sys.argv[1:])
    serve(config, "postprocess", partial(open_postprocess, config))


if __name__ == "__main__":
    main()
