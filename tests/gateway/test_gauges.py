"""What an operator sees: circuits, queues and waits, as they are scraped."""

from pathlib import Path

from rushes.v1 import generation_pb2 as gp
from services.gateway.breaker import Circuit
from tests.gateway.suite import Behaviour, eventually, suite

CREATE = gp.CreateGenerationRequest(spec=gp.GenerationSpec(prompt="a red circle"))


async def test_circuits_and_what_waits_and_runs_in_each_tier_are_seen(tmp_path: Path) -> None:
    async with suite(tmp_path, Behaviour(step_seconds=30)) as running:

        def generations(state: str) -> float | None:
            return running.metrics.get_sample_value("rushes_gateway_generations", {"tier": "standard", "state": state})

        def waits() -> float | None:
            return running.metrics.get_sample_value("rushes_gateway_queue_wait_seconds_count", {"tier": "standard"})

        for _ in range(9):
            await running.stub.CreateGeneration(CREATE)
        await eventually(lambda: (generations("running") or 0) >= 1 and (generations("queued") or 0) >= 1)
        # A wait is counted when a generation is claimed, the gauges at their next look into the database.
        await eventually(lambda: waits() == generations("running") and generations("queued") == 9 - (waits() or 0))
        for stage in ("encoder", "denoiser", "postprocess"):
            rows = [
                sample.value
                for metric in running.metrics.collect()
                if metric.name == "rushes_gateway_circuit"
                for sample in metric.samples
                if sample.labels["stage"] == stage
            ]
            assert rows == [Circuit.CLOSED.value]
        for generation in (await running.stub.ListGenerations(gp.ListGenerationsRequest())).generations:
            await running.stub.CancelGeneration(gp.CancelGenerationRequest(id=generation.id))
