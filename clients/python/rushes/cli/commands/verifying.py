"""`verify`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs

from pathlib import Path
from typing import Annotated

import typer

from rushes.cli import options as o

app = typer.Typer()


@app.command()
def verify(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="MP4, WebM, GIF, WebP, or the playlist of an HLS folder.")
    ],
    *,
    trust: Annotated[
        Path | None, typer.Option(metavar="ANCHORS", help="PEM certificates of authorities that vouch for signers.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Read the watermark, the signed manifest and the metadata of a clip, and say whether they are in order.

    Ends with 0 when what is found agrees, 5 when something is broken or contradicts, 6 when the file says nothing.
    """
    from rushes.cli.verifying import verify_file

    raise typer.Exit(verify_file(file, trust, as_json=as_json))
