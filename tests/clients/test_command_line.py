import asyncio
import json
import os
import re
import signal
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from rushes.cli.__main__ import main
from rushes.cli.batch import read_batch
from rushes.cli.refusal import CommandRefused
from tests.clients.scripted_gateway import CLIP, SHEET, STEPS, Fault, Script, status

UNAVAILABLE = status(grpc.StatusCode.UNAVAILABLE, "the gateway is going away", "DRAINING")


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


class CommandLine:
    """`rushes` in a folder of its own, told of a gateway."""

    def __init__(self, folder: Path, gateway: str | None) -> None:
        self.folder = folder
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RUSHES_")}
        self.environment = environment | {"RUSHES_STATE": str(folder / "state"), "COLUMNS": "100"}
        if gateway is not None:
            self.environment["RUSHES_GATEWAY"] = gateway

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        (self.folder / "work").mkdir(exist_ok=True)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rushes.cli",
            *arguments,
            cwd=self.folder / "work",
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *arguments: str) -> Done:
        process = await self.start(*arguments)
        out, err = await process.communicate()
        assert process.returncode is not None
        return Done(code=process.returncode, out=out.decode(), err=err.decode())

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.folder / "work").iterdir())}


@pytest.fixture
def rushes(gateway: str, tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, gateway)


@pytest.fixture
def rushes_alone(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, None)


async def test_generate_writes_the_clip_and_the_contact_sheet(rushes: CommandLine) -> None:
    done = await rushes("generate", "A red circle, moving left!", "--seed", "7")

    assert (done.code, done.err) == (0, "")
    assert rushes.files() == {"a-red-circle-moving-left-7.mp4": CLIP, "a-red-circle-moving-left-7.png": SHEET}


async def test_output_that_is_no_terminal_is_at_most_a_line_a_stage(rushes: CommandLine) -> None:
    done = await rushes("generate", "a red circle")

    stages = [line.split()[0] for line in done.out.splitlines()]
    assert stages == ["queue", "encode", "denoise", "render", "saved", "saved", "succeeded"]
    assert "4 steps (2 high noise, 2 low noise) in 400 ms, 0.100 s/step" in done.out
    assert "\x1b" not in done.out


async def test_json_output_is_json_only_and_carries_every_event(rushes: CommandLine) -> None:
    done = await rushes("generate", "a red circle", "--json", "--previews", "previews")

    assert done.err == ""
    kinds = [line["kind"] for line in done.lines]
    assert kinds.count("step") == STEPS
    assert kinds[0] == "queued"
    assert "succeeded" in kinds
    saved = {str(line["what"]): str(line["path"]) for line in done.lines if line["kind"] == "saved"}
    assert set(saved) == {"video", "contact_sheet", "preview"}
    assert "data" not in json.dumps([line for line in done.lines if line["kind"] == "fragment"]).replace("data_b", "")
    assert [path.name for path in sorted((rushes.folder / "work/previews").iterdir())] == [
        f"step-{step:04d}.webp" for step in range(1, STEPS + 1)
    ]


async def test_settings_reach_the_gateway(rushes: CommandLine, script: Script) -> None:
    await rushes(
        *("generate", "a red circle", "--width", "96", "--frames", "17", "--steps", "8", "--solver", "euler"),
        *("--guidance-low", "2.5", "--shift", "5", "--negative", "", "--boundary", "0.9", "--source-fps", "8"),
    )

    (request,) = script.seen("Generate")
    spec = request.spec
    assert (spec.width, spec.num_frames, spec.fps, spec.sampling.steps) == (96, 17, 8, 8)
    assert (spec.sampling.guidance_scale_low, spec.sampling.flow_shift, spec.sampling.boundary_ratio) == (2.5, 5, 0.9)
    assert spec.HasField("negative_prompt")
    assert not spec.HasField("height")
    assert spec.HasField("previews")
    assert spec.previews.every_steps == 0


