"""The harness of the benchmark of Wan's decoder, at a size for the CPU."""

import asyncio

import pytest
import torch

from benchmarks import wan_decoder


def test_a_clip_is_decoded_by_every_way_and_the_first_picture_comes_early() -> None:
    bench = wan_decoder.Bench.build(wan_decoder.SMALL, torch.device("cpu"), torch.float32)
    bench.clip(wan_decoder.SMALL.shapes[0], wan_decoder.SMALL.tile, repeats=1)
    streamed, tiled, whole, ratio = bench.figures
    assert [figure.name.split(",")[0] for figure in (streamed, tiled, whole)] == [
        "streamed",
        "streamed in tiles of 64",
        "diffusers",
    ]
    assert ratio.value == streamed.value / whole.value
    # One chunk of five.
    assert bench.firsts[streamed.name] < bench.samples[streamed.name][0]


def test_without_a_gpu_the_full_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--small"):
        asyncio.run(wan_decoder.measure())
