"""A client that is not ours, `buf curl`, which knows of the suite only what the server tells by reflection."""

import asyncio
import json
import os
import sys
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.rpc import error_details_pb2

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

BUF = Path(sys.executable).with_name("buf")
SMALL = {"width": 64, "height": 64, "numFrames": 5, "seed": "7", "sampling": {"steps": 3}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(tmp_path_factory: pytest.TempPathFactory, model: Path) -> AsyncIterator[str]:
    """Where `rushes up` serves."""
    folder = tmp_path_factory.mktemp("up")
    arguments = ["up", "--model", str(model), "--listen", "127.0.0.1:0", "--state", str(folder / "state")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUSHES_")}
    with (folder / "log").open("wb") as log:
        suite = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rushes.cli",
            *arguments,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
    assert suite.stdout is not None
    ready = (await suite.stdout.readline()).decode().split()
    assert ready[:1] == ["ready"], (folder / "log").read_text()[-4000:]
    try:
        yield ready[1]
    finally:
        suite.terminate()
        assert await suite.wait() == 0


async def call(address: str, method: str, request: dict[str, Any], service: str = "GenerationService") -> Any:
    """Every response of a call as JSON; of a call that was refused, the error."""
    process = await asyncio.create_subprocess_exec(
        str(BUF),
        "curl",
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
        "--data",
        json.dumps(request),
        f"http://{address}/rushes.v1.{service}/{method}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode:
        return json.loads(err)
    decoder, text, found = json.JSONDecoder(), out.decode().strip(), []
    while text:
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:].lstrip()
    return found


def details(error: Any) -> dict[str, Any]:
    """What came with an error, by type."""
    found: dict[str, Any] = {}
    for one in error["details"]:
        name = one["type"].rpartition(".")[2]
        value = one["value"]
        found[name] = getattr(error_details_pb2, name).FromString(b64decode(value + "=" * (-len(value) % 4)))
    return found


async def test_a_clip_is_ordered_watched_and_read(address: str) -> None:
    (made,) = await call(address, "CreateGeneration", {"spec": {"prompt": "a red circle", **SMALL}})
    generation = made["generation"]
    assert generation["state"] == "GENERATION_STATE_QUEUED"
    assert generation["spec"]["seed"] == "7"

    events = [one["event"] for one in await call(address, "WatchGeneration", {"id": generation["id"]})]
    durable = [event for event in events if "sequence" in event]
    assert [int(event["sequence"]) for event in durable] == list(range(1, len(durable) + 1))
    assert sum("step" in event for event in durable) == 3
    assert "succeeded" in durable[-1]

    middle = durable[len(durable) // 2]["sequence"]
    rest = await call(address, "WatchGeneration", {"id": generation["id"], "afterSequence": middle})
    assert [one["event"] for one in rest if "sequence" in one["event"]] == durable[int(middle) :]

    (seen,) = await call(address, "GetGeneration", {"id": generation["id"]})
    assert seen["generation"]["state"] == "GENERATION_STATE_SUCCEEDED"
    assert seen["generation"] == durable[-1]["succeeded"]["generation"]
    pieces = await call(address, "DownloadVideo", {"id": generation["id"]})
    assert pieces[-1]["sha256"] == seen["generation"]["video"]["sha256"]


async def test_a_bad_request_is_refused_with_its_field_and_rule(address: str) -> None:
    error = await call(address, "CreateGeneration", {"spec": {"prompt": "a", "numFrames": 6}})
    assert error["code"] == "invalid_argument"
    said = details(error)
    assert (said["ErrorInfo"].domain, said["ErrorInfo"].reason) == ("rushes.dev", "INVALID_REQUEST")
    (violation,) = said["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("spec.num_frames", "must be 4k + 1 (1, 5, 9, ... 81)")


async def test_what_does_not_exist_is_named(address: str) -> None:
    error = await call(address, "GetGeneration", {"id": "nowhere"})
    assert error["code"] == "not_found"
    assert details(error)["ErrorInfo"].reason == "GENERATION_NOT_FOUND"
    assert details(error)["ResourceInfo"].resource_name == "nowhere"


async def test_a_generation_is_cancelled(address: str) -> None:
    spec = {"prompt": "a long one", **SMALL, "sampling": {"steps": 100}}
    (made,) = await call(address, "CreateGeneration", {"spec": spec})
    (ended,) = await call(address, "CancelGeneration", {"id": made["generation"]["id"]})
    assert ended["generation"]["state"] == "GENERATION_STATE_CANCELLED"


async def test_what_can_be_asked_for_is_listed(address: str) -> None:
    (models,) = await call(address, "ListModels", {}, service="CatalogService")
    (limits,) = await call(address, "GetLimits", {}, service="CatalogService")
    assert models["models"][0]["id"]
    assert [tier["name"] for tier in limits["tiers"]] == ["draft", "standard", "priority", "batch"]