async def test_an_earlier_clip_is_not_overwritten(rushes: CommandLine) -> None:
    for _ in range(2):
        await rushes("generate", "a red circle", "--seed", "1")

    assert sorted(rushes.files()) == [
        *("a-red-circle-1-2.mp4", "a-red-circle-1-2.png", "a-red-circle-1.mp4", "a-red-circle-1.png")
    ]


async def test_the_output_can_be_named_and_can_be_a_folder(rushes: CommandLine) -> None:
    await rushes("generate", "a red circle", "-o", "deep/down/clip.mp4")
    assert (rushes.folder / "work/deep/down/clip.mp4").read_bytes() == CLIP
    assert (rushes.folder / "work/deep/down/clip.png").read_bytes() == SHEET

    await rushes("generate", "a red circle", "-o", "deep")
    assert (rushes.folder / "work/deep/a-red-circle-0.mp4").read_bytes() == CLIP


async def test_a_stream_that_is_lost_is_mended_and_the_clip_is_whole(rushes: CommandLine, script: Script) -> None:
    script.faults = deque([Fault(after=after, status=UNAVAILABLE) for after in (1, 5, 3)])

    done = await rushes("generate", "a red circle")

    assert done.code == 0
    assert done.out.count("retry") == 3
    assert rushes.files()["a-red-circle-0.mp4"] == CLIP


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["generate"], "PROMPT: give either a prompt or --batch"),
        (["create"], "Missing argument 'PROMPT'"),
        (["generate", "--batch", "none.jsonl"], "Invalid value for '--batch': "),
        (["generate", "x", "--steps", "many"], "Invalid value for '--steps': "),
        (["generate", "x", "--solver", "magic"], "sampling.solver: must be one of unipc, euler, dpmpp_2m"),
        (["generate", "x", "--seed", str(2**70)], "seed: must fit the field's type and range"),
        (["generate", "x", "--output", "clip.avi"], "--output: must be a folder or a name that ends in .mp4"),
        (["generate", "x", "--gateway", "nowhere"], "--gateway: gateway address 'nowhere': must be host:port"),
        (["generate", "x", "--gateway", "a:1", "--device", "cpu"], "--device: is settled already by the suite at a:1"),
        (["generate", "x", "--gateway", "a:1", "--api-key", "k"], "--gateway: api_key: would travel in clear text"),
        (["generate", "x", "--model", "none"], "--model: none is neither a folder nor a known model"),
        (["list", "--only", "lost"], "--only: must be one of queued, running, succeeded, failed, cancelled"),
        (["prompts", "-l", "fr"], "--language: must be one of en, zh, ja"),
        (["serve", "kitchen"], "SERVICE: must be one of encoder, denoiser, postprocess, gateway"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["up", "--model", "some/where"], "--model: some/where is neither a folder nor a known model; `hf download"),
    ],
)
def test_bad_input_is_one_line_with_the_field_and_the_rule(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RUSHES_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rushes", *arguments])

    with pytest.raises(SystemExit) as ended:
        main()

    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err.startswith(f"rushes: {complaint}")
    assert told.err.count("\n") == 1


async def test_what_the_gateway_refuses_is_one_line_too(rushes: CommandLine) -> None:
    done = await rushes("generate", "")
    assert (done.code, done.out, done.err) == (2, "", "rushes: spec.prompt: must not be empty\n")

    done = await rushes("download", "g-none")
    assert (done.code, done.out, done.err) == (2, "", "rushes: no generation g-none\n")
    assert rushes.files() == {}


async def test_an_error_in_json_is_json(rushes: CommandLine) -> None:
    done = await rushes("generate", "", "--json")

    assert (done.code, done.err) == (2, "")
    (line,) = done.lines
    assert (line["kind"], line["reason"], line["exit_code"]) == ("error", "INVALID_REQUEST", 2)
    assert line["violations"] == [{"field": "spec.prompt", "rule": "must not be empty"}]


async def test_a_suite_is_not_started_for_a_request_that_breaks_a_rule(rushes_alone: CommandLine) -> None:
    done = await rushes_alone("generate", "x", "--width", "100")

    assert (done.code, done.out, done.err) == (2, "", "rushes: spec.width: must be a positive multiple of 16\n")


async def test_an_absent_gateway_is_exit_code_3(rushes_alone: CommandLine) -> None:
    done = await rushes_alone("generate", "x", "--gateway", "127.0.0.1:1")
    assert (done.code, done.err) == (3, "rushes: no gateway answers at 127.0.0.1:1\n")

    done = await rushes_alone("create", "x")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "rushes up" in done.err


async def test_a_full_queue_says_when_to_try_again(rushes: CommandLine, script: Script) -> None:
    delay = error_details_pb2.RetryInfo()
    delay.retry_delay.FromSeconds(40)
    script.unary_faults = deque([status(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", "QUEUE_FULL", delay)])

    done = await rushes("generate", "x")

    assert (done.code, done.err) == (3, "rushes: the queue is full (try again in 40 s)\n")


async def test_a_failed_generation_is_exit_code_4_and_leaves_no_clip(rushes: CommandLine, script: Script) -> None:
    script.ends_in = "failed"

    done = await rushes("generate", "x")

    assert (done.code, done.err) == (4, "rushes: denoiser: the device was lost\n")
    assert rushes.files() == {}


async def test_ctrl_c_cancels_the_generation_and_waits_for_its_end(rushes: CommandLine, script: Script) -> None:
    script.step_seconds = 0.3
    process = await rushes.start("generate", "a red circle", "--json")
    assert process.stdout is not None
    while b'"kind": "step"' not in await process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()

    assert process.returncode == 130
    assert len(script.cancelled) == 1
    kinds = [json.loads(line)["kind"] for line in out.decode().splitlines()]
    assert kinds[-2:] == ["cancelled", "error"]
    assert err == b""
    assert rushes.files() == {}


async def test_ctrl_c_of_a_watch_leaves_the_generation_alone_and_says_how_to_go_on(
    rushes: CommandLine, script: Script
) -> None:
    generation_id = (await rushes("create", "a red circle")).out.strip()
    script.faults = deque([Fault(after=6, silent=True)])
    process = await rushes.start("watch", generation_id, "--json")
    assert process.stdout is not None
    while b'"sequence": "6"' not in await process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, _ = await process.communicate()

    assert process.returncode == 130
    assert f"rushes watch {generation_id} --after 6" in json.loads(out)["message"]
    assert script.cancelled == set()


async def test_a_second_ctrl_c_kills(rushes: CommandLine, script: Script) -> None:
    script.faults = deque([Fault(after=2, silent=True)])
    process = await rushes.start("generate", "a red circle", "--json")
    assert process.stdout is not None
    await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    while b"cancelling" not in await process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)

    await process.communicate()
    assert process.returncode == -signal.SIGINT


async def test_create_then_watch_then_download(rushes: CommandLine) -> None:
    created = await rushes("create", "a red circle", "--seed", "3")
    generation_id = created.out.strip()
    assert re.fullmatch(r"g-[0-9a-f]{8}", generation_id)

    watched = await rushes("watch", generation_id, "--after", "4", "--json")
    assert [line["sequence"] for line in watched.lines if "sequence" in line] == [str(n) for n in range(5, 15)]
    assert rushes.files() == {}

    downloaded = await rushes("download", generation_id)
    assert (downloaded.code, downloaded.out) == (0, "a-red-circle-3.mp4\n")
    assert rushes.files() == {"a-red-circle-3.mp4": CLIP}

    watched = await rushes("watch", generation_id, "--after", "12", "-o", "late.mp4")
    assert watched.code == 0
    assert rushes.files()["late.mp4"] == CLIP


async def test_list_show_cancel_and_models(rushes: CommandLine, script: Script) -> None:
    ids = [(await rushes("create", f"prompt {index}")).out.strip() for index in range(3)]

    listed = await rushes("list", "-n", "2")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["id", *ids[:2]]
    assert [line["id"] for line in (await rushes("list", "--json")).lines] == ids
    assert "prompt 1" in (await rushes("show", ids[1])).out
    assert (await rushes("cancel", ids[2])).out == f"{ids[2]} cancelled\n"
    assert script.cancelled == {ids[2]}
    assert "follows a script" in (await rushes("models")).out


async def test_a_batch_makes_every_clip_and_says_which_failed(rushes: CommandLine, script: Script) -> None:
    (rushes.folder / "batch.jsonl").write_text('"a red circle"\n\n{"prompt": "a blue star", "seed": 8, "steps": 3}\n')

    done = await rushes("generate", "--batch", "../batch.jsonl", "--steps", "9", "-o", "clips")

    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in (rushes.folder / "work/clips").iterdir()) == [
        *("a-blue-star-8.mp4", "a-blue-star-8.png", "a-red-circle-0.mp4", "a-red-circle-0.png")
    ]
    (request,) = script.seen("CreateGenerations")
    assert [spec.sampling.steps for spec in request.specs] == [9, 3]

    script.ends_in = "failed"
    done = await rushes("generate", "--batch", "../batch.jsonl", "-o", "more")
    assert (done.code, done.err) == (4, "rushes: 2 of 2 generations failed\n")
    assert list((rushes.folder / "work/more").iterdir()) == []


@pytest.mark.parametrize("line", ["{", "7", '{"prompt": "x", "stepz": 3}', '{"prompt": "x", "solver": "magic"}', "{}"])
def test_a_bad_line_of_a_batch_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "batch.jsonl").write_text(f'"a red circle"\n{line}\n')

    with pytest.raises(CommandRefused, match="--batch, line 2: "):
        read_batch(tmp_path / "batch.jsonl", {})


async def test_regenerate_delete_and_usage(rushes: CommandLine, script: Script) -> None:
    first = (await rushes("create", "a red circle", "--seed", "1")).out.strip()
    second = (await rushes("regenerate", first, "--seed", "6")).out.strip()
    assert [one.spec.seed for one in script.created.values()] == [1, 6]

    assert (await rushes("delete", first, second)).code == 0
    assert script.created == {}
    assert "2026-11-20  3" in (await rushes("usage", "--days", "7")).out


async def test_the_trace_is_a_tree_whose_parts_add_up(rushes: CommandLine) -> None:
    generation_id = (await rushes("create", "a red circle")).out.strip()

    done = await rushes("trace", generation_id)

    assert done.out.startswith("trace 0af7651916cd43dd8448eb211c80319c\n")
    assert re.search(r"^generation +█+ +1000.0 ms 100.0%$", done.out, re.MULTILINE)
    assert re.search(r"^    denoise.step index=3 +[▏▎▍▌▋▊▉█]+ +100.0 ms  10.0%$", done.out, re.MULTILINE)
    assert "the parts add up to 1.000 s of 1.000 s (100.0%)" in done.out


async def test_help_needs_neither_grpc_nor_torch() -> None:
    program = (
        "import sys\nfrom rushes.cli.__main__ import main\nsys.argv = ['rushes', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()

    loaded = set(out.decode().splitlines()[-1].split())
    assert "LOADED" in loaded
    assert not loaded & {"grpc", "google", "torch", "numpy", "diffusers", "transformers", "services", "pydantic"}


async def test_prompts_come_in_three_languages(rushes_alone: CommandLine) -> None:
    texts = {one: (await rushes_alone("prompts", "-l", one)).out.splitlines() for one in ("en", "zh", "ja")}

    assert texts["en"][0] == "a red circle moves left over the blue sea"
    assert len({len(lines) for lines in texts.values()}) == 1
    assert len(set().union(*texts.values())) == 3 * len(texts["en"])
