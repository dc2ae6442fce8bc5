"""`rushes generate`, one clip or a batch, `create`, `regenerate` and `watch`."""

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rushes.cli.batch import Batch, open_batch_report, read_batch
from rushes.cli.endpoint import Endpoint
from rushes.cli.fetching import fetch_files
from rushes.cli.interrupt import Interrupt, interruptible
from rushes.cli.model_choice import choose_model
from rushes.cli.recording import Recording
from rushes.cli.refusal import CommandRefused
from rushes.cli.reports import Report, open_report
from rushes.cli.reports.json_lines import as_dict, print_json
from rushes.cli.state import Holder
from rushes.client import Client, RushesError, Unavailable, generation_at_end, succeeded
from rushes.v1.generation_pb2 import (
    CreateGenerationsRequest,
    GenerateRequest,
    Generation,
    GenerationEvent,
    GenerationSpec,
    GenerationState,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Where the files of a generation go; None for names made from the prompt and the seed, and for no previews."""

    video: Path | None = None
    previews: Path | None = None
    formats: tuple[str, ...] = ("mp4",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the user asked of the suite itself."""

    model: str | None
    device: str | None
    dtype: str | None

    def refuse_settled(self, where: str, *names: str) -> None:
        """Raise `CommandRefused` for a setting that a running suite has settled already."""
        for name in names:
            if getattr(self, name) is not None:
                raise CommandRefused(f"--{name}", f"is settled already by the suite at {where}; --state starts another")


async def generate_clip(
    endpoint: Endpoint,
    spec: GenerationSpec,
    outputs: Outputs,
    asked: Asked,
    *,
    prefer_cache: bool,
    as_json: bool,
) -> None:
    """Make a clip: at the named gateway, at the suite that `rushes up` runs here, or with a suite in this process."""
    with open_report(as_json=as_json) as report, interruptible() as interrupt:
        recording = Recording(outputs.video, outputs.previews, report, formats=outputs.formats)
        async with _some_gateway(endpoint, asked, report, GenerateRequest(spec=spec)) as client:
            if endpoint.gateway is not None:
                spec.model = asked.model or ""
            await make(client, spec, recording, report, interrupt, prefer_cache=prefer_cache)


async def generate_clips(
    endpoint: Endpoint,
    batch: Path,
    settings: Mapping[str, Any],
    output: Path | None,
    asked: Asked,
    *,
    formats: tuple[str, ...] = ("mp4",),
    as_json: bool,
) -> None:
    """Make every clip of a file of prompts, in the folder `output` or the current one."""
    if output is not None and output.suffix:
        raise CommandRefused("--output", "must be a folder where there are many clips")
    specs = read_batch(batch, settings)
    _make_folder(output)
    with open_batch_report(len(specs), as_json=as_json) as (report, bar), interruptible():
        async with _some_gateway(endpoint, asked, report, CreateGenerationsRequest(specs=specs)) as client:
            for spec in specs:
                if endpoint.gateway is not None and asked.model is not None:
                    spec.model = asked.model
            await Batch(client, output, report, bar, formats).make(specs)


def _make_folder(folder: Path | None) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)


async def hand_in(endpoint: Endpoint, spec: GenerationSpec, request_id: str | None, *, as_json: bool) -> None:
    """Create a generation and print its id."""
    async with endpoint.client() as client:
        generation = await client.create(spec, request_id=request_id)
    if as_json:
        print_json("generation", **as_dict(generation))
    else:
        sys.stdout.write(generation.id + "\n")


async def hand_in_again(endpoint: Endpoint, generation_id: str, seed: int | None, *, as_json: bool) -> None:
    """Create a generation with the settings of another and print its id."""
    async with endpoint.client() as client:
        generation = await client.regenerate(generation_id, seed=seed)
    if as_json:
        print_json("generation", **as_dict(generation))
    else:
        sys.stdout.write(generation.id + "\n")


async def make(
    client: Client,
    spec: GenerationSpec,
    recording: Recording,
    report: Report,
    interrupt: Interrupt,
    *,
    prefer_cache: bool = False,
) -> Generation:
    """Make a clip and write its files. An interrupt cancels the generation and waits until it has ended so."""
    try:
        ended = await _follow(client, client.generate(spec, prefer_cache=prefer_cache), recording, report, interrupt)
        return await _finish(client, ended, recording, report)
    except BaseException:
        recording.discard()
        raise


