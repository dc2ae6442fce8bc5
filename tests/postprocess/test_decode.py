from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan

from services.postprocess.decode import NotFinite, WanDecoder, decode_frames, to_pixels
from services.postprocess.tiling import FixedTiles

MakeVae = Callable[[], AutoencoderKLWan]


def _latents(frames: int, *, height: int = 4, width: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, (frames - 1) // 4 + 1, height, width, generator=generator)


def _whole(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """What `WanPipeline` does with finished latents."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    with torch.inference_mode():
        return vae.decode(latents[None] / std + mean, return_dict=False)[0][0]


@pytest.mark.parametrize("frames", [1, 5, 17, 33])
def test_streaming_decode_equals_whole_decode(make_vae: MakeVae, frames: int) -> None:
    latents = _latents(frames)

    chunks = list(WanDecoder(make_vae()).stream(latents))

    assert [chunk.shape[1] for chunk in chunks] == [1] + [4] * ((frames - 1) // 4)
    torch.testing.assert_close(torch.cat(chunks, 1), _whole(make_vae(), latents), atol=1e-5, rtol=0)


def test_two_interleaved_decodes_do_not_disturb_each_other(make_vae: MakeVae) -> None:
    decoder = WanDecoder(make_vae())
    first, second = _latents(9, seed=1), _latents(13, seed=2, height=5)
    alone = [torch.cat(list(decoder.stream(latents)), 1) for latents in (first, second)]

    streams = [decoder.stream(first), decoder.stream(second)]
    parts: list[list[torch.Tensor]] = [[], []]
    for turn in (0, 1, 1, 0, 1, 0, 1):
        parts[turn].append(next(streams[turn]))

    assert torch.equal(torch.cat(parts[0], 1), alone[0])
    assert torch.equal(torch.cat(parts[1], 1), alone[1])


def test_an_abandoned_decode_leaves_nothing_behind(make_vae: MakeVae) -> None:
    decoder = WanDecoder(make_vae())
    latents = _latents(9)
    alone = torch.cat(list(decoder.stream(latents)), 1)
    abandoned = decoder.stream(_latents(9, seed=5))
    next(abandoned)
    abandoned.close()

    assert torch.equal(torch.cat(list(decoder.stream(latents)), 1), alone)


def test_a_picture_that_fits_into_one_tile_is_not_tiled(make_vae: MakeVae) -> None:
    latents = _latents(5)
    whole = torch.cat(list(WanDecoder(make_vae()).stream(latents)), 1)

    tiled = torch.cat(list(WanDecoder(make_vae(), FixedTiles(size=6)).stream(latents)), 1)

    assert torch.equal(tiled, whole)


def test_tiles_are_decoded_time_major_and_equal_their_own_whole_decode(make_vae: MakeVae) -> None:
    latents = _latents(9, height=4, width=12)
    tiled = torch.cat(list(WanDecoder(make_vae(), FixedTiles(size=8, overlap=4)).stream(latents)), 1)
    left, right = (_whole(make_vae(), latents[..., columns]) for columns in (slice(0, 8), slice(4, 12)))

    assert tiled.shape == (3, 9, 32, 96)
    torch.testing.assert_close(tiled[..., :32], left[..., :32], atol=1e-5, rtol=0)
    torch.testing.assert_close(tiled[..., -32:], right[..., -32:], atol=1e-5, rtol=0)
    ramp = (torch.arange(32) + 0.5) / 32
    seam = left[..., 32:] * (1 - ramp) + right[..., :32] * ramp
    torch.testing.assert_close(tiled[..., 32:64], seam, atol=1e-5, rtol=0)


def test_the_shape_of_the_latents_follows_from_the_clip(make_vae: MakeVae) -> None:
    decoder = WanDecoder(make_vae())

    assert decoder.latents_shape(width=1280, height=720, num_frames=81) == (16, 21, 90, 160)
    with pytest.raises(ValueError, match="4k"):
        decoder.latents_shape(width=64, height=64, num_frames=16)
    with pytest.raises(ValueError, match="multiples of 8"):
        decoder.latents_shape(width=60, height=64, num_frames=17)


def test_pixels_are_rounded_to_the_nearest() -> None:
    pictures = torch.tensor([-1.0, -0.9961, 0.0, 0.5, 1.0]).view(1, 1, 1, 5).expand(3, 1, 1, 5)

    assert to_pixels(pictures, 0)[0, 0, :, 0].tolist() == [0, 0, 128, 191, 255]


def test_a_picture_that_is_not_finite_is_named(make_vae: MakeVae) -> None:
    vae = make_vae()
    decoder = WanDecoder(vae)
    latents = _latents(9)
    latents[:, 1] = float("inf")

    with pytest.raises(NotFinite) as refused:
        list(decode_frames(decoder, latents))

    assert refused.value.frame == 1


def test_frames_are_numbered_without_a_gap(make_vae: MakeVae) -> None:
    frames = list(decode_frames(WanDecoder(make_vae()), _latents(9)))

    assert [(each.first, each.count) for each in frames] == [(0, 1), (1, 4), (5, 4)]
    assert frames[1].pixels.shape == (4, 32, 48, 3)
    assert frames[1].pixels.flags.c_contiguous
