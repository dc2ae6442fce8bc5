"""What the finished files of a suite on this machine are signed with."""

import os
from pathlib import Path

from rushes.cli.state import StateFolder

OPERATORS = ("RUSHES_C2PA_CERTIFICATE", "RUSHES_C2PA_KEY", "RUSHES_C2PA_ALGORITHM")


def signing_settings(state: StateFolder) -> dict[str, Path]:
    """The settings of postprocess: none where the environment names the operator's certificate, else the state folder's
    development certificate, which is made when it is not there.
    """
    if any(name in os.environ for name in OPERATORS):
        return {}
    from services.postprocess.development import development_files  # noqa: PLC0415 - the light client does without

    files = development_files(state.certificates)
    return {"c2pa_certificate": files.certificate, "c2pa_key": files.key}
