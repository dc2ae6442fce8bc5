"""`rushes generate`, `create` and `watch`."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from rushes.cli.endpoint import Endpoint
from rushes.cli.interrupt import Interrupt, interruptible
from rushes.cli.model_choice import choose_model
from rushes.cli.recording import Recording
from rushes.cli.refusal import CommandRefused
from rushes.cli.reports import Report, open_report
from rushes.cli.reports.json_lines import as_dict, print_json
from rushes.cli.state import Holder
from rushes.client import Client, RushesError, Unavailable, generation_at_end, succeeded
from rushes.v1.generation_pb2 import Generation, GenerationEvent, GenerationSpec, GenerationState


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Where the files of a generation go; None for names made from the prompt and the seed, and for no previews."""

    video: Path | None = None
    previews: Path | None = None


async def generate_clip(
    endpoint: Endpoint,
    spec: GenerationSpec,
    outputs: Outputs,
    *,
    model: str | None,
    device: str | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Make a clip: at the named gateway, at the suite that `rushes up` runs here, or with a suite in this process."""
    with open_report(as_json=as_json) as report, interruptible() as interrupt:
        recording = Recording(outputs.video, outputs.previews, report)
        address = _gateway_for(endpoint, model, device, dtype)
        if address is not None:
            spec.model = model or ""
            async with endpoint.client(address, report.reconnecting) as client:
                await make(client, spec, recording, report, interrupt)
            return
        from rushes.cli.embedded import SuiteSettings, embedded_suite  # noqa: PLC0415 - it imports the services

        state = endpoint.folder()
        choice = choose_model(model, state.path)
        settings = SuiteSettings(model=choice, device=device, dtype=dtype)

        def on_wait(holder: Holder) -> None:
            report.notice(f"waiting for process {holder.pid}, which generates on {state.path}")

        async with (
            state.held("generate", on_wait) as hold,
            embedded_suite(settings, state, report.loading) as own,
            Endpoint(state=endpoint.state).client(own, report.reconnecting) as client,
        ):
            if hold.before is not None and hold.before.kind == "generate":
                await _sweep(client)
            await _tell_notice(client, report)
            hold.serve_at(own)
            await make(client, spec, recording, report, interrupt)


async def hand_in(endpoint: Endpoint, spec: GenerationSpec, request_id: str | None, *, as_json: bool) -> None:
    """Create a generation and print its id."""
    async with endpoint.client() as client:
        generation = await client.create(spec, request_id=request_id)
    if as_json:
        print_json("generation", **as_dict(generation))
    else:
        sys.stdout.write(generation.id + "\n")


async def make(
    client: Client, spec: GenerationSpec, recording: Recording, report: Report, interrupt: Interrupt
) -> Generation:
    """Make a clip and write its files. An interrupt cancels the generation and waits until it has ended so."""
    try:
        ended = await _follow(client, client.generate(spec), recording, report, interrupt)
        return await _finish(client, ended, recording, report)
    except BaseException:
        recording.discard()
        raise


async def watch(endpoint: Endpoint, generation_id: str, after: int, outputs: Outputs, *, as_json: bool) -> None:
    """Show the events of a generation to its end; write its files if a name for them is given."""
    with open_report(as_json=as_json) as report, interruptible():
        async with endpoint.client(on_reconnect=report.reconnecting) as client:
            recording = Recording(outputs.video, outputs.previews, report) if outputs.video else None
            if recording is not None:
                recording.name((await client.get(generation_id)).spec)
            ended = None
            async with aclosing(client.watch(generation_id, after_sequence=after)) as events:
                async for event in events:
                    report.event(event)
                    if recording is not None:
                        recording.take(event)
                    ended = generation_at_end(event)
            if ended is None:
                raise Unavailable("the stream ended before the generation did", reason="STREAM_ENDED")
            await _finish(client, ended, recording, report)


def _gateway_for(endpoint: Endpoint, model: str | None, device: str | None, dtype: str | None) -> str | None:
    """The gateway to use, None for a suite in this process. Raises `CommandRefused` where a setting has no effect."""
    where = endpoint.gateway
    if where is None:
        holder = endpoint.folder().running()
        where = holder.gateway if holder is not None and holder.kind == "up" and holder.gateway else None
        if where is not None and model is not None:
            raise CommandRefused("--model", f"a suite runs on this state folder at {where}; name another --state")
    for option, value in (("--device", device), ("--dtype", dtype)):
        if where is not None and value is not None:
            raise CommandRefused(option, f"is settled already by the suite at {where}")
    return where


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
        video = recording.video or recording.name(ended.spec)
        await client.download(ended.id, video)
        report.saved("video", video)
    report.finished(ended)
    return ended
