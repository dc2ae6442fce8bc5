"""What the finished files of a suite on this machine are signed with."""
# ruff: noqa: PLC0415 - the light client does without the services

import os
from pathlib import Path

from rushes.cli.state import StateFolder

OPERATORS = ("RUSHES_C2PA_CERTIFICATE", "RUSHES_C2PA_KEY", "RUSHES_C2PA_ALGORITHM")


def signing_settings(state: StateFolder, listen: str = "") -> dict[str, Path]:
    """The settings of postprocess for a suite that serves at the addresses of `listen`, if it serves at all.

    The state folder's development certificate, which is made when it is not there. None where the environment names an
    operator's certificate, and where other machines are served: whoever does that has a certificate or signs nothing.
    """
    from services.chassis.config import beyond_this_machine
    from services.postprocess.development import development_files

    if any(name in os.environ for name in OPERATORS) or (listen and beyond_this_machine(listen)):
        return {}
    files = development_files(state.certificates)
    return {"c2pa_certificate": files.certificate, "c2pa_key": files.key}