async def watch(endpoint: Endpoint, generation_id: str, after: int, outputs: Outputs, *, as_json: bool) -> None:
    """Show the events of a generation to its end; write its files if a name for them is given."""
    with open_report(as_json=as_json) as report, interruptible():
        async with endpoint.client(on_reconnect=report.reconnecting) as client:
            recording = (
                Recording(outputs.video, outputs.previews, report, formats=outputs.formats) if outputs.video else None
            )
            if recording is not None:
                recording.name((await client.get(generation_id)).spec)
            ended = None
            try:
                async with aclosing(client.watch(generation_id, after_sequence=after)) as events:
                    async for event in events:
                        report.event(event)
                        if recording is not None:
                            recording.take(event)
                        after = max(after, event.sequence)
                        ended = generation_at_end(event)
            except asyncio.CancelledError:
                goes_on = f"no longer watched, it goes on: rushes watch {generation_id} --after {after}"
                raise CommandRefused(generation_id, goes_on, code=130) from None
            if ended is None:
                raise Unavailable("the stream ended before the generation did", reason="STREAM_ENDED")
            await _finish(client, ended, recording, report)


@asynccontextmanager
async def _some_gateway(
    endpoint: Endpoint, asked: Asked, report: Report, request: GenerateRequest | CreateGenerationsRequest
) -> AsyncIterator[Client]:
    """A client of the named gateway, of the suite that `rushes up` runs here, or of a suite in this process.

    The last is started only for a request that keeps the rules. Raises `InvalidRequest`, `CommandRefused`.
    """
    if endpoint.gateway is not None:
        asked.refuse_settled(endpoint.gateway, "device", "dtype")
        async with endpoint.client(on_reconnect=report.reconnecting) as client:
            yield client
        return
    state = endpoint.folder()
    choice = choose_model(asked.model, state.path)

    def on_wait(holder: Holder) -> None:
        report.notice(f"waiting for `rushes {holder.kind}` (process {holder.pid}), which holds {state.path}")

    async with state.held("generate", on_wait, joins=("up",)) as hold:
        if isinstance(hold, Holder):
            asked.refuse_settled(hold.gateway, "model", "device", "dtype")
            async with endpoint.client(hold.gateway, report.reconnecting) as client:
                yield client
            return
        from rushes.cli.embedded import SuiteSettings, check_request, embedded_suite  # noqa: PLC0415 - the services

        check_request(request)
        settings = SuiteSettings(model=choice, device=asked.device, dtype=asked.dtype)
        async with (
            embedded_suite(settings, state, report.loading) as own,
            Endpoint(state=endpoint.state).client(own, report.reconnecting) as client,
        ):
            if hold.before is not None and hold.before.kind == "generate":
                await _sweep(client)
            await _tell_notice(client, report)
            hold.serve_at(own)
            yield client


async def _sweep(client: Client) -> None:
    """Cancel what an earlier run in this state folder left when it was killed: nobody waits for it any more."""
    unfinished = (GenerationState.GENERATION_STATE_QUEUED, GenerationState.GENERATION_STATE_RUNNING)
    for generation in [one async for one in client.list(states=unfinished)]:
        await client.cancel(generation.id)


async def _tell_notice(client: Client, report: Report) -> None:
    for model in (await client.models())[:1]:
        if model.notice:
            report.notice(model.notice)


async def _follow(
    client: Client,
    stream: AsyncGenerator[GenerationEvent, None],
    recording: Recording,
    report: Report,
    interrupt: Interrupt,
) -> Generation:
    stop = asyncio.Event()
    stopping: asyncio.Task[None] | None = None
    ended: Generation | None = None

    async def stop_it(generation_id: str) -> None:
        await stop.wait()
        report.notice("cancelling; once more to leave at once")
        try:
            await client.cancel(generation_id)
        except RushesError as failure:
            report.notice(f"could not cancel: {failure}")

    try:
        async with aclosing(stream) as events:
            first = await anext(events)
            stopping = asyncio.create_task(stop_it(first.generation_id))
            with interrupt.replaced(stop.set):
                report.event(first)
                recording.take(first)
                async for event in events:
                    report.event(event)
                    recording.take(event)
                    ended = generation_at_end(event)
    finally:
        if stopping is not None:
            stopping.cancel()
            await asyncio.wait([stopping])
    if ended is None:
        raise Unavailable("the stream ended before the generation did", reason="STREAM_ENDED")
    return ended


async def _finish(client: Client, ended: Generation, recording: Recording | None, report: Report) -> Generation:
    succeeded(ended)
    if recording is not None:
        await fetch_files(client, ended, recording, report)
    report.finished(ended)
    return ended
