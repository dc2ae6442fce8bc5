import hashlib
from collections import deque
from pathlib import Path

import grpc
import pytest

from rushes.client import Client, DataLoss, FailedPrecondition
from tests.clients.scripted_gateway import CLIP, Fault, Script


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def made(client: Client) -> str:
    return (await client.create("a red circle")).id


async def test_a_clip_is_saved_and_its_hash_checked(client: Client, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    destination = tmp_path / "clip.mp4"

    saved = await client.download(await made(client), destination, on_progress=lambda *at: progress.append(at))

    assert destination.read_bytes() == CLIP
    assert (saved.size_bytes, saved.sha256) == (len(CLIP), hashlib.sha256(CLIP).hexdigest())
    assert progress[-1] == (len(CLIP), len(CLIP))
    assert files(tmp_path) == [destination]


async def test_lost_connections_resume_at_the_byte(client: Client, script: Script, tmp_path: Path) -> None:
    script.faults = deque(
        [Fault(after=3, plain=grpc.StatusCode.UNAVAILABLE), Fault(after=2), Fault(after=0), Fault(after=99)]
    )

    progress = [0]
    script.downloaded = lambda: progress[-1]

    await client.download(
        await made(client), tmp_path / "clip.mp4", on_progress=lambda done, _total: progress.append(done)
    )

    assert (tmp_path / "clip.mp4").read_bytes() == CLIP
    piece = len(CLIP) // 8
    assert [request.offset for request in script.seen("DownloadVideo")] == [0, 3 * piece, 5 * piece, 5 * piece]


async def test_a_download_that_was_broken_off_is_taken_up_again(client: Client, script: Script, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4.part").write_bytes(CLIP[:1000])

    await client.download(await made(client), tmp_path / "clip.mp4")

    assert [request.offset for request in script.seen("DownloadVideo")] == [1000]
    assert (tmp_path / "clip.mp4").read_bytes() == CLIP


async def test_a_part_that_is_whole_needs_no_bytes(client: Client, script: Script, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4.part").write_bytes(CLIP)

    await client.download(await made(client), tmp_path / "clip.mp4")

    assert script.seen("DownloadVideo") == []
    assert (tmp_path / "clip.mp4").read_bytes() == CLIP


@pytest.mark.parametrize("part", [b"of another clip", b"x" * (len(CLIP) + 1)])
async def test_a_part_of_another_clip_is_thrown_away(client: Client, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "clip.mp4.part").write_bytes(part)

    await client.download(await made(client), tmp_path / "clip.mp4")

    assert (tmp_path / "clip.mp4").read_bytes() == CLIP


async def test_bytes_that_do_not_match_their_hash_are_not_kept(client: Client, script: Script, tmp_path: Path) -> None:
    script.stated_sha256 = "0" * 64

    with pytest.raises(DataLoss):
        await client.download(await made(client), tmp_path / "clip.mp4")

    assert files(tmp_path) == []


async def test_a_failed_generation_has_no_clip(client: Client, script: Script, tmp_path: Path) -> None:
    script.ends_in = "failed"
    with pytest.raises(FailedPrecondition, match="has no clip"):
        await client.download(await made(client), tmp_path / "clip.mp4")


async def test_the_bytes_can_be_streamed_from_an_offset(client: Client) -> None:
    generation_id = await made(client)
    assert b"".join([data async for data in client.video(generation_id)]) == CLIP
    assert b"".join([data async for data in client.video(generation_id, offset=777)]) == CLIP[777:]
