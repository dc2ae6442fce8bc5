"""How large the decoder's tiles are: as configured, or the largest that fit into the memory that is there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from rushes.v1 import postprocess_pb2
from services.model.allocations import tensors_of
from services.model.folder import ModelFolder
from services.model.weights import load_module
from services.postprocess.config import PostprocessConfig
from services.postprocess.decode import WHOLE, WanDecoder, appetite_of
from services.postprocess.decoder_choice import choose_decoder
from services.postprocess.tiling import SMALLEST, Appetite, DoesNotFit, FittingTiles, FixedTiles
from tests.postprocess.calls import draw_latents, refusal, render, render_requests
from tests.postprocess.conftest import OpenService

MakeVae = Callable[[], AutoencoderKLWan]
APPETITE = Appetite(held=1000.0, work=4000.0)
HEIGHT, WIDTH = 90, 160


def fitting(available: int) -> FittingTiles:
    return FittingTiles(appetite=APPETITE, available=available)


def test_a_picture_that_fits_stays_whole() -> None:
    mosaic = fitting(5000 * HEIGHT * WIDTH).mosaic(HEIGHT, WIDTH, 8)

    assert mosaic.edge == 0
    assert len(mosaic.tiles) == 1


@pytest.mark.parametrize("share", [0.99, 0.8, 0.6, 0.5])
def test_less_memory_means_the_largest_tiles_that_fit(share: float) -> None:
    available = round(share * 5000 * HEIGHT * WIDTH)
    mosaic = fitting(available).mosaic(HEIGHT, WIDTH, 8)

    assert mosaic.edge >= 8 * SMALLEST
    assert APPETITE.of(mosaic) <= available
    larger = [FixedTiles(size=size).mosaic(HEIGHT, WIDTH, 8) for size in range(mosaic.edge // 8 + 2, WIDTH, 2)]
    assert all(APPETITE.of(each) > available for each in larger)


def test_a_picture_that_no_tiles_make_small_enough_is_refused_with_both_figures() -> None:
    with pytest.raises(DoesNotFit) as refused:
        fitting(1_000_000).mosaic(HEIGHT, WIDTH, 8)

    assert refused.value.available == 1_000_000
    assert refused.value.needed > 1000 * HEIGHT * WIDTH


def test_what_was_measured_on_a_small_picture_foretells_what_a_larger_one_takes(make_vae: MakeVae) -> None:
    decoder = WanDecoder(make_vae())
    appetite = appetite_of(decoder)
    latents = torch.randn(16, 4, 24, 60, generator=torch.Generator().manual_seed(1))
    for tiling in (WHOLE, FixedTiles(size=40, overlap=12)):
        tiled = WanDecoder(make_vae(), tiling)

        def decode(tiled: WanDecoder = tiled) -> None:
            for _ in tiled.stream(latents):
                pass

        foretold = appetite.of(tiled.mosaic(24, 60))
        assert foretold == pytest.approx(tensors_of(decode).peak, rel=0.15)


def test_a_process_measures_only_where_memory_is_counted(make_vae: MakeVae) -> None:
    def chosen(**settings: object) -> WanDecoder:
        return choose_decoder(make_vae(), PostprocessConfig(model="folder", **settings))

    assert chosen().tiling == WHOLE
    assert chosen(tile_size=512, tile_overlap=64).tiling == FixedTiles(size=64, overlap=8)
    tiling = chosen(decode_memory_bytes=10**9, slots=4).tiling
    assert isinstance(tiling, FittingTiles)
    assert tiling.available == 250_000_000
    assert len({chosen(decode_memory_bytes=size).tiling.facts for size in (10**8, 10**9)}) == 2


async def test_a_service_tells_its_tiles_and_refuses_what_does_not_fit(postprocess: OpenService, model: Path) -> None:
    vae = load_module(ModelFolder(model).component("vae"), AutoencoderKLWan, torch.float32, torch.device("cpu"))
    appetite = appetite_of(WanDecoder(vae))
    enough = appetite.of(FixedTiles(size=20, overlap=4).mosaic(8, 32, 8))
    requests = render_requests(draw_latents(5, width=256, height=64))
    async with postprocess(slots=1, tile_overlap=32, decode_memory_bytes=enough) as service:
        clip = await render(service, requests)
        planned = await service.stub.PlanRender(postprocess_pb2.PlanRenderRequest(start=requests[0].start))
        small = await render(service, render_requests(draw_latents(5)))
    async with postprocess(tile_size=160, tile_overlap=32) as service:
        known = await render(service, requests)
    async with postprocess(slots=2, tile_overlap=32, decode_memory_bytes=enough) as service:
        refused = await refusal(service, requests[:1])

    assert clip.accepted.tile_edge == planned.accepted.tile_edge == known.accepted.tile_edge == 160
    assert small.accepted.tile_edge == 0
    assert clip.data == known.data
    # Before any of the latents had come.
    assert refused.reason == "DEVICE_MEMORY"
    assert f"{enough // 2} are there for it" in refused.message
