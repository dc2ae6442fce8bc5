"""What a process says of its residency, its shared steps and its memory."""

from rushes.v1 import denoiser_pb2, sampling_pb2
from services.denoiser.shapes import VideoShape
from services.denoiser.sharing import StepSharing


def shape_message(shape: VideoShape) -> sampling_pb2.VideoShape:
    """`shape` in the language of the protos."""
    return sampling_pb2.VideoShape(width=shape.width, height=shape.height, num_frames=shape.frames)


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
