import hashlib
import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import tiny
from models.tiny.train.upscaler import draw_frames, shrink
from models.untrained import write_untrained
from rushes.v1 import finishing_pb2, postprocess_pb2, postprocess_pb2_grpc
from services.chassis.channels import open_channel
from services.chassis.errors import FailedPrecondition, InvalidRequest
from services.chassis.lifecycle import run_server
from services.model.errors import ModelRefused
from services.model.folder import ModelFolder
from services.postprocess.architectures import Network
from services.postprocess.config import PostprocessConfig
from services.postprocess.export import export_network, main
from services.postprocess.frames import Frames, Pixels
from services.postprocess.runtimes import AGREEMENT, Choice, OnnxRuntime, TorchRuntime, choose_runtime
from services.postprocess.service import open_postprocess
from services.postprocess.srvgg import Srvgg, read_srvgg
from services.postprocess.upscale import LoadedNetwork, NetworkUpscaler, Upscalers, load_upscalers
from tests.postprocess.calls import Service, draw_latents, refusal, render, render_requests

CPU = torch.device("cpu")


def make_network(scale: int = 2) -> Srvgg:
    torch.manual_seed(5)
    return Srvgg(features=8, convolutions=2, scale=scale).eval()


def loaded(module: Srvgg, *, tile: int = 512, margin: int = 32, multiple: int = 1) -> LoadedNetwork:
    return LoadedNetwork(
        network=Network(
            id="net", name="", scale=module.scale, architecture="", module=module, multiple=multiple, least_edge=16
        ),
        runtime=Choice(name="torch", run=TorchRuntime(module), seconds={}),
        tile=tile,
        margin=margin,
    )


