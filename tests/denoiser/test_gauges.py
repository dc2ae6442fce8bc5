"""What a denoiser's Prometheus endpoint says of its steps, its queue, its memory and its experts."""

import asyncio
import re
import socket
import urllib.request

from tests.denoiser.caller import STEPS
from tests.denoiser.conftest import Serve


def samples(text: str, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """The values of a metric by its labels, those of telemetry itself left out."""
    found = {}
    for labels, value in re.findall(rf"^{name}(?:{{(.*?)}})? (\S+)$", text, flags=re.MULTILINE):
        pairs = re.findall(r'(\w+)="(.*?)"', labels)
        found[frozenset(pair for pair in pairs if not pair[0].startswith("otel_"))] = float(value)
    return found


async def test_steps_are_counted_by_expert_size_and_class_beside_queue_memory_and_residency(serve: Serve) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with serve(slots=2, experts="swap", metrics_port=port, memory_bytes=2**30, shapes="64x64x9") as caller:
        await caller.denoise(priority=3)
        with await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics") as response:
            text = response.read().decode()
    run = {("shape", "64x64x9"), ("class", "3")}
    by_expert = {frozenset(run | {("expert", expert)}) for expert in ("high", "low")}
    steps = samples(text, "rushes_denoiser_step_duration_seconds_count")
    assert steps.keys() == by_expert
    assert sum(steps.values()) == STEPS
    # One wait a turn, and a turn may be several steps.
    waits = samples(text, "rushes_denoiser_step_wait_seconds_count")
    assert waits
    assert waits.keys() <= by_expert
    memory = samples(text, "rushes_denoiser_memory_bytes")
    assert memory[frozenset({("kind", "available")})] == 2**30
    assert memory[frozenset({("kind", "reserved")})] == 0
    assert samples(text, "rushes_denoiser_resident")[frozenset({("expert", "low")})] == 1
    assert samples(text, "rushes_denoiser_resident")[frozenset({("expert", "high")})] == 0
    assert samples(text, "rushes_denoiser_runs").keys() == {
        frozenset({("state", state)}) for state in ("seated", "waiting")
    }
    assert samples(text, "rushes_denoiser_swaps_total") == {frozenset(): 1.0}
