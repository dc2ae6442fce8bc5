import asyncio
from pathlib import Path

import pytest

from rushes.cli.model_choice import choose_model
from rushes.cli.names import default_video
from rushes.cli.refusal import CommandRefused
from rushes.cli.state import Hold, Holder, StateFolder
from rushes.v1.generation_pb2 import GenerationSpec


async def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    order: list[str] = []
    told: list[Holder] = []
    first_in, first_may_go = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with folder.held("up", told.append):
            order.append("first in")
            first_in.set()
            await first_may_go.wait()
            order.append("first out")

    async def second() -> None:
        await first_in.wait()
        async with folder.held("generate", on_wait) as hold:
            assert isinstance(hold, Hold)
            assert hold.before is not None
            order.append(f"second after {hold.before.kind}")

    def on_wait(holder: Holder) -> None:
        told.append(holder)
        first_may_go.set()

    async with asyncio.TaskGroup() as group:
        for one in (first, second):
            group.create_task(one())
    assert order == ["first in", "first out", "second after up"]
    assert [holder.kind for holder in told] == ["up"]
    assert folder.running() is None


async def test_a_gateway_that_runs_is_joined_as_soon_as_it_serves(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    async with folder.held("up", lambda _holder: None) as hold:
        assert isinstance(hold, Hold)
        assert folder.running() == Holder(kind="up", pid=hold.pid)

        async def join() -> str:
            async with folder.held("generate", lambda _holder: None, joins=("up",)) as other:
                assert isinstance(other, Holder)
                return other.gateway

        joining = asyncio.create_task(join())
        await asyncio.sleep(0)
        hold.serve_at("unix:/gateway.sock")
        assert await joining == "unix:/gateway.sock"


async def test_a_holder_file_that_is_damaged_is_no_holder(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    (tmp_path / "holder.json").write_text("{")
    assert folder.running() is None
    async with folder.held("read", lambda _holder: None) as hold:
        assert isinstance(hold, Hold)
        assert hold.before is None


def test_a_state_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandRefused, match="--state: cannot be used"):
        StateFolder(tmp_path / "file" / "state")


def test_a_model_is_a_folder_an_id_or_refused_with_the_rule(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(CommandRefused, match=r"has no model_index\.json"):
        choose_model(str(model), tmp_path)
    (model / "model_index.json").write_text("{}")
    assert choose_model(str(model), tmp_path).path == model
    untrained = choose_model("untrained", tmp_path)
    assert (untrained.path, untrained.missing) == (tmp_path / "models" / "untrained", True)
    with pytest.raises(CommandRefused, match="`hf download Somebody/Something` fetches it"):
        choose_model("Somebody/Something", tmp_path)


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red circle!", "a-red-circle-7.mp4"),
        ("../../etc/passwd", "etc-passwd-7.mp4"),
        ("一个红色的圆形", "一个红色的圆形-7.mp4"),
        ("!!!", "clip-7.mp4"),
        ("word " * 40, "word-word-word-word-word-word-word-word-word-7.mp4"),
        ("x" * 100, "x" * 48 + "-7.mp4"),
    ],
)
def test_a_clip_is_named_by_its_prompt_and_seed(tmp_path: Path, prompt: str, name: str) -> None:
    assert default_video(GenerationSpec(prompt=prompt, seed=7), tmp_path) == tmp_path / name
