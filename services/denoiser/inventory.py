"""What a process says of its residency, its shared steps and its memory."""

from rushes.v1 import denoiser_pb2, sampling_pb2
from services.denoiser.memory import MemoryBook
from services.denoiser.pool import ExpertPool
from services.denoiser.shapes import VideoShape
from services.denoiser.sharing import StepSharing
from services.denoiser.wire import EXPERTS


def shape_message(shape: VideoShape) -> sampling_pb2.VideoShape:
    """`shape` in the language of the protos."""
    return sampling_pb2.VideoShape(width=shape.width, height=shape.height, num_frames=shape.frames)


def residency_message(pool: ExpertPool) -> denoiser_pb2.Residency:
    """Which experts are on the device."""
    residence = pool.residence
    if residence is not None:
        mode = "swap"
    elif len(pool.experts) > 1:
        mode = "both"
    else:
        mode = next(iter(pool.experts)).name.lower()
    return denoiser_pb2.Residency(
        mode=mode,
        resident=[EXPERTS[expert] for expert in pool.resident],
        swaps=0 if residence is None else residence.swaps,
        swap_seconds=0.0 if residence is None else residence.swap_seconds,
    )


def sharing_message(sharing: StepSharing) -> denoiser_pb2.StepSharing:
    """The rule by which steps are shared, and what it stands on."""
    return denoiser_pb2.StepSharing(
        mode=sharing.mode,
        limit=sharing.limit,
        measured=[
            denoiser_pb2.SharingTiming(
                shape=shape_message(timing.shape),
                runs=timing.runs,
                serial_seconds=timing.serial_seconds,
                shared_seconds=timing.shared_seconds,
            )
            for timings in sharing.measured.values()
            for timing in timings
        ],
    )


def memory_message(book: MemoryBook, available: int, reserved: int) -> denoiser_pb2.DeviceMemory:
    """What admission goes by, in bytes."""
    return denoiser_pb2.DeviceMemory(
        available_bytes=available,
        reserved_bytes=reserved,
        measured=[
            denoiser_pb2.MeasuredMemory(
                shape=shape_message(shape), peak_bytes=each.peak + each.held, held_bytes=each.held
            )
            for shape, each in book.measured.items()
        ],
    )
