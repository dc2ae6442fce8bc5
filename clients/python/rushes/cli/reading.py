"""`rushes list`, `show`, `trace`, `cancel`, `download` and `models`."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.console import Console

from rushes.cli.charts import print_parts, print_tree
from rushes.cli.columns import print_columns
from rushes.cli.endpoint import Endpoint
from rushes.cli.model_choice import UNTRAINED, choose_model
from rushes.cli.names import beside, default_video
from rushes.cli.recording import Recording
from rushes.cli.refusal import CommandRefused
from rushes.cli.reports import wording
from rushes.cli.reports.json_lines import as_dict, print_json
from rushes.cli.reports.lines import LineReport
from rushes.cli.state import Holder
from rushes.client import Client
from rushes.v1.generation_pb2 import Generation, GenerationState


@asynccontextmanager
async def reader(endpoint: Endpoint) -> AsyncIterator[Client]:
    """A client of the running gateway; where none runs, of one that reads the state folder for the block."""
    if endpoint.gateway is not None:
        async with endpoint.client() as client:
            yield client
        return
    state = endpoint.folder()
    async with state.held("read", lambda _holder: None, joins=("up", "generate", "read")) as hold:
        if isinstance(hold, Holder):
            async with endpoint.client(hold.gateway) as client:
                yield client
            return
        from rushes.cli.embedded import embedded_gateway  # noqa: PLC0415 - it imports the services

        async with embedded_gateway(state) as address, endpoint.client(address) as client:
            yield client


async def list_generations(endpoint: Endpoint, states: list[str], limit: int, *, as_json: bool) -> None:
    """Print the newest generations, one a line."""
    wanted = [_state(name) for name in states]
    rows: list[tuple[str, ...]] = [("id", "state", "made", "clip", "seed", "prompt")]
    count = 0
    async with reader(endpoint) as client, aclosing(client.list(states=wanted, page_size=min(limit, 1000))) as every:
        async for generation in every:
            if count == limit:
                break
            count += 1
            if as_json:
                print_json("generation", **as_dict(generation))
            else:
                rows.append(_row(generation))
    if not as_json:
        print_columns(rows)


async def show(endpoint: Endpoint, generation_id: str, *, as_json: bool) -> None:
    """Print one generation."""
    async with reader(endpoint) as client:
        generation = await client.get(generation_id)
    if as_json:
        print_json("generation", **as_dict(generation))
        return
    console = Console(highlight=False, soft_wrap=True)
    spec = generation.spec
    facts = {
        "id": generation.id,
        "state": wording.state(generation),
        "prompt": spec.prompt,
        "model": spec.model,
        "seed": str(spec.seed),
        "size": f"{spec.width}×{spec.height}, {spec.num_frames} frames, {spec.fps} fps",
        "steps": str(spec.sampling.steps),
        "clip": wording.video(generation.video) if generation.HasField("video") else "",
        "sha256": generation.video.sha256,
        "md5": generation.video.md5,
        "files": ", ".join(f"{one.name} ({wording.size(one.size_bytes)})" for one in generation.video.outputs),
        "made": wording.made_with(generation) if generation.HasField("video") else "",
        "mark": f"{spec.finish.watermark_id:016x}" if spec.finish.HasField("watermark_id") else "",
        "failure": f"{generation.failure.stage}: {generation.failure.message}" if generation.failure.reason else "",
        "cached": f"the clip is that of {generation.cached_from}" if generation.cached_from else "",
        "trace": generation.trace_id,
    }
    for name, fact in facts.items():
        if fact:
            console.print(f"{name:<8} {fact}", markup=False)
    findings = [*generation.video.findings]
    if generation.failure.HasField("finding"):
        findings.append(generation.failure.finding)
    for found in findings:
        console.print(f"{'finding':<8} {wording.finding(found)}", markup=False)
    if generation.HasField("latency"):
        print_parts(console, generation.latency)


async def trace(endpoint: Endpoint, generation_id: str, *, every_span: bool, as_json: bool) -> None:
    """Print where the time of a generation went."""
    async with reader(endpoint) as client:
        generation = await client.get(generation_id)
    if not generation.HasField("latency"):
        raise CommandRefused(
            "ID", f"{generation_id} is {wording.state(generation)}: a trace is there when it has ended"
        )
    if as_json:
        print_json("latency", generation_id=generation.id, **as_dict(generation.latency))
        return
    console = Console(highlight=False)
    console.print(f"trace {generation.latency.trace_id or generation.trace_id}", markup=False)
    print_tree(console, generation.latency, fold=not every_span)
    console.print()
    print_parts(console, generation.latency)


async def cancel(endpoint: Endpoint, generation_id: str, *, as_json: bool) -> None:
    """Cancel a generation and print how it ended."""
    async with endpoint.client() as client:
        generation = await client.cancel(generation_id)
    if as_json:
        print_json("generation", **as_dict(generation))
    else:
        Console(highlight=False).print(f"{generation.id} {wording.state(generation)}", markup=False)


async def download(
    endpoint: Endpoint, generation_id: str, output: Path | None, file: str | None, *, as_json: bool
) -> None:
    """Save a finished clip, or the file of that name, and print its name."""
    async with reader(endpoint) as client:
        if file is not None:
            destination = beside(output, file)
        else:
            generation = await client.get(generation_id)
            recording = Recording(output, None, LineReport())
            destination = recording.video or default_video(generation.spec, output or Path())
        saved = await client.download(generation_id, destination, output=file or "")
    if as_json:
        what = "video" if file is None else file
        print_json("saved", what=what, path=str(saved.path), size_bytes=saved.size_bytes, sha256=saved.sha256)
    else:
        Console(highlight=False, soft_wrap=True).print(str(saved.path), markup=False)


async def delete(endpoint: Endpoint, generation_ids: Sequence[str]) -> None:
    """Remove generations."""
    async with reader(endpoint) as client:
        for generation_id in generation_ids:
            await client.delete(generation_id)


async def usage(endpoint: Endpoint, days: int, *, as_json: bool) -> None:
    """Print what was used, a day a line."""
    async with reader(endpoint) as client:
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        buckets = await client.usage(start=today - timedelta(days=days))
    if as_json:
        for bucket in buckets:
            print_json("usage", **as_dict(bucket))
        return
    rows: list[tuple[str, ...]] = [("day", "clips", "encode", "denoise", "render", "frames", "bytes")]
    for bucket in buckets:
        spent = (bucket.encode_seconds, bucket.denoise_seconds, bucket.render_seconds)
        rows.append(
            (
                bucket.start_time.ToDatetime().strftime("%Y-%m-%d"),
                str(bucket.generations),
                *(wording.seconds(one) for one in spent),
                str(bucket.frames),
                wording.size(bucket.size_bytes),
            )
        )
    print_columns(rows)


async def models(endpoint: Endpoint, *, as_json: bool) -> None:
    """Print the models that can be asked for; where no gateway runs, the one that `generate` would load."""
    if endpoint.running() is None:
        _print_local_model(endpoint, as_json=as_json)
        return
    async with endpoint.client() as client:
        found = await client.models()
    console = Console(highlight=False, soft_wrap=True)
    for model in found:
        if as_json:
            print_json("model", **as_dict(model))
            continue
        shape, limits = model.defaults.shape, model.limits
        console.print(f"[bold]{model.id}[/]  {model.display_name}, {model.licence}")
        console.print(
            f"  {shape.width}×{shape.height}, {shape.num_frames} frames, {model.defaults.fps} fps,"
            f" {model.defaults.sampling.steps} steps; at most {limits.max_width}×{limits.max_height},"
            f" {limits.max_frames} frames, {limits.max_steps} steps"
        )
        for preset in model.presets:
            console.print(f"  --preset {preset.name}: {preset.description}", markup=False)
        if model.notice:
            console.print(f"  {model.notice}", markup=False)


def _print_local_model(endpoint: Endpoint, *, as_json: bool) -> None:
    choice = choose_model(None, endpoint.folder().path)
    if choice.missing:
        manifest = {"id": UNTRAINED, "notice": "The embedded model's weights are not here: pictures will be noise."}
    else:
        manifest = json.loads((choice.path / "rushes.json").read_text(encoding="utf-8"))
    if as_json:
        print_json("local_model", path=str(choice.path), manifest=manifest)
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{manifest['id']}[/]  {manifest.get('name', '')}  (no gateway runs: {choice.path})")
    console.print(f"  {manifest.get('notice', '')}", markup=False)


def _state(name: str) -> GenerationState.ValueType:
    known = [value.removeprefix("GENERATION_STATE_").lower() for value in GenerationState.DESCRIPTOR.values_by_name][1:]
    if name.lower() not in known:
        raise CommandRefused("--only", f"must be one of {', '.join(known)}")
    return GenerationState.Value(f"GENERATION_STATE_{name.upper()}")


def _row(generation: Generation) -> tuple[str, ...]:
    made = generation.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M") if generation.HasField("create_time") else ""
    clip = f"{generation.video.num_frames} frames" if generation.HasField("video") else ""
    return generation.id, wording.state(generation), made, clip, str(generation.spec.seed), generation.spec.prompt
