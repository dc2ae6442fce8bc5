"""`rushes serve`: one service in this process."""

import importlib
import os
import sys
from collections.abc import Sequence

from rushes.cli.model_choice import choose_model
from rushes.cli.refusal import CommandRefused
from rushes.cli.state import default_folder

SERVICES = ("encoder", "denoiser", "postprocess", "gateway")


def serve(name: str, arguments: Sequence[str]) -> None:
    """Be the service until SIGTERM. A stage that is not told its model takes the embedded one."""
    if name not in SERVICES:
        raise CommandRefused("SERVICE", f"must be one of {', '.join(SERVICES)}")
    argv = list(arguments)
    told = any(argument == "--model" or argument.startswith("--model=") for argument in argv)
    if name != "gateway" and not told and "RUSHES_MODEL" not in os.environ and "--help" not in argv:
        choice = choose_model(None, default_folder())
        if choice.missing:
            raise CommandRefused("--model", "is required: the embedded model's weights are not part of this copy")
        argv += ["--model", str(choice.path)]
    sys.argv = [f"rushes serve {name}", *argv]
    importlib.import_module(f"services.{name}.__main__").main()
