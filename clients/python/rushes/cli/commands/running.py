"""`serve` and `up`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import asyncio
from typing import Annotated

import typer

from rushes.cli import options as o

app = typer.Typer()

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_ON)
def serve(
    context: typer.Context,
    service: Annotated[str, typer.Argument(help="encoder, denoiser, postprocess or gateway.")],
) -> None:
    """Run one service in this process; every further flag is the service's own (rushes serve encoder --help)."""
    from rushes.cli.serve import serve as run

    run(service, context.args)


@app.command()
def up(
    *,
    model: o.Model = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    listen: Annotated[
        str | None, typer.Option(help="Addresses of the gateway. Default: 127.0.0.1:50050.", rich_help_panel=o.GATEWAY)
    ] = None,
    state: o.State = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Prometheus port of the gateway; the stages take the next three.", min=1, max=65532),
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    grace_seconds: Annotated[float, typer.Option(min=0, help="Time for calls in flight when stopping.")] = 30.0,
) -> None:
    """Run all four services as processes of their own, and start again what dies.

    Prints `ready ADDRESS` on stdout when all of them serve; the logs go to stderr. SIGTERM drains, the gateway first.
    """
    from rushes.cli.model_choice import choose_model
    from rushes.cli.state import StateFolder, default_folder
    from rushes.cli.up import UpSettings, run_up

    folder = StateFolder(state or default_folder())
    settings = UpSettings(
        model=choose_model(model, folder.path),
        listen=listen,
        device=device,
        dtype=dtype,
        metrics_port=metrics_port,
        log_level=log_level,
        grace_seconds=grace_seconds,
    )
    asyncio.run(run_up(settings, folder))