def draw_pixels(count: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(2).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def write_model(folder: Path, module: Srvgg, **entry: object) -> Path:
    """A random model with one upscaler; a file given as `onnx` is listed too."""
    write_untrained(folder)
    (folder / "upscaler").mkdir(exist_ok=True)
    save_file(module.state_dict(), folder / "upscaler" / "net.safetensors")
    manifest = json.loads((folder / "rushes.json").read_text())
    stated = {"id": "net-x2", "scale": 2, "file": "upscaler/net.safetensors", **entry}
    for file in (stated["file"], stated.get("onnx")):
        if file and (folder / file).exists():
            content = (folder / file).read_bytes()
            manifest["files"][file] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    manifest["upscalers"] = [stated]
    (folder / "rushes.json").write_text(json.dumps(manifest))
    return folder


def load(folder: Path, runtime: str = "auto") -> Upscalers:
    return load_upscalers(ModelFolder(folder), CPU, threads=1, runtime=runtime, tile=512, margin=32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose upscaler was exported by the command, and is listed with its ONNX form."""
    folder = write_model(tmp_path_factory.mktemp("models") / "exported", make_network())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecated parts.
        main(["--model", str(folder), "--upscaler", "net-x2", "--output", str(folder / "upscaler" / "net.onnx")])
    return write_model(folder, make_network(), onnx="upscaler/net.onnx")


def test_the_network_is_read_from_its_weights_alone() -> None:
    written = Srvgg(features=12, convolutions=3, scale=4).eval()
    read = read_srvgg({key: tensor.to(torch.bfloat16) for key, tensor in written.state_dict().items()})

    pictures = torch.rand(2, 3, 9, 7)
    assert (read.scale, len(read.body)) == (4, len(written.body))
    assert read(pictures).shape == (2, 3, 36, 28)
    assert torch.allclose(read(pictures), written(pictures), atol=0.02)


@pytest.mark.parametrize(
    ("key", "tensor", "named"),
    [
        ("body.2.weight", None, "body.2.weight is missing"),
        ("body.2.weight", torch.zeros(8, 8, 1, 1), "body.2.weight has shape"),
        ("head.weight", torch.zeros(1), "head.weight is no parameter"),
        ("body.0.weight", None, "body.0.weight is missing"),
        ("body.6.weight", torch.zeros(7, 8, 3, 3), "body.6.weight does not end"),
    ],
)
def test_weights_that_are_no_such_network_are_refused(key: str, tensor: torch.Tensor | None, named: str) -> None:
    state = make_network().state_dict()
    if tensor is None:
        del state[key]
    else:
        state[key] = tensor
    with pytest.raises(ValueError, match=named):
        read_srvgg(state)


@pytest.mark.parametrize("tile", [16, 24, 40])
def test_tiles_join_without_a_seam(tile: int) -> None:
    module, pixels = make_network(), draw_pixels(2, 45, 70)
    whole = loaded(module).enlarge(pixels)
    tiled = loaded(module, tile=tile, margin=8).enlarge(pixels)

    assert whole.shape == (2, 90, 140, 3)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    without_margin = loaded(module, tile=tile, margin=0).enlarge(pixels)
    assert np.abs(whole.astype(int) - without_margin).max() > 2


def test_an_edge_that_a_network_cannot_take_is_filled_up_and_cut_off() -> None:
    larger = loaded(make_network(), multiple=16).enlarge(draw_pixels(1, 9, 33))

    assert larger.shape == (1, 18, 66, 3)


@pytest.mark.parametrize(("scale", "factor"), [(2, 2), (2, 4), (4, 2), (4, 4)])
def test_every_factor_is_reached_by_passes_and_shrinking(scale: int, factor: int) -> None:
    stage = NetworkUpscaler(loaded(make_network(scale)), factor)
    (item,) = stage.push(Frames(first=7, pixels=draw_pixels(3, 16, 20)))

    assert (item.first, item.pixels.shape) == (7, (3, 16 * factor, 20 * factor, 3))
    assert list(stage.flush()) == []


def test_frames_do_not_depend_on_how_they_are_batched() -> None:
    one_by_one = loaded(make_network())
    pixels = draw_pixels(5, 16, 20)
    singly = np.concatenate([one_by_one.enlarge(pixels[index : index + 1]) for index in range(5)])

    assert np.abs(one_by_one.enlarge(pixels).astype(int) - singly).max() <= 1


def test_the_runtimes_agree_at_every_size(exported: Path) -> None:
    network = load(exported).networks["net-x2"].network
    onnx = OnnxRuntime(exported / "upscaler" / "net.onnx", 1)
    plain = TorchRuntime(network.module)

    for shape in [(1, 3, 48, 64), (3, 3, 33, 20), (2, 3, 128, 96)]:
        batch = np.random.default_rng(1).random(shape, dtype=np.float32)
        assert np.abs(onnx(batch) - plain(batch)).max() <= AGREEMENT


def test_the_fastest_runtime_that_is_present_is_chosen(exported: Path) -> None:
    chosen = load(exported).networks["net-x2"].runtime

    assert set(chosen.seconds) == {"torch", "onnxruntime"}
    assert chosen.name == min(chosen.seconds, key=lambda name: chosen.seconds[name])
    assert load(exported, "torch").networks["net-x2"].runtime.name == "torch"
    assert load(exported, "onnxruntime").networks["net-x2"].runtime.name == "onnxruntime"
    with pytest.raises(FailedPrecondition, match="net-x2 cannot be run by tensorrt here"):
        load(exported, "tensorrt")


def test_a_runtime_that_disagrees_is_left_out(tmp_path: Path) -> None:
    module = make_network()
    network = loaded(module).network
    torch.manual_seed(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecated parts.
        export_network(Srvgg(features=8, convolutions=2, scale=2), tmp_path / "other.onnx")

    assert choose_runtime(network, tmp_path / "other.onnx", CPU, threads=1).name == "torch"


def test_an_upscaler_of_another_scale_than_stated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"net\.safetensors: enlarges 4 times, not 2"):
        load(write_model(tmp_path / "model", make_network(4)))


def test_an_upscaler_of_another_hash_than_stated_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", make_network())
    path = folder / "upscaler" / "net.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelRefused, match=r"net\.safetensors: has another SHA-256"):
        load(folder)


def test_a_manifest_must_list_an_upscalers_files_and_give_ids_of_its_own(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", make_network(), onnx="upscaler/gone.onnx")
    with pytest.raises(ModelRefused, match=r"files must state .* upscaler/gone.onnx"):
        ModelFolder(folder)
    write_model(folder, make_network(), id="lanczos")
    with pytest.raises(ModelRefused, match="lanczos is always there"):
        ModelFolder(folder)


def test_the_embedded_models_network_beats_lanczos_by_two_decibels_on_held_out_clips() -> None:
    upscalers = load(Path(tiny.__file__).parent / "weights", "torch")
    gains = []
    for index in range(4):
        truth = draw_frames(np.random.default_rng([99, index]), size=192, held_out=True)[::4]
        item = Frames(first=0, pixels=shrink(truth))
        (ours,), (plain,) = (upscalers.stage(name, 2).push(item) for name in ("srvgg-x2", "lanczos"))
        errors = [np.square(made.pixels.astype(float) - truth).mean() for made in (ours, plain)]
        gains.append(10 * np.log10(errors[1] / errors[0]))

    assert upscalers.preferred == "srvgg-x2"
    assert np.mean(gains) >= 2


async def test_a_clip_is_enlarged_by_the_manifests_network_unless_told_otherwise(exported: Path) -> None:
    config = PostprocessConfig(model=exported, device="cpu", upscaler_runtime="torch")
    async with (
        run_server(config, "postprocess", partial(open_postprocess, config)) as running,
        open_channel(running.address) as channel,
    ):
        service = Service(stub=postprocess_pb2_grpc.PostprocessServiceStub(channel), running=running)
        described = await service.stub.DescribePostprocess(postprocess_pb2.DescribePostprocessRequest())
        ask = partial(finishing_pb2.FinishPlan, upscale=2)
        ours = await render(service, render_requests(draw_latents(5), finish=ask()))
        plain = await render(service, render_requests(draw_latents(5), finish=ask(upscaler="lanczos")))
        refused = await refusal(service, render_requests(draw_latents(5), finish=ask(upscaler="magic")))

    assert list(described.upscalers) == ["lanczos", "net-x2"]
    (network,) = described.upscaling_networks
    assert (network.id, network.scale, network.architecture) == ("net-x2", 2, "SRVGGNetCompact")
    assert (network.runtime, set(network.runtime_seconds)) == ("torch", {"torch", "onnxruntime"})
    assert (ours.accepted.finish.upscaler, plain.accepted.finish.upscaler) == ("net-x2", "lanczos")
    assert ours.frames().shape == plain.frames().shape == (5, 96, 128, 3)
    assert ours.data != plain.data
    assert isinstance(refused, InvalidRequest)
    (violation,) = refused.violations
    assert (violation.field, violation.rule) == ("start.finish.upscaler", "must be lanczos, net-x2 or empty")
