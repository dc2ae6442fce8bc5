"""Files with a manifest, read by the standard's own library."""

import asyncio
import io
import json
import logging
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import av
import c2pa
import grpc
import imageio_ffmpeg
import numpy as np
import pytest

from rushes.v1 import finishing_pb2, postprocess_pb2
from services.chassis.errors import FailedPrecondition, from_rpc_error
from services.postprocess.c2pa_settings import library_settings
from services.postprocess.credentials import CredentialsRefused, load_credentials
from services.postprocess.development import development_files
from services.postprocess.provenance import SOURCE_TYPE
from services.postprocess.signing import Signer
from tests.postprocess.calls import Clip, Service, draw_latents, render, render_requests
from tests.postprocess.certificates import KEYS, Files, issue
from tests.postprocess.conftest import OpenService

VIDEO = postprocess_pb2.ARTIFACT_KIND_VIDEO
ANIMATED = [postprocess_pb2.ARTIFACT_KIND_GIF, postprocess_pb2.ARTIFACT_KIND_ANIMATED_WEBP]
MAKING = postprocess_pb2.Making(seed=2**62 + 1, settings_sha256="5a" * 32)


@pytest.fixture
def operator(tmp_path: Path) -> Files:
    return issue(tmp_path / "operator")


def signed_by(files: Files) -> dict[str, object]:
    """The settings of a service that signs by these."""
    return {"c2pa_certificate": files.certificate, "c2pa_key": files.key}


def read(data: bytes, content_type: str = "video/mp4", anchor: Path | None = None) -> dict[str, Any]:
    """What the library's reader says of the bytes; it trusts `anchor`."""
    context = c2pa.Context(c2pa.Settings.from_dict(library_settings(anchor.read_text() if anchor else "")))
    with context, c2pa.Reader(content_type, io.BytesIO(data), context=context) as reader:
        return dict(json.loads(reader.json()))


def assertions(said: dict[str, Any]) -> dict[str, Any]:
    manifest = said["manifests"][said["active_manifest"]]
    return {one["label"]: one["data"] for one in manifest["assertions"]}


def failures(said: dict[str, Any]) -> set[str]:
    return {one["code"] for one in said["validation_results"]["activeManifest"]["failure"]}


async def make(service: Service, **fields: object) -> Clip:
    return await render(service, render_requests(draw_latents(17), **{"artifacts": [VIDEO], **fields}))


async def test_the_finished_mp4_carries_a_manifest_that_says_how_it_was_made(
    postprocess: OpenService, operator: Files
) -> None:
    async with postprocess(**signed_by(operator), content_producer="Studio") as service:
        described = await service.stub.DescribePostprocess(postprocess_pb2.DescribePostprocessRequest())
        finish = finishing_pb2.FinishPlan(watermark_id=0xABC)
        clip = await make(service, making=MAKING, finish=finish, generation_id="one")

    data = clip.files()["clip.mp4"]
    said = read(data, anchor=operator.anchor)
    assert said["validation_state"] == "Trusted"
    assert said["manifests"][said["active_manifest"]]["signature_info"]["common_name"] == "Studio Signer"
    found = assertions(said)
    created, marked = found["c2pa.actions.v2"]["actions"]
    assert (created["action"], created["digitalSourceType"]) == ("c2pa.created", SOURCE_TYPE)
    assert created["softwareAgent"]["name"] == "Rushes"
    assert marked["action"] == "c2pa.watermarked.bound"
    assert found["c2pa.soft-binding"]["blocks"][0]["value"] == "0000000000000abc"
    with av.open(io.BytesIO(data)) as container:
        number = json.loads(container.metadata["AIGC"])["ProduceID"]
    generation = found["rushes.generation"]
    assert len(generation.pop("model_fingerprint")) == 16
    assert generation == {
        "producer": "Studio",
        "produce_id": number,
        "model": described.model,
        "certificate": "operator",
        "generation_id": "one",
        "seed": str(2**62 + 1),
        "settings_sha256": "5a" * 32,
    }
    assert described.signing.subject == "CN=Studio Signer,O=Studio"
    assert not described.signing.development


async def test_the_prompt_is_told_only_where_it_is_asked_for(postprocess: OpenService, operator: Files) -> None:
    async with postprocess(**signed_by(operator)) as service:
        silent = await make(service, making=MAKING)
        telling = await make(service, making=postprocess_pb2.Making(prompt="a red circle"))

    assert "prompt" not in assertions(read(silent.files()["clip.mp4"]))["rushes.generation"]
    assert assertions(read(telling.files()["clip.mp4"]))["rushes.generation"]["prompt"] == "a red circle"


async def test_players_take_the_signed_file_and_its_packets_are_those_of_the_fragments(
    postprocess: OpenService, operator: Files, tmp_path: Path
) -> None:
    async with postprocess(**signed_by(operator)) as service:
        clip = await make(service)

    data = clip.files()["clip.mp4"]
    kinds = boxes(data)
    assert kinds == ["ftyp", "uuid", "moov", "free", "mdat", "uuid"]
    pictures = []
    for content in (data, clip.data):
        with av.open(io.BytesIO(content)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == 16
            pictures.append(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]))
    assert len(pictures[0]) == 17
    assert np.array_equal(*pictures)
    (tmp_path / "clip.mp4").write_bytes(data)
    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-v", "error", "-xerror", "-i", str(tmp_path / "clip.mp4"), "-f", "null", "-"]
    checked = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert checked.stderr == ""


