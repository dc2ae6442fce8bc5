"""Commands that read and keep the list."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from rushes.cli import options as o

app = typer.Typer()


@app.command(name="list")
def list_(
    *,
    only: Annotated[list[str] | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """List generations, newest first."""
    from rushes.cli import reading
    from rushes.cli.endpoint import Endpoint

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(reading.list_generations(endpoint, only or [], limit, as_json=as_json))


@app.command()
def show(
    generation_id: o.GenerationId,
    *,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Show one generation: settings, state, clip, and where its time went."""
    from rushes.cli import reading
    from rushes.cli.endpoint import Endpoint

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(reading.show(endpoint, generation_id, as_json=as_json))


@app.command()
def trace(
    generation_id: o.GenerationId,
    *,
    every_span: Annotated[bool, typer.Option("--all", help="One row for every step.")] = False,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Draw where the time of a finished generation went."""
    from rushes.cli import reading
    from rushes.cli.endpoint import Endpoint

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(reading.trace(endpoint, generation_id, every_span=every_span, as_json=as_json))


@app.command()
def download(
    generation_id: o.GenerationId,
    *,
    output: o.Output = None,
    file: Annotated[
        str | None, typer.Option(help="Another file that was made from the clip, by its name in `rushes show`.")
    ] = None,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Save a finished clip and check its SHA-256; a download that was broken off goes on."""
    from rushes.cli import reading
    from rushes.cli.endpoint import Endpoint

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(reading.download(endpoint, generation_id, output, file, as_json=as_json))


@app.command()
def frames(
    generation_id: o.GenerationId,
    *,
    frame_range: Annotated[
        str, typer.Option("--range", help="FIRST:END, without END; either may be left out. Default: all.")
    ] = ":",
    out: Annotated[Path, typer.Option("--out", help="Folder of the pictures.")] = Path(),
    form: Annotated[str, typer.Option("--format", help="png, jpeg or webp.")] = "png",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP.")] = 92,
    max_edge: Annotated[int, typer.Option(min=0, help="Longer edge in pixels at most; 0 keeps the size.")] = 0,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Save frames of a finished clip as pictures; needs a running gateway."""
    from rushes.cli.endpoint import Endpoint
    from rushes.cli.frames import Wanted, save_frames

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    wanted = Wanted.of(frame_range, form=form, quality=quality, max_edge=max_edge)
    asyncio.run(save_frames(endpoint, generation_id, wanted, out, as_json=as_json))


@app.command()
def cancel(
    generation_id: o.GenerationId,
    *,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Stop a generation; the device stops before its next step."""
    from rushes.cli import reading
    from rushes.cli.endpoint import Endpoint

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(reading.cancel(endpoint, generation_id, as_json=as_json))


@app.command()
def delete(
    generation_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of generations that have ended.")],
    *,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
) -> None:
    """Remove generations that have ended, with their events and clips."""
    from rushes.cli import reading
    from rushes.cli.endpoint import Endpoint

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(reading.delete(endpoint, generation_ids))


@app.command()
def usage(
    *,
    days: Annotated[int, typer.Option(min=1, help="So many days back from now.")] = 30,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Show what was used, by the day."""
    from rushes.cli import reading
    from rushes.cli.endpoint import Endpoint

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(reading.usage(endpoint, days, as_json=as_json))


@app.command()
def models(
    *,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """List the models that a gateway runs; without one, the model that `generate` would use."""
    from rushes.cli import reading
    from rushes.cli.endpoint import Endpoint

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(reading.models(endpoint, as_json=as_json))


@app.command()
def prompts(
    *,
    language: Annotated[str | None, typer.Option("--language", "-l", help="en, zh or ja; all if not given.")] = None,
    as_json: o.Json = False,
) -> None:
    """Print sample prompts for the embedded model."""
    from rushes.cli.prompts import print_prompts

    print_prompts(language, as_json=as_json)
