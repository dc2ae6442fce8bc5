"""What can run an upscaling network: torch, ONNX Runtime on the CPU, TensorRT on CUDA; the fastest is measured."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from services.chassis.errors import FailedPrecondition
from services.chassis.logs import logger
from services.postprocess.architectures import Network

Batch = npt.NDArray[np.float32]
"""Pictures [B, 3, H, W] in 0..1."""

RuntimeName = Literal["torch", "onnxruntime", "tensorrt"]

AGREEMENT = 2 / 255
"""How far a runtime may be from torch at any pixel."""

_PROBE_EDGE = 96
_ROUNDS = 3


class Runtime(Protocol):
    """Runs one network; safe to call from several threads."""

    def __call__(self, batch: Batch) -> Batch:
        """The larger pictures, not clamped."""


class TorchRuntime:
    """The network as it was loaded, on its own device."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._device = next(module.parameters()).device

    def __call__(self, batch: Batch) -> Batch:
        """See `Runtime`."""
        with torch.inference_mode():
            larger: torch.Tensor = self._module(torch.from_numpy(batch).to(self._device))
            return np.asarray(larger.float().cpu().numpy())


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime  # noqa: PLC0415  (an optional dependency, loaded where it is used)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, batch: Batch) -> Batch:
        """See `Runtime`."""
        (larger,) = self._session.run(["larger"], {"pictures": batch})
        return np.asarray(larger, np.float32)


class TensorRtRuntime:
    """TensorRT on a CUDA device, built at the start for batches up to 4 and edges from 16 to 1024 pixels."""

    def __init__(self, path: Path, device: torch.device, scale: int) -> None:
        import tensorrt  # noqa: PLC0415  (an optional dependency, loaded where it is used)

        self._device, self._scale, self._lock = device, scale, threading.Lock()
        logs = tensorrt.Logger(tensorrt.Logger.WARNING)
        with torch.cuda.device(device):
            # The runtime must outlive what it made.
            self._runtime = tensorrt.Runtime(logs)
            self._engine = self._runtime.deserialize_cuda_engine(_build(tensorrt, logs, path))
            self._context = self._engine.create_execution_context()

    def __call__(self, batch: Batch) -> Batch:
        """See `Runtime`."""
        with self._lock, torch.cuda.device(self._device):
            parts = [self._run(part) for part in torch.from_numpy(batch).to(self._device).split(4)]
            return np.asarray(torch.cat(parts).cpu().numpy())

    def _run(self, pictures: torch.Tensor) -> torch.Tensor:
        count, channels, height, width = pictures.shape
        larger = pictures.new_empty(count, channels, height * self._scale, width * self._scale)
        self._context.set_input_shape("pictures", tuple(pictures.shape))
        self._context.set_tensor_address("pictures", pictures.contiguous().data_ptr())
        self._context.set_tensor_address("larger", larger.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise FailedPrecondition("A TensorRT engine failed.", reason="ENGINE_FAILED")
        return larger


def _build(tensorrt: Any, logs: object, path: Path) -> bytes:
    builder = tensorrt.Builder(logs)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logs)
    if not parser.parse_from_file(str(path)):
        raise FailedPrecondition(f"{path.name} is refused: {parser.get_error(0)}", reason="ENGINE_REFUSED")
    profile = builder.create_optimization_profile()
    profile.set_shape("pictures", (1, 3, 16, 16), (4, 3, 256, 256), (4, 3, 1024, 1024))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise FailedPrecondition(f"TensorRT builds no engine of {path.name}.", reason="ENGINE_REFUSED")
    return bytes(plan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The runtime that was chosen, and the seconds that each one present took for one picture of 96x96."""

    name: str
    run: Runtime
    seconds: Mapping[str, float]


def choose_runtime(
    network: Network, onnx: Path | None, device: torch.device, *, threads: int | None, wanted: str = "auto"
) -> Choice:
    """The fastest runtime that is present and agrees with torch, or the one that is `wanted`.

    Raises `FailedPrecondition` where the wanted one is not present or disagrees.
    """
    present = _present(network, onnx, device, threads)
    probe = np.random.default_rng(0).random((1, 3, _PROBE_EDGE, _PROBE_EDGE), dtype=np.float32)
    truth, seconds = present["torch"](probe), {}
    for name, run in list(present.items()):
        worst = float(np.abs(run(probe) - truth).max())
        if worst > AGREEMENT:
            logger(__name__).warning("runtime_disagrees", upscaler=network.id, runtime=name, worst=worst)
            del present[name]
            continue
        seconds[name] = min(_seconds(run, probe) for _ in range(_ROUNDS))
    chosen = min(seconds, key=lambda name: seconds[name]) if wanted == "auto" else wanted
    if chosen not in present:
        raise FailedPrecondition(
            f"The upscaler {network.id} cannot be run by {wanted} here; there are {', '.join(present)}.",
            reason="RUNTIME_MISSING",
        )
    return Choice(name=chosen, run=present[chosen], seconds=MappingProxyType(seconds))


def _present(network: Network, onnx: Path | None, device: torch.device, threads: int | None) -> dict[str, Runtime]:
    present: dict[str, Runtime] = {"torch": TorchRuntime(network.module)}
    if onnx is not None and device.type == "cpu" and find_spec("onnxruntime"):
        present["onnxruntime"] = OnnxRuntime(onnx, threads)
    if onnx is not None and device.type == "cuda" and find_spec("tensorrt"):
        present["tensorrt"] = TensorRtRuntime(onnx, device, network.scale)
    return present


def _seconds(run: Runtime, probe: Batch) -> float:
    start = time.perf_counter()
    run(probe)
    return time.perf_counter() - start
