import pytest
import torch

from services.postprocess.tiles import Mosaic


@pytest.mark.parametrize(
    ("height", "width", "size", "overlap"),
    [(4, 4, 8, 2), (12, 12, 8, 4), (57, 33, 32, 8), (90, 160, 32, 8), (9, 9, 8, 0)],
)
def test_blending_the_tiles_of_a_picture_gives_the_picture(height: int, width: int, size: int, overlap: int) -> None:
    mosaic = Mosaic(height=height, width=width, size=size, overlap=overlap, scale=2)
    cells = torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width)
    picture = cells.repeat_interleave(2, -1).repeat_interleave(2, -2)

    blended = mosaic.blend(tile.cut(cells).repeat_interleave(2, -1).repeat_interleave(2, -2) for tile in mosaic.tiles)

    torch.testing.assert_close(blended, picture, rtol=1e-6, atol=1e-3)


def test_all_tiles_have_one_shape_and_cover_every_cell() -> None:
    mosaic = Mosaic(height=90, width=160, size=32, overlap=8, scale=1)
    covered = torch.zeros(90, 160)
    for tile in mosaic.tiles:
        tile.cut(covered)[:] = 1

    assert {(tile.height, tile.width) for tile in mosaic.tiles} == {(32, 32)}
    assert bool(covered.all())


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_an_overlap_that_leaves_no_progress_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        Mosaic(height=20, width=20, size=8, overlap=overlap, scale=1)
