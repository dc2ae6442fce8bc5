"""Previews through a tiny decoder of the manifest, through the model's own, or by projection, and which one it was."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from rushes.v1 import sampling_pb2
from services.chassis.errors import FailedPrecondition
from services.denoiser.pool import ExpertPool
from services.denoiser.preview_decoder import DecodedPreviews, choose_developer
from services.denoiser.previews import DEFAULT_FRAMES
from services.model.folder import ModelFolder
from tests.denoiser.conftest import Serve


@pytest.fixture
def with_tiny(untrained: Path, tmp_path: Path) -> Path:
    """The untrained model with a second decoder, named for previews."""
    folder = Path(shutil.copytree(untrained, tmp_path / "model"))
    shutil.copytree(folder / "vae", folder / "preview_vae")
    for name, addition in (
        ("model_index.json", {"preview_vae": ["diffusers", "AutoencoderKLWan"]}),
        ("rushes.json", {"preview_decoder": "preview_vae"}),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | addition))
    return folder


@pytest.mark.parametrize(
    ("mode", "source"),
    [
        ("auto", sampling_pb2.PREVIEW_SOURCE_TINY_DECODER),
        ("projection", sampling_pb2.PREVIEW_SOURCE_PROJECTION),
        ("vae", sampling_pb2.PREVIEW_SOURCE_DECODER),
    ],
)
async def test_every_preview_says_what_made_it_and_moves(
    serve: Serve, with_tiny: Path, mode: str, source: sampling_pb2.PreviewSource
) -> None:
    asked = sampling_pb2.PreviewSettings(every_steps=2, max_edge=64, frames=3)
    async with serve(model=with_tiny, preview_decoder=mode) as caller:
        outcome = await caller.denoise(previews=asked, shape={"num_frames": 17})
        assert (await caller.describe()).acceleration.preview_source == source
    assert outcome.previews
    assert {preview.source for preview in outcome.previews} == {source}
    with Image.open(io.BytesIO(outcome.previews[-1].data)) as picture:
        assert (picture.format, picture.n_frames, max(picture.size)) == ("WEBP", 3, 64)  # type: ignore[attr-defined]


async def test_a_request_that_leaves_it_to_the_server_gets_a_short_window_and_a_jpeg_a_still(serve: Serve) -> None:
    async with serve() as caller:
        moving = await caller.denoise(previews=sampling_pb2.PreviewSettings(every_steps=4), shape={"num_frames": 17})
        still = await caller.denoise(
            previews=sampling_pb2.PreviewSettings(every_steps=4, frames=3, format=sampling_pb2.IMAGE_FORMAT_JPEG)
        )
    assert {preview.frames for preview in moving.previews} == {DEFAULT_FRAMES}
    assert {preview.frames for preview in still.previews} == {1}


def test_a_window_is_what_the_decoder_makes_of_it(untrained: Path, pool: ExpertPool) -> None:
    developer = choose_developer(ModelFolder(untrained), pool, "vae")
    assert isinstance(developer, DecodedPreviews)
    x0 = torch.randn(1, 16, 7, 4, 4, generator=torch.Generator().manual_seed(1))
    pixels = developer(x0, 6, 0)
    assert (pixels.shape, pixels.dtype) == ((6, 32, 32, 3), torch.uint8)
    # Six frames are three latent ones, 1 + 4 + 4; the middle three of seven.
    assert torch.equal(pixels, developer(x0[:, :, 2:5], 6, 0))
    assert developer(x0, 1, 0).shape[0] == 1


def test_the_models_own_decoder_is_measured_before_it_is_taken(untrained: Path, pool: ExpertPool) -> None:
    # A step of the untrained model is far cheaper than its decoder.
    assert choose_developer(ModelFolder(untrained), pool, "measure").source == "projection"


def test_a_tiny_decoder_that_no_manifest_names_is_refused(untrained: Path, pool: ExpertPool) -> None:
    with pytest.raises(FailedPrecondition, match="preview_decoder"):
        choose_developer(ModelFolder(untrained), pool, "tiny")