def boxes(data: bytes) -> list[str]:
    kinds, offset = [], 0
    while offset < len(data):
        kinds.append(data[offset + 4 : offset + 8].decode())
        offset += int.from_bytes(data[offset : offset + 4], "big")
    return kinds


async def test_a_byte_that_changes_breaks_the_manifest_wherever_it_lies(
    postprocess: OpenService, operator: Files
) -> None:
    async with postprocess(**signed_by(operator)) as service:
        data = (await make(service)).files()["clip.mp4"]

    assert failures(read(data)) == {"signingCredential.untrusted"}
    media, metadata = data.index(b"mdat") + 40, data.rindex(b"trainedAlgorithmicMedia")
    declared, seconds = data.index(b"AIGC", data.index(b"moov")), data.index(b"mvhd") + 24
    for place in (media, len(data) // 2, metadata, declared, seconds):
        changed = bytearray(data)
        changed[place] ^= 1
        said = read(bytes(changed))
        assert said["validation_state"] == "Invalid", place
        assert "assertion.bmffHash.mismatch" in failures(said), place
    said = read(data.replace(b"rushes-untrained", b"rushes-Untrained", 1))
    assert (said["validation_state"], "assertion.hashedURI.mismatch" in failures(said)) == ("Invalid", True)


@pytest.mark.parametrize("algorithm", KEYS)
async def test_every_kind_of_key_signs(postprocess: OpenService, tmp_path: Path, algorithm: str) -> None:
    files = issue(tmp_path, algorithm=algorithm)
    async with postprocess(**signed_by(files)) as service:
        clip = await make(service)

    said = read(clip.files()["clip.mp4"], anchor=files.anchor)
    assert said["validation_state"] == "Trusted"
    assert said["manifests"][said["active_manifest"]]["signature_info"]["alg"].lower() == algorithm


async def test_animated_pictures_are_signed_and_what_cannot_be_is_left_as_it_is(
    postprocess: OpenService, operator: Files
) -> None:
    video = postprocess_pb2.VideoSettings(codec=postprocess_pb2.VIDEO_CODEC_VP9)
    wanted = [VIDEO, *ANIMATED, postprocess_pb2.ARTIFACT_KIND_HLS]
    async with postprocess(**signed_by(operator)) as service:
        files = (await make(service, artifacts=wanted, video=video)).files()
    async with postprocess() as service:
        plain = (await make(service, artifacts=wanted, video=video)).files()

    for name, content_type in (("preview.gif", "image/gif"), ("preview.webp", "image/webp")):
        assert read(files[name], content_type, operator.anchor)["validation_state"] == "Trusted"
    assert {name for name in files if files[name] != plain[name]} <= {"preview.gif", "preview.webp", "clip.webm"}
    with av.open(io.BytesIO(files["clip.webm"])) as container:
        assert len(list(container.decode(video=0))) == 17


async def test_a_service_without_a_certificate_says_so_and_signs_nothing(
    postprocess: OpenService, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with postprocess() as service:
            described = await service.stub.DescribePostprocess(postprocess_pb2.DescribePostprocessRequest())
            clip = await make(service)

    assert not described.HasField("signing")
    assert "RUSHES_C2PA_CERTIFICATE is not set: no file gets a C2PA manifest" in caplog.text
    with pytest.raises(c2pa.C2paError.ManifestNotFound):
        read(clip.files()["clip.mp4"])


async def test_the_development_certificate_is_named_in_the_manifest_and_trusted_only_by_its_anchor(
    postprocess: OpenService, tmp_path: Path, operator: Files
) -> None:
    files = development_files(tmp_path / "c2pa")
    async with postprocess(**signed_by(files)) as service:
        described = await service.stub.DescribePostprocess(postprocess_pb2.DescribePostprocessRequest())
        data = (await make(service)).files()["clip.mp4"]

    assert described.signing.development
    assert assertions(read(data))["rushes.generation"]["certificate"] == "development"
    states = [read(data, anchor=anchor)["validation_state"] for anchor in (None, operator.anchor, files.anchor)]
    assert states == ["Valid", "Valid", "Trusted"]
    # A reader with nothing but its own settings takes it, too.
    with c2pa.Reader("video/mp4", io.BytesIO(data)) as reader:
        assert reader.get_validation_state() == "Valid"


async def test_a_certificate_that_expires_while_the_service_runs_ends_the_work_with_a_reason(
    postprocess: OpenService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, now = issue(tmp_path, ends=datetime.now(UTC) + timedelta(days=1)), datetime.now(UTC)
    credentials = load_credentials(files.certificate, files.key, None, now=now)
    signer = Signer(credentials, clock=lambda: now + timedelta(days=2))
    monkeypatch.setattr("services.postprocess.service.open_signer", lambda _config: signer)
    async with postprocess(**signed_by(files)) as service:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await make(service)

    error = from_rpc_error(refused.value)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "SIGNING_FAILED"


def test_a_certificate_that_the_library_does_not_take_stops_the_start(tmp_path: Path) -> None:
    files = issue(tmp_path)
    good = load_credentials(files.certificate, files.key, None, now=datetime.now(UTC))
    # The chain's checks let it pass: the algorithm is another than the key's.
    object.__setattr__(good, "algorithm", "es384")

    with pytest.raises(CredentialsRefused, match="RUSHES_C2PA_CERTIFICATE: is not taken by the C2PA library"):
        Signer(good).check()
