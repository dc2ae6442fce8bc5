"""What a run says of itself: the outbox, the pace, the previews and the self-check."""

import asyncio
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.untrained import write_hollow
from services.chassis.errors import FailedPrecondition
from services.denoiser.experts import Expert
from services.denoiser.outbox import Ending, Item, Outbox, Parcel, Reason, StepReport
from services.denoiser.pace import Pace
from services.denoiser.previews import LatentProjection, Picture, PreviewRequest, encode_picture, window
from services.denoiser.reference import differences
from services.denoiser.spans import Spans
from services.model.folder import ModelFolder
from services.model.manifest import LatentRgb
from tests.denoiser.conftest import Serve


def step(index: int) -> StepReport:
    return StepReport(index=index, expert=Expert.HIGH, sigma=1.0, timestep=999.0, seconds=0.1, eta_seconds=1.0)


def parcel(next_step: int, reason: Reason = Reason.CHECKPOINT) -> Parcel:
    return Parcel(reason=reason, next_step=next_step, payload=b"x")


def picture(index: int) -> Picture:
    return Picture(step_index=index, encoding="webp", width=1, height=1, frames=1, data=b"x")


ENDING = Ending(
    reason=Reason.COMPLETED,
    next_step=2,
    steps_run=2,
    steps_shared=0,
    guidance_split=False,
    device_seconds=0.2,
    previews_dropped=0,
    spans=Spans(),
)


async def taken(outbox: Outbox) -> list[Item]:
    outbox.close()
    return [item async for item in outbox.items()]


async def test_steps_are_all_delivered_in_order() -> None:
    outbox = Outbox()
    for index in range(50):
        outbox.put(step(index))
    assert await taken(outbox) == [step(index) for index in range(50)]


async def test_of_previews_and_checkpoints_the_newest_is_kept() -> None:
    outbox = Outbox()
    for index in range(5):
        outbox.put_picture(picture(index))
        outbox.put_checkpoint(parcel(index))
    assert await taken(outbox) == [parcel(4), picture(4)]
    assert outbox.pictures_dropped == 4


async def test_a_last_bundle_makes_a_waiting_checkpoint_worthless_and_the_ending_is_last() -> None:
    outbox = Outbox()
    outbox.put_checkpoint(parcel(1))
    outbox.put(parcel(2, Reason.COMPLETED))
    outbox.put(ENDING)
    outbox.put_picture(picture(0))
    assert await taken(outbox) == [parcel(2, Reason.COMPLETED), picture(0), ENDING]


async def test_a_reader_that_waits_is_woken() -> None:
    outbox = Outbox()
    reader = asyncio.create_task(anext(outbox.items()))
    await asyncio.sleep(0)
    outbox.put(step(1))
    assert await asyncio.wait_for(reader, 60) == step(1)


def test_the_pace_is_kept_for_each_expert() -> None:
    pace = Pace()
    pace.observe(Expert.HIGH, 9.0)
    assert pace.remaining(1, 2) == pytest.approx(27.0)
    pace.observe(Expert.HIGH, 2.0)
    pace.observe(Expert.LOW, 1.0)
    # The first step of an expert also reads the text: the second replaces it.
    assert pace.remaining(3, 2) == pytest.approx(8.0)
    pace.observe(Expert.HIGH, 4.0)
    assert 2.0 < pace.remaining(1, 0) < 4.0


def test_nothing_measured_means_nothing_estimated() -> None:
    assert Pace().remaining(5, 5) == 0.0


@pytest.mark.parametrize(
    ("available", "wanted", "turns"),
    [
        (5, 1, [[2], [2]]),
        (5, 3, [[1, 2, 3], [1, 2, 3], [1, 2, 3]]),
        (3, 9, [[0, 1, 2], [0, 1, 2]]),
        (1, 4, [[0]]),
        (21, 4, [[9, 10, 11, 12], [13, 14, 15, 16], [17, 18, 19, 20], [3, 4, 5, 6]]),
    ],
)
def test_the_window_begins_in_the_middle_and_moves_on(available: int, wanted: int, turns: list[list[int]]) -> None:
    for turn, chosen in enumerate(turns):
        assert list(range(available))[window(available, wanted, turn)] == chosen


def test_latents_become_colours_by_the_models_map() -> None:
    latent_rgb = LatentRgb(factors=((1.0, 0.0, 0.0), (0.0, 0.5, 0.0)), bias=(0.0, 0.0, -1.0))
    x0 = torch.zeros(1, 2, 3, 2, 2)
    x0[0, 0, 1] = 1.0
    x0[0, 1, 1] = -2.0
    pixels = LatentProjection(latent_rgb, torch.device("cpu"))(x0, 1, 0)
    assert pixels.shape == (1, 2, 2, 3)
    assert pixels[0, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("encoding", "form"), [("webp", "WEBP"), ("jpeg", "JPEG")])
