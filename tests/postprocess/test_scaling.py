import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.untrained import write_untrained
from rushes.v1 import finishing_pb2, postprocess_pb2, postprocess_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.config import load
from services.chassis.errors import FailedPrecondition
from services.chassis.lifecycle import run_server
from services.postprocess.adjust import Adjuster, Adjustments
from services.postprocess.config import PostprocessConfig
from services.postprocess.dali import DaliScaler
from services.postprocess.frames import Pixels
from services.postprocess.scaler_choice import AGREEMENT, choose_scaler
from services.postprocess.scaling import OPENCV
from services.postprocess.service import open_postprocess
from tests.postprocess.calls import Clip, Service, draw_latents, render, render_requests

CPU = torch.device("cpu")
Draw = Callable[..., Pixels]

LARGER = [
    ((64, 48), (128, 96)),
    ((64, 48), (256, 192)),
    ((48, 64), (96, 128)),
    ((65, 49), (97, 75)),
    ((16, 12), (150, 13)),
]
SMALLER = [((64, 48), (32, 24)), ((48, 64), (12, 16)), ((65, 49), (43, 31)), ((64, 48), (61, 48)), ((65, 49), (1, 1))]


def smooth(count: int, width: int, height: int) -> Pixels:
    """Random pictures without an edge in them."""
    coarse = np.random.default_rng(4).integers(0, 256, (count, 3, 4, 3)).astype(np.uint8)
    return np.stack([cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC) for picture in coarse])


def noise(count: int, width: int, height: int) -> Pixels:
    return np.random.default_rng(5).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def levels(one: Pixels, other: Pixels) -> int:
    """The largest difference at any pixel, of 255."""
    return int(np.abs(one.astype(int) - other).max())


@pytest.fixture(scope="module")
def dali() -> DaliScaler:
    return DaliScaler(CPU)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(("size", "wanted"), [*LARGER, *SMALLER])
def test_dali_and_opencv_agree_on_smooth_pictures_at_every_size(
    dali: DaliScaler, size: tuple[int, int], wanted: tuple[int, int], count: int
) -> None:
    pixels = smooth(count, *size)

    made, known = dali.scaled(pixels, *wanted), OPENCV.scaled(pixels, *wanted)

    assert made.shape == known.shape == (count, wanted[1], wanted[0], 3)
    assert levels(made, known) <= (4 if (size, wanted) in SMALLER else 2)


def test_at_hard_edges_dali_and_opencv_differ_by_their_kernels_only(dali: DaliScaler, moving_square: Draw) -> None:
    pixels = moving_square(4)

    for wanted, worst in (((128, 96), 12), ((256, 192), 12), ((32, 24), 32), ((43, 31), 32)):
        made, known = dali.scaled(pixels, *wanted), OPENCV.scaled(pixels, *wanted)
        assert levels(made, known) <= worst
        assert np.abs(made.astype(int) - known).mean() <= 1


def test_what_dali_makes_of_a_frame_depends_neither_on_its_neighbours_nor_on_the_thread(dali: DaliScaler) -> None:
    pixels, sizes = noise(4, 65, 49), [(130, 98), (31, 24), (200, 49), (64, 64)]
    alone = {size: np.concatenate([dali.scaled(pixels[i : i + 1], *size) for i in range(4)]) for size in sizes}

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda size: (size, dali.scaled(pixels, *size)), sizes * 6))

    assert all(np.array_equal(frames, alone[size]) for size, frames in made)


def test_a_result_of_dali_stays_as_it_is_when_the_next_one_is_made(dali: DaliScaler) -> None:
    first = dali.scaled(noise(2, 16, 12), 32, 24)
    kept = first.copy()

    dali.scaled(255 - noise(2, 16, 12), 32, 24)

    assert np.array_equal(first, kept)


@pytest.mark.parametrize("gamma", [0.6, 1.0])
@pytest.mark.parametrize("saturation", [0.0, 0.3, 1.0, 1.7, 4.0])
def test_dali_and_opencv_agree_on_light_and_colour(dali: DaliScaler, gamma: float, saturation: float) -> None:
    adjustments = Adjustments(brightness=0.05, contrast=1.2, gamma=gamma, saturation=saturation)
    pixels = noise(3, 64, 48)[:, 1:, :-1]

    made, known = Adjuster(adjustments, dali).adjusted(pixels), Adjuster(adjustments).adjusted(pixels)

    assert levels(made, known) <= (0 if saturation == 1 else 1)
    assert levels(known, pixels) > 20


