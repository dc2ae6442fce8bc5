"""An expert as ONNX, checked on ONNX Runtime against torch; engines serve their size and leave the rest to torch."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

from services.chassis.errors import FailedPrecondition
from services.denoiser.engines import EngineTransformer, engine_kind, load_engines
from services.denoiser.experts import Expert
from services.denoiser.export import main
from services.denoiser.pool import ExpertPool
from services.denoiser.sampler import prior
from services.denoiser.shapes import LatentShape, VideoShape
from services.denoiser.step_cache import FirstBlockCache
from tests.denoiser.conftest import Serve

pytest.importorskip("onnxscript", reason="the export extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")

# torch's exporter takes its time where cores are shared.
pytestmark = pytest.mark.timeout(300)

SHAPE = VideoShape(width=64, height=64, frames=9)
LATENTS = SHAPE.latents(16)
TEXT = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def engines(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    size = ["--width", str(SHAPE.width), "--height", str(SHAPE.height), "--frames", str(SHAPE.frames)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecated parts.
        main(["--model", str(untrained), "--expert", "high", "--output", str(folder), *size])
    return folder


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture
def engined(pool: ExpertPool, engines: Path) -> EngineTransformer:
    high = pool.experts[Expert.HIGH]
    return EngineTransformer(high, load_engines(engines, Expert.HIGH, 16, torch.device("cpu"), 1))


@pytest.mark.parametrize("timestep", [999.0, 500.0, 1.0])
def test_the_exported_expert_equals_torch(pool: ExpertPool, engined: EngineTransformer, timestep: float) -> None:
    torch_expert, x = pool.experts[Expert.HIGH], prior(LATENTS, 1)
    ran: list[str] = []
    with engined.module.proj_out.register_forward_hook(lambda *_: ran.append("torch")):
        ours = engined(x, timestep, engined.read(TEXT, LATENTS))
        one = engined(x, timestep, engined.read(TEXT, LATENTS).first())
    assert not ran
    theirs = torch_expert(x, timestep, torch_expert.read(TEXT, LATENTS))
    assert relative(ours, theirs) <= 1e-3
    assert torch.equal(one, ours[:1])


def test_another_size_or_a_step_cache_runs_on_torch(pool: ExpertPool, engined: EngineTransformer) -> None:
    torch_expert, small = pool.experts[Expert.HIGH], LatentShape(channels=16, frames=1, height=4, width=4)
    x = prior(small, 1)
    assert torch.equal(
        engined(x, 900.0, engined.read(TEXT, small)), torch_expert(x, 900.0, torch_expert.read(TEXT, small))
    )
    ran: list[str] = []
    with engined.module.proj_out.register_forward_hook(lambda *_: ran.append("torch")):
        engined(prior(LATENTS, 1), 900.0, engined.read(TEXT, LATENTS), FirstBlockCache(0.1))
    assert ran


async def test_a_denoiser_runs_on_engines_and_refuses_the_states_of_one_that_does_not(
    serve: Serve, engines: Path
) -> None:
    async with serve(engines=engines) as engine, serve() as plain:
        ours, theirs = await engine.denoise(), await plain.denoise()
        assert relative(ours.latents, theirs.latents) <= 1e-3
        assert ours.result is not None
        assert theirs.result is not None
        assert ours.result.fingerprint != theirs.result.fingerprint


def test_a_file_of_another_name_is_refused(engines: Path, tmp_path: Path) -> None:
    (tmp_path / "transformer-small.onnx").write_bytes(b"")
    with pytest.raises(FailedPrecondition, match=r"transformer-small\.onnx"):
        load_engines(tmp_path, Expert.HIGH, 16, torch.device("cpu"), 1)
    assert list(engines.glob("*.onnx"))


def test_a_missing_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FailedPrecondition, match="onnxruntime"):
        engine_kind(torch.device("cpu"))


@pytest.mark.gpu
def test_a_tensorrt_engine_equals_torch(pool: ExpertPool, engines: Path) -> None:
    pytest.importorskip("tensorrt", reason="tensorrt is not installed")
    device = torch.device("cuda", 0)
    (engine,) = load_engines(engines, Expert.HIGH, 16, device, None).values()
    high, x = pool.experts[Expert.HIGH], prior(LATENTS, 1)
    ours = engine(x.to(device), torch.full((1,), 900.0, device=device), TEXT[:1].to(device))
    assert relative(ours.cpu(), high(x, 900.0, high.read(TEXT[:1], LATENTS))) <= 1e-2