@pytest.mark.parametrize(("edge", "size"), [(0, (256, 144)), (64, (64, 36)), (1024, (1024, 576))])
def test_a_picture_has_the_clips_proportions(encoding: str, form: str, edge: int, size: tuple[int, int]) -> None:
    pixels = torch.full((1, 90, 160, 3), 128, dtype=torch.uint8)
    made = encode_picture(
        pixels,
        step_index=3,
        encoding=encoding,
        clip_width=1280,
        clip_height=720,
        max_edge=edge,  # type: ignore[arg-type]  # parametrised
    )
    assert (made.width, made.height) == size
    with Image.open(io.BytesIO(made.data)) as image:
        assert (image.format, image.size) == (form, size)


def test_previews_are_due_after_every_so_many_steps() -> None:
    request = PreviewRequest(every_steps=3, max_edge=0, frames=1, encoding="webp")
    assert [index for index in range(9) if request.due(index)] == [2, 5, 8]
    assert not PreviewRequest(every_steps=0, max_edge=0, frames=1, encoding="webp").due(0)


def test_the_published_configuration_differs_only_in_its_schedulers_shift(tmp_path: Path) -> None:
    folder = write_hollow(tmp_path / "a14b", layers=1)
    assert [(each.field, each.reference, each.actual) for each in differences(ModelFolder(folder))] == [
        ("scheduler.flow_shift", "12.0", "3.0")
    ]
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "flow_shift": 12.0}))
    assert differences(ModelFolder(folder)) == ()


def changed_file(folder: Path, name: str, **fields: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("name", "fields", "reported"),
    [
        # Guidance the other way round: each scale is the other's.
        (
            "rushes.json",
            {"guidance_scale_high": 3.0, "guidance_scale_low": 4.0},
            [("guidance_scale_high", "4.0", "3.0"), ("guidance_scale_low", "3.0", "4.0")],
        ),
        ("rushes.json", {"flow_shift": 3.0}, [("flow_shift", "12.0", "3.0")]),
        ("rushes.json", {"boundary_ratio": 0.9}, [("boundary_ratio", "0.875", "0.9")]),
        ("rushes.json", {"sigma_rule": "diffusers"}, [("sigma_rule", "wan", "diffusers")]),
        ("rushes.json", {"solver": "euler"}, [("solver", "unipc", "euler")]),
        ("rushes.json", {"steps": 50}, [("steps", "40", "50")]),
        ("model_index.json", {"boundary_ratio": 0.9}, [("model_index.boundary_ratio", "0.875", "0.9")]),
        ("transformer/config.json", {"attention_head_dim": 64}, [("rope_split", "(44, 42, 42)", "(24, 20, 20)")]),
    ],
)
def test_each_point_of_the_self_check_is_reported(
    tmp_path: Path, name: str, fields: dict[str, object], reported: list[tuple[str, str, str]]
) -> None:
    folder = write_hollow(tmp_path / "a14b", layers=1)
    changed_file(folder, "scheduler/scheduler_config.json", flow_shift=12.0)
    (folder / "rushes.json").write_text(json.dumps({"defaults": fields if name == "rushes.json" else {}}))
    if name != "rushes.json":
        changed_file(folder, name, **fields)
    assert [(each.field, each.reference, each.actual) for each in differences(ModelFolder(folder))] == reported


def test_the_negative_prompt_the_padding_and_the_statistics_of_the_latents_are_checked(tmp_path: Path) -> None:
    folder = write_hollow(tmp_path / "a14b", layers=1)
    changed_file(folder, "scheduler/scheduler_config.json", flow_shift=12.0)
    manifest = {"defaults": {"negative_prompt": ""}, "text": {"max_length": 226}}
    (folder / "rushes.json").write_text(json.dumps(manifest))
    statistics = json.loads((folder / "vae" / "config.json").read_text())
    changed_file(folder, "vae/config.json", latents_mean=[0.0] * 16, latents_std=statistics["latents_std"][::-1])
    found = {each.field: each for each in differences(ModelFolder(folder))}
    assert set(found) == {"negative_prompt", "text.max_length", "vae.latents_mean", "vae.latents_std"}
    assert found["negative_prompt"].reference.startswith("色调艳丽")
    assert (found["text.max_length"].reference, found["text.max_length"].actual) == ("512", "226")


async def test_strict_reference_refuses_a_model_that_differs(serve: Serve) -> None:
    with pytest.raises(FailedPrecondition, match="not the reference's"):
        async with serve(strict_reference=True):
            pass
