"""Runs exported experts: TensorRT where it imports, else ONNX Runtime; both are loaded only when a folder is given.

An engine serves one size of clip without adapters and step caches. All else goes through the torch weights, which stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from services.chassis.errors import FailedPrecondition
from services.denoiser.adapters import Adapter
from services.denoiser.experts import Expert
from services.denoiser.shapes import LatentShape
from services.denoiser.step_cache import FirstBlockCache
from services.denoiser.transformer import Context, Transformer


class Engine(Protocol):
    """A compiled expert for one size of latents."""

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """v, [1, C, T, H, W] float32, for one text, all inputs float32 on the expert's device."""


class OnnxEngine:
    """ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime  # noqa: PLC0415 - an optional dependency, loaded where it is used

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        inputs = {"latents": latents, "timestep": timestep, "text": text}
        (v,) = self._session.run(["velocity"], {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
        return torch.from_numpy(v)


class TensorRtEngine:
    """TensorRT on a CUDA device; the built plan is kept beside the ONNX file, by version and compute capability."""

    def __init__(self, path: Path, device: torch.device) -> None:
        import tensorrt  # noqa: PLC0415 - an optional dependency, loaded where it is used

        self._device = device
        major, minor = torch.cuda.get_device_capability(device)
        plan = path.with_suffix(f".trt{tensorrt.__version__}-sm{major}{minor}.plan")
        logger = tensorrt.Logger(tensorrt.Logger.WARNING)
        if not plan.exists():
            _write_whole(plan, _build(tensorrt, logger, path))
        with torch.cuda.device(device):
            # The runtime must outlive what it made.
            self._runtime = tensorrt.Runtime(logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
            self._context = self._engine.create_execution_context()

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        v = torch.empty_like(latents, memory_format=torch.contiguous_format)
        # Held here until the engine is queued: a copy that nobody holds would be overwritten by the next.
        tensors = {"latents": latents.contiguous(), "timestep": timestep, "text": text.contiguous(), "velocity": v}
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise FailedPrecondition("A TensorRT engine failed.", reason="ENGINE_FAILED")
        return v


def _build(tensorrt: Any, logger: object, path: Path) -> bytes:
    builder = tensorrt.Builder(logger)
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise FailedPrecondition(f"{path.name} is refused: {parser.get_error(0)}", reason="ENGINE_REFUSED")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise FailedPrecondition(f"TensorRT builds no engine of {path.name}.", reason="ENGINE_REFUSED")
    return bytes(plan)


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class _EngineContext(Context):
    """A context that an engine may serve: `texts` are the padded embeddings, [B, length, text_dim] float32."""

    shape: LatentShape
    texts: torch.Tensor

    def first(self) -> Context:
        return replace(
            self,
            keys=tuple(k[:1] for k in self.keys),
            values=tuple(v[:1] for v in self.values),
            texts=self.texts[:1],
        )


class EngineTransformer(Transformer):
    """An expert that runs on engines for the sizes that it has them for."""

    def __init__(self, transformer: Transformer, engines: Mapping[LatentShape, Engine]) -> None:
        super().__init__(transformer.module)
        self.attend = transformer.attend
        self._engines = engines

    @torch.inference_mode()
    def read(self, text: torch.Tensor, shape: LatentShape, adapters: Sequence[tuple[Adapter, float]] = ()) -> Context:
        """See `Transformer.read`."""
        context = super().read(text, shape, adapters)
        if adapters or shape not in self._engines:
            return context
        return _EngineContext(
            keys=context.keys,
            values=context.values,
            rotation=context.rotation,
            updates=context.updates,
            shape=shape,
            texts=text.to(self.device, torch.float32),
        )

    @torch.inference_mode()
    def __call__(
        self, x: torch.Tensor, timestep: float, context: Context, cache: FirstBlockCache | None = None
    ) -> torch.Tensor:
        """See `Transformer.__call__`."""
        if cache is not None or not isinstance(context, _EngineContext):
            return super().__call__(x, timestep, context, cache)
        engine, latents = self._engines[context.shape], x.to(self.device, torch.float32)
        told = torch.full((1,), timestep, dtype=torch.float32, device=self.device)
        return torch.cat([engine(latents, told, text) for text in context.texts.split(1)])


def engine_kind(device: torch.device) -> str:
    """`tensorrt` on CUDA where it imports, `onnxruntime` on the CPU where it imports.

    Raises `FailedPrecondition` where neither does.
    """
    kind = "tensorrt" if device.type == "cuda" else "onnxruntime"
    if find_spec(kind) is None:
        raise FailedPrecondition(
            f"Engines need {kind} on this device, which is not installed.", reason="ENGINE_RUNTIME_MISSING"
        )
    return kind


def load_engines(
    folder: Path, expert: Expert, channels: int, device: torch.device, threads: int | None
) -> dict[LatentShape, Engine]:
    """The engines of `expert` in `folder`, by the latents that they serve."""
    kind = engine_kind(device)
    engines: dict[LatentShape, Engine] = {}
    for path in sorted(folder.glob(f"{expert}-*.onnx")):
        try:
            frames, height, width = (int(part) for part in path.stem.removeprefix(f"{expert}-").split("x"))
        except ValueError:
            raise FailedPrecondition(
                f"{path.name} is no engine: its name must be {expert}-FRAMESxHEIGHTxWIDTH.onnx.",
                reason="ENGINE_REFUSED",
            ) from None
        shape = LatentShape(channels=channels, frames=frames, height=height, width=width)
        engines[shape] = TensorRtEngine(path, device) if kind == "tensorrt" else OnnxEngine(path, threads)
    return engines
