import zlib
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio

from models.untrained import write_untrained
from rushes.v1 import finishing_pb2, postprocess_pb2, postprocess_pb2_grpc, sampling_pb2
from services.chassis.bundles import Bundle, Tensor, chunks, pack
from services.chassis.channels import open_channel
from services.chassis.errors import (
    DataLoss,
    InvalidRequest,
)
from services.chassis.lifecycle import run_server
from services.postprocess.config import PostprocessConfig
from services.postprocess.service import open_postprocess
from tests.postprocess.calls import (
    CONDITIONING,
    LATENTS,
    Service,
    draw_latents,
    pack_latents,
    png,
    refusal,
    render,
    render_requests,
    start_request,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service with one slot, which every test finds free."""
    model = write_untrained(tmp_path_factory.mktemp("models") / "untrained")
    config = PostprocessConfig(model=model, device="cpu", slots=1)
    async with (
        run_server(config, "postprocess", partial(open_postprocess, config)) as running,
        open_channel(running.address) as channel,
    ):
        yield Service(stub=postprocess_pb2_grpc.PostprocessServiceStub(channel), running=running)


def _bad_finishes() -> list[tuple[dict[str, object], str]]:
    twice = {"check": finishing_pb2.INSPECTION_CHECK_BLACK}
    # A kilobyte that says of itself that it has four thousand million pixels.
    bomb = bytearray(png(8, 8))
    bomb[16:24] = (65535).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    bomb = bytes(bomb)
    not_finite = {"check": finishing_pb2.INSPECTION_CHECK_NOT_FINITE}
    return [
        ({"finish": {"target_fps": 121}}, "start.finish.target_fps"),
        ({"finish": {"upscale": 3}}, "start.finish.upscale"),
        ({"finish": {"upscaler": "magic"}}, "start.finish.upscaler"),
        ({"finish": {"width": 63, "height": 48}}, "start.finish.width"),
        ({"finish": {"width": 64}}, "start.finish"),
        ({"finish": {"fade_in_seconds": 9}}, "start.finish.fade_out_seconds"),
        ({"finish": {"fade_in_seconds": float("nan")}}, "start.finish.fade_in_seconds"),
        ({"finish": {"label": {"text": "a\nb"}}}, "start.finish.label.text"),
        ({"finish": {"label": {"text": "a\U000f0000"}}}, "start.finish.label.text"),
        ({"finish": {"logo": {"image": b"no picture"}}}, "start.finish.logo.image"),
        ({"finish": {"logo": {"image": png(5000, 4000)}}}, "start.finish.logo.image"),
        ({"finish": {"logo": {"image": bomb}}}, "start.finish.logo.image"),
        ({"finish": {"logo": {"image": png(64, 64)[:60]}}}, "start.finish.logo.image"),
        ({"finish": {"target_fps": -1}}, "start.finish.target_fps"),
        ({"finish": {"width": 7682, "height": 48}}, "start.finish.width"),
        ({"finish": {"width": -2, "height": 48}}, "start.finish.width"),
        ({"finish": {"subtitles": "1\n00:00:00,400 --> 00:00:00,100\nbackwards\n"}}, "start.finish.subtitles"),
        ({"finish": {"subtitles": "nonsense"}}, "start.finish.subtitles"),
        ({"finish": {"subtitles": "1\n00:00:09,000 --> 00:00:10,000\nlate\n"}}, "start.finish.subtitles"),
        ({"finish": {"loop_seconds": 0.4}}, "start.finish.loop_seconds"),
        ({"finish": {"aspect": finishing_pb2.ASPECT_1_1, "width": 64, "height": 64}}, "start.finish.aspect"),
        ({"finish": {"adjustments": {"gamma": 0}}}, "start.finish.adjustments.gamma"),
        ({"finish": {"subtitle_language": "English!"}}, "start.finish.subtitle_language"),
        ({"video": {"container": postprocess_pb2.CONTAINER_WEBM}}, "start.video.container"),
        ({"inspection": {"rules": [twice, twice]}}, "start.inspection.rules[1].check"),
        ({"inspection": {"rules": [twice | {"retakes": 2}]}}, "start.inspection.rules[0]"),
        ({"inspection": {"rules": [twice | {"action": 4, "retakes": 9}]}}, "start.inspection.rules[0].retakes"),
        ({"inspection": {"rules": [twice | {"threshold": float("nan")}]}}, "start.inspection.rules[0].threshold"),
        ({"inspection": {"rules": [not_finite | {"action": 2}]}}, "start.inspection.rules[0]"),
        ({"inspection": {"retake_within_seconds": -1}}, "start.inspection.retake_within_seconds"),
    ]


@pytest.mark.parametrize(("fields", "field_name"), _bad_finishes())
async def test_a_finish_that_cannot_be_made_is_refused_before_device_work(
    service: Service, fields: dict[str, object], field_name: str
) -> None:
    refused = await refusal(service, render_requests(draw_latents(9), **fields))

    assert isinstance(refused, InvalidRequest)
    assert {violation.field for violation in refused.violations} == {field_name}


def _bad_shapes() -> list[tuple[str, list[postprocess_pb2.RenderRequest], str]]:
    good = draw_latents(9)
    nan = good.clone()
    nan[3, 1, 2, 4] = float("nan")
    infinite = good.clone()
    infinite[0, 0, 0, 0] = float("inf")
    shape = sampling_pb2.VideoShape

    def chunked(payload: bytes, kind: int = LATENTS, **fields: object) -> list[postprocess_pb2.RenderRequest]:
        return [
            start_request(payload, **fields),
            *(postprocess_pb2.RenderRequest(chunk=chunk) for chunk in chunks(kind, payload)),
        ]

    short = chunked(pack_latents(draw_latents(5)))
    wrong_type = pack(
        Bundle(tensors={"latents": Tensor(dtype="F16", shape=(16, 3, 6, 8), data=bytes(16 * 3 * 48 * 2))})
    )
    lying = bytearray(pack_latents(good))
    lying[8:72] = lying[8:72].replace(b"[16,3,6,8]", b"[16,3,6,9]")
    late = chunked(pack_latents(good))
    late[1].chunk.offset = 7
    return [
        ("NaN", chunked(pack_latents(nan)), "bundle.latents"),
        ("infinite", chunked(pack_latents(infinite)), "bundle.latents"),
        ("fewer frames than announced", short, "bundle.latents"),
        ("wrong channels", chunked(pack_latents(good[:8])), "bundle.latents"),
        ("wrong dtype", chunked(wrong_type), "bundle.latents"),
        ("wrong name", chunked(pack_latents(good, name="x0")), "bundle"),
        ("lying header", chunked(bytes(lying)), "bundle"),
        ("no safetensors", chunked(b"\xff" * 4096), "bundle"),
        ("wrong kind", chunked(pack_latents(good), CONDITIONING), "chunk.kind"),
        ("wrong offset", late, "chunk.offset"),
        ("too large", [start_request(b"", latents_size=2**40)], "start.latents_size"),
        ("no size", [start_request(b"")], "start.latents_size"),
        ("chunk first", late[1:], "start"),
        ("start twice", [late[0], late[0]], "chunk"),
        ("nothing", [], "start"),
        ("frames", [start_request(b"x", shape=shape(width=64, height=48, num_frames=10))], "start.shape.num_frames"),
        ("no frames", [start_request(b"x", shape=shape(width=64, height=48, num_frames=0))], "start.shape.num_frames"),
        ("odd size", [start_request(b"x", shape=shape(width=72, height=48, num_frames=9))], "start.shape.width"),
        ("wide", [start_request(b"x", shape=shape(width=512, height=48, num_frames=9))], "start.shape.width"),
        ("long", [start_request(b"x", shape=shape(width=64, height=48, num_frames=85))], "start.shape.num_frames"),
        ("no shape", [start_request(b"x", shape=None)], "start.shape"),
        ("model", chunked(pack_latents(good), model="other"), "start.model"),
        ("crf", [start_request(b"x", video=postprocess_pb2.VideoSettings(crf=52))], "start.video.crf"),
        ("fps", [start_request(b"x", fps=-1)], "start.fps"),
        ("artifact", [start_request(b"x", artifacts=[77])], "start.artifacts[0]"),
    ]


@pytest.mark.parametrize(("requests", "field_name"), [pytest.param(r, f, id=n) for n, r, f in _bad_shapes()])
async def test_bad_input_is_refused_with_its_field_and_the_slot_is_free_afterwards(
    service: Service, requests: list[postprocess_pb2.RenderRequest], field_name: str
) -> None:
    refused = await refusal(service, requests)
    clip = await render(service, render_requests(draw_latents(1)))

    assert isinstance(refused, InvalidRequest)
    assert {violation.field for violation in refused.violations} == {field_name}
    assert clip.result.num_frames == 1


async def test_a_truncated_bundle_is_refused(service: Service) -> None:
    requests = render_requests(draw_latents(81, width=256, height=256))
    assert len(requests) > 2
    refused = await refusal(service, requests[:-1])
    clip = await render(service, render_requests(draw_latents(1)))

    assert (type(refused), refused.reason) == (InvalidRequest, "BUNDLE_TRUNCATED")
    assert clip.result.num_frames == 1


async def test_a_chunk_with_a_wrong_checksum_is_data_loss(service: Service) -> None:
    requests = render_requests(draw_latents(9))
    requests[1].chunk.crc32c ^= 1
    refused = await refusal(service, requests)
    clip = await render(service, render_requests(draw_latents(1)))

    assert isinstance(refused, DataLoss)
    assert clip.result.num_frames == 1
