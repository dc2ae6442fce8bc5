"""The commands and their options. What a command needs is imported when it runs: `--help` stays quick."""
# ruff: noqa: PLC0415 - see the line above

import asyncio
from typing import Annotated

import typer

from rushes.cli import options as o

app = typer.Typer(
    name="rushes",
    help="Text to video with Wan2.2-T2V-A14B: one prompt, four services, one clip.\n\n"
    "Exit codes: 0 done, 2 bad input, 3 not available (try again), 4 failed, 130 cancelled.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command()
def generate(
    prompt: o.Prompt,
    *,
    negative: o.Negative = None,
    width: o.Width = None,
    height: o.Height = None,
    frames: o.Frames = None,
    fps: o.Fps = None,
    seed: o.Seed = None,
    crf: o.Crf = None,
    steps: o.Steps = None,
    solver: o.SolverName = None,
    sigma_rule: o.SigmaRuleName = None,
    shift: o.Shift = None,
    boundary: o.Boundary = None,
    guidance_high: o.GuidanceHigh = None,
    guidance_low: o.GuidanceLow = None,
    output: o.Output = None,
    previews: o.Previews = None,
    preview_every: o.PreviewEvery = 2,
    model: o.Model = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Make a clip: the MP4 and a contact sheet in the current folder.

    Without a gateway the whole suite is started in this process, on the embedded model. Ctrl-C cancels.
    """
    from rushes.cli.endpoint import Endpoint
    from rushes.cli.making import Outputs, generate_clip
    from rushes.client import generation_spec

    spec = generation_spec(
        prompt,
        negative_prompt=negative,
        width=width,
        height=height,
        num_frames=frames,
        fps=fps,
        seed=seed,
        steps=steps,
        solver=solver,
        sigma_rule=sigma_rule,
        flow_shift=shift,
        boundary_ratio=boundary,
        guidance_scale_high=guidance_high,
        guidance_scale_low=guidance_low,
        preview_every_steps=preview_every if previews else 0,
        crf=crf,
    )
    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    outputs = Outputs(video=output, previews=previews)
    asyncio.run(generate_clip(endpoint, spec, outputs, model=model, device=device, dtype=dtype, as_json=as_json))


@app.command()
def create(
    prompt: o.Prompt,
    *,
    negative: o.Negative = None,
    width: o.Width = None,
    height: o.Height = None,
    frames: o.Frames = None,
    fps: o.Fps = None,
    seed: o.Seed = None,
    crf: o.Crf = None,
    steps: o.Steps = None,
    solver: o.SolverName = None,
    sigma_rule: o.SigmaRuleName = None,
    shift: o.Shift = None,
    boundary: o.Boundary = None,
    guidance_high: o.GuidanceHigh = None,
    guidance_low: o.GuidanceLow = None,
    model: Annotated[str | None, typer.Option(help="Id of the model.", rich_help_panel=o.CLIP)] = None,
    request_id: Annotated[
        str | None, typer.Option(help="UUID: the same one twice is one generation.", rich_help_panel=o.GATEWAY)
    ] = None,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Hand in a generation at a running gateway and print its id."""
    from rushes.cli.endpoint import Endpoint
    from rushes.cli.making import hand_in
    from rushes.client import generation_spec

    spec = generation_spec(
        prompt,
        negative_prompt=negative,
        model=model,
        width=width,
        height=height,
        num_frames=frames,
        fps=fps,
        seed=seed,
        steps=steps,
        solver=solver,
        sigma_rule=sigma_rule,
        flow_shift=shift,
        boundary_ratio=boundary,
        guidance_scale_high=guidance_high,
        guidance_scale_low=guidance_low,
        crf=crf,
    )
    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(hand_in(endpoint, spec, request_id, as_json=as_json))


@app.command()
def watch(
    generation_id: o.GenerationId,
    *,
    after: Annotated[int, typer.Option(min=0, help="Only events after this sequence.")] = 0,
    output: o.Output = None,
    gateway: o.Gateway = None,
    api_key: o.ApiKey = None,
    tls: o.UseTls = False,
    ca: o.Ca = None,
    state: o.State = None,
    as_json: o.Json = False,
) -> None:
    """Follow a generation to its end; lost connections are mended. Ctrl-C leaves it running."""
    from rushes.cli.endpoint import Endpoint
    from rushes.cli.making import Outputs
    from rushes.cli.making import watch as follow

    endpoint = Endpoint(gateway=gateway, api_key=api_key, tls=tls, ca=ca, state=state)
    asyncio.run(follow(endpoint, generation_id, after, Outputs(video=output), as_json=as_json))


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
def download(
    generation_id: o.GenerationId,
    *,
    output: o.Output = None,
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
    asyncio.run(reading.download(endpoint, generation_id, output, as_json=as_json))


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