def test_sharpness_is_opencvs_whatever_scales(dali: DaliScaler) -> None:
    adjustments, pixels = Adjustments(sharpness=1.5), noise(2, 64, 48)

    assert np.array_equal(Adjuster(adjustments, dali).adjusted(pixels), Adjuster(adjustments).adjusted(pixels))


def test_left_to_itself_a_process_on_the_cpu_takes_opencv_and_does_not_measure() -> None:
    chosen = choose_scaler("auto", CPU)

    assert chosen.scaler is OPENCV
    assert not chosen.seconds
    assert choose_scaler("opencv", CPU).scaler is OPENCV


def test_the_fastest_that_agrees_is_taken_where_it_is_to_be_measured() -> None:
    chosen = choose_scaler("measure", CPU)

    assert set(chosen.seconds) == {"opencv", "dali"}
    assert chosen.scaler.name == min(chosen.seconds, key=lambda name: chosen.seconds[name])


def test_without_dali_nothing_else_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)

    assert choose_scaler("measure", CPU).scaler is OPENCV
    assert choose_scaler("auto", torch.device("cuda", 0)).scaler is OPENCV
    with pytest.raises(FailedPrecondition, match=r"DALI is not installed here: pip install 'rushes\[dali\]'"):
        choose_scaler("dali", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, where it would work")
def test_dali_on_a_gpu_that_is_not_there_is_left_out_or_refused_with_its_reason() -> None:
    device = torch.device("cuda", 0)

    assert choose_scaler("auto", device).scaler is OPENCV
    with pytest.raises(FailedPrecondition, match=r"DALI does not work on cuda:0: .*CUDA"):
        choose_scaler("dali", device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and none is visible")
def test_on_a_gpu_dali_scales_and_tones_as_on_the_cpu(dali: DaliScaler) -> None:
    chosen = choose_scaler("auto", torch.device("cuda", 0)).scaler

    assert chosen.name == "dali"
    for size, wanted in [*LARGER, *SMALLER]:
        pixels = smooth(4, *size)
        assert levels(chosen.scaled(pixels, *wanted), dali.scaled(pixels, *wanted)) <= 1
    adjustments, pixels = Adjustments(gamma=0.7, saturation=1.6), noise(4, 64, 48)
    assert levels(Adjuster(adjustments, chosen).adjusted(pixels), Adjuster(adjustments).adjusted(pixels)) <= AGREEMENT


async def test_a_clip_is_scaled_and_coloured_by_dali_where_the_configuration_says_so(tmp_path: Path) -> None:
    folder = write_untrained(tmp_path / "model")
    finish = finishing_pb2.FinishPlan(
        upscale=2,
        width=90,
        height=160,
        fit=finishing_pb2.FIT_PAD,
        adjustments=finishing_pb2.Adjustments(saturation=1.4, gamma=1.2),
    )
    clips: dict[str, list[Clip]] = {}
    described: dict[str, postprocess_pb2.DescribePostprocessResponse] = {}
    for name in ("opencv", "dali"):
        config = load(PostprocessConfig, ["--model", str(folder), "--device", "cpu", "--frame-scaler", name])
        async with (
            run_server(config, "postprocess", partial(open_postprocess, config)) as running,
            open_channel(running.address) as channel,
        ):
            service = Service(stub=postprocess_pb2_grpc.PostprocessServiceStub(channel), running=running)
            described[name] = await service.stub.DescribePostprocess(postprocess_pb2.DescribePostprocessRequest())
            requests = render_requests(draw_latents(9), finish=finish)
            planned = await service.stub.PlanRender(postprocess_pb2.PlanRenderRequest(start=requests[0].start))
            clips[name] = [await render(service, requests) for _ in range(2)]
            assert clips[name][0].accepted == planned.accepted
            assert (planned.accepted.width, planned.accepted.height) == (90, 160)

    assert {name: response.frame_scaler.id for name, response in described.items()} == {
        "opencv": "opencv",
        "dali": "dali",
    }
    assert described["opencv"].fingerprint != described["dali"].fingerprint
    for first, again in clips.values():
        assert first.data == again.data
    made, known = clips["dali"][0].frames(), clips["opencv"][0].frames()
    assert made.shape == known.shape == (9, 160, 90, 3)
    assert not np.array_equal(made, known)
    assert np.abs(made.astype(int) - known).mean() < 3


async def test_a_service_that_is_to_use_dali_does_not_start_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    config = PostprocessConfig(model=write_untrained(tmp_path / "model"), device="cpu", frame_scaler="dali")

    with pytest.raises(FailedPrecondition, match="DALI is not installed here"):
        async with run_server(config, "postprocess", partial(open_postprocess, config)):
            pass
