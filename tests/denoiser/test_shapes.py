"""Sizes of clips and latents."""

import pytest

from services.denoiser.shapes import VideoShape


@pytest.mark.parametrize(
    ("width", "height", "frames", "latents", "tokens"),
    [
        (1280, 720, 81, (1, 16, 21, 90, 160), 75_600),
        (832, 480, 81, (1, 16, 21, 60, 104), 32_760),
        (64, 64, 1, (1, 16, 1, 8, 8), 16),
        (96, 96, 17, (1, 16, 5, 12, 12), 180),
    ],
)
def test_latents_have_the_reference_shape(
    width: int, height: int, frames: int, latents: tuple[int, ...], tokens: int
) -> None:
    shape = VideoShape(width=width, height=height, frames=frames).latents(16)
    assert shape.batch == latents
    assert shape.tokens == tokens


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("width", {"width": 100, "height": 64, "frames": 9}),
        ("width", {"width": 0, "height": 64, "frames": 9}),
        ("height", {"width": 64, "height": 72, "frames": 9}),
        ("num_frames", {"width": 64, "height": 64, "frames": 8}),
        ("num_frames", {"width": 64, "height": 64, "frames": -3}),
    ],
)
def test_a_size_without_latents_is_refused_by_name(field: str, fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=field):
        VideoShape(**fields)
