"""Artifacts in a folder and behind a real S3 API."""

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from services.chassis.errors import DataLoss, NotFound, Unavailable
from services.gateway.artifacts import Artifacts, sha256_of

AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@pytest.fixture(params=["folder", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Artifacts]:
    """An empty store of each kind in turn."""
    if request.param == "folder":
        yield Artifacts.open(str(tmp_path / "artifacts"))
        return
    boto3 = pytest.importorskip("boto3")
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    for name, value in {**AWS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint)
    bucket = f"clips-{uuid.uuid4().hex}"  # The servers of one process share their buckets.
    client.create_bucket(Bucket=bucket)
    client.close()
    yield Artifacts.open(f"s3://{bucket}/prefix")
    server.stop()


async def test_an_object_is_named_by_its_content_and_stored_once(artifacts: Artifacts):
    key = await artifacts.put("clips", b"content")
    assert await artifacts.put("clips", bytearray(b"content")) == key
    assert sha256_of(key) == hashlib.sha256(b"content").hexdigest()
    assert await artifacts.get(key) == b"content"


async def test_a_range_is_read_in_pieces(artifacts: Artifacts):
    data = bytes(range(256)) * 10
    key = await artifacts.put("clips", data)
    async with aclosing(artifacts.read(key, offset=100, size=len(data), chunk_bytes=1000)) as pieces:
        found = [piece async for piece in pieces]
    assert b"".join(found) == data[100:]
    assert [len(piece) for piece in found] == [1000, 1000, 460]


async def test_an_object_that_is_not_there_is_not_found(artifacts: Artifacts):
    with pytest.raises(NotFound):
        await artifacts.get(f"clips/ab/{'ab' * 32}")
    await artifacts.delete(f"clips/ab/{'ab' * 32}")


async def test_only_what_is_old_is_offered_for_sweeping(artifacts: Artifacts):
    key = await artifacts.put("checkpoints", b"state")
    now = datetime.now(UTC)
    assert await artifacts.older("checkpoints", before=now - timedelta(hours=1)) == []
    assert await artifacts.older("checkpoints", before=now + timedelta(hours=1)) == [key]
    assert await artifacts.older("clips", before=now + timedelta(hours=1)) == []


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


async def test_a_damaged_object_is_not_handed_out(tmp_path: Path):
    artifacts = Artifacts.open(str(tmp_path))
    key = await artifacts.put("checkpoints", b"state")
    (tmp_path / key).write_bytes(b"stale")
    with pytest.raises(DataLoss):
        await artifacts.get(key)


async def test_a_write_that_fails_leaves_nothing_visible(tmp_path: Path):
    artifacts = Artifacts.open(str(tmp_path))
    (tmp_path / "clips").write_bytes(b"a file where a folder has to be")
    with pytest.raises(Unavailable):
        await artifacts.put("clips", b"content")
    assert files(tmp_path) == ["clips"]
