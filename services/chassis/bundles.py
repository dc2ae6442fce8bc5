"""Tensor bundles: safetensors bytes, cut into checksummed chunks of at most 1 MiB and put together again.

The format is that of the safetensors library (8 bytes of header length, a JSON header, the data), read and written here
because the library copies every tensor and keeps the metadata to itself; the tests hold both against the library.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import google_crc32c

from rushes.v1 import tensors_pb2
from services.chassis.errors import DataLoss, InvalidRequest

CHUNK_BYTES: Final = 2**20
"""The most that one chunk carries."""
MAX_HEADER_BYTES: Final = 2**20
"""The longest header that is parsed."""
ITEM_SIZES: Final[Mapping[str, int]] = MappingProxyType(
    {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
    | {"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}
)
"""Bytes per element by safetensors dtype name."""

_LENGTH_BYTES: Final = 8
_MAX_RANK: Final = 16
_MAX_SIZE: Final = 2**48
_METADATA: Final = "__metadata__"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One tensor: safetensors dtype name, shape, and its bytes, row-major and little-endian.

    Raises `ValueError` where the bytes do not fit dtype and shape.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_SIZES:
            raise ValueError(f"unknown dtype {self.dtype}")
        expected = math.prod(self.shape) * ITEM_SIZES[self.dtype]
        actual = memoryview(self.data).nbytes
        if actual != expected:
            raise ValueError(f"{self.dtype} {list(self.shape)} takes {expected} bytes, not {actual}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """Named tensors, and what there is to say about them as text."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def pack(bundle: Bundle) -> bytes:
    """The bundle as safetensors bytes; equal bundles give equal bytes. Widest dtypes first, so that all are aligned."""
    ordered = sorted(bundle.tensors.items(), key=lambda item: (-ITEM_SIZES[item[1].dtype], item[0]))
    header: dict[str, Any] = {_METADATA: dict(sorted(bundle.metadata.items()))} if bundle.metadata else {}
    begin = 0
    for name, tensor in ordered:
        end = begin + memoryview(tensor.data).nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *(tensor.data for _, tensor in ordered)])


def unpack(payload: bytes | bytearray | memoryview) -> Bundle:
    """The bundle in `payload`; its tensors are views into it, nothing is copied.

    Raises `InvalidRequest` for a header that is not one, or that does not tell the truth about the data.
    """
    view = memoryview(payload).cast("B")
    header, data = _split(view)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid("__metadata__ must map text to text")
    tensors: dict[str, Tensor] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry)
        if end > len(data):
            raise _invalid(f"tensor {name!r} ends at byte {end} of {len(data)}")
        if end - begin != math.prod(shape) * ITEM_SIZES[dtype]:
            raise _invalid(f"tensor {name!r} is {dtype} {list(shape)}, which does not take {end - begin} bytes")
        tensors[name] = Tensor(dtype=dtype, shape=shape, data=data[begin:end])
        spans.append((begin, end))
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise _invalid(f"the tensors leave a hole or overlap at byte {min(begin, position)}")
        position = end
    if position != len(data):
        raise _invalid(f"{len(data) - position} bytes belong to no tensor")
    return Bundle(tensors=tensors, metadata=metadata)


def chunks(
    kind: tensors_pb2.BundleKind.ValueType, payload: bytes | bytearray | memoryview
) -> Iterator[tensors_pb2.BundleChunk]:
    """`payload` cut into chunks in order, each with its place and checksum."""
    view = memoryview(payload).cast("B")
    for offset in range(0, len(view), CHUNK_BYTES):
        data = bytes(view[offset : offset + CHUNK_BYTES])
        yield tensors_pb2.BundleChunk(
            kind=kind, offset=offset, total_size=len(view), crc32c=google_crc32c.value(data), data=data
        )


class BundleReceiver:
    """Puts the chunks of one bundle together in memory that is allocated once."""

    def __init__(self, kind: tensors_pb2.BundleKind.ValueType, max_bytes: int) -> None:
        """`kind` is the only one accepted, `max_bytes` the largest bundle."""
        self._kind = kind
        self._max_bytes = max_bytes
        self._buffer: bytearray | None = None
        self._received = 0

    def feed(self, chunk: tensors_pb2.BundleChunk) -> bool:
        """Take the next chunk; True when it was the last.

        Raises `InvalidRequest` for another kind, a wrong place, or a size over the limit or other than announced, and
        `DataLoss` for a wrong checksum.
        """
        buffer = self._allocated(chunk)
        data = chunk.data  # Every access copies the bytes out of the message.
        end = self._received + len(data)
        if chunk.offset != self._received:
            raise InvalidRequest.of("chunk.offset", f"must be {self._received}, the bytes that came before")
        if not 0 < len(data) <= CHUNK_BYTES:
            raise InvalidRequest.of("chunk.data", f"must be 1 to {CHUNK_BYTES} bytes")
        if end > len(buffer):
            raise InvalidRequest.of("chunk.data", "must not go beyond total_size")
        if google_crc32c.value(data) != chunk.crc32c:
            raise DataLoss(f"The chunk at byte {chunk.offset} fails its checksum.", reason="BUNDLE_CHECKSUM")
        buffer[self._received : end] = data
        self._received = end
        return end == len(buffer)

    def payload(self) -> memoryview:
        """The whole bundle, writable. Raises `InvalidRequest` when the stream ended before it was complete."""
        if self._buffer is None or self._received != len(self._buffer):
            raise InvalidRequest(f"The bundle ends after {self._received} bytes, too early.", reason="BUNDLE_TRUNCATED")
        return memoryview(self._buffer)

    def _allocated(self, chunk: tensors_pb2.BundleChunk) -> bytearray:
        if chunk.kind != self._kind:
            raise InvalidRequest.of("chunk.kind", f"must be {tensors_pb2.BundleKind.Name(self._kind)}")
        if self._buffer is None:
            if not 0 < chunk.total_size <= self._max_bytes:
                raise InvalidRequest.of("chunk.total_size", f"must be 1 to {self._max_bytes} bytes")
            self._buffer = bytearray(chunk.total_size)
        elif chunk.total_size != len(self._buffer):
            raise InvalidRequest.of("chunk.total_size", "must be the same in every chunk")
        return self._buffer


def _split(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    if len(view) < _LENGTH_BYTES:
        raise _invalid("shorter than its length field")
    length = int.from_bytes(view[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise _invalid(f"the header is longer than {MAX_HEADER_BYTES} bytes")
    if length > len(view) - _LENGTH_BYTES:
        raise _invalid("the header is longer than the bundle")
    try:
        header = json.loads(
            bytes(view[_LENGTH_BYTES : _LENGTH_BYTES + length]).decode(), object_pairs_hook=_without_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise _invalid("the header is not valid JSON with unique names") from error
    if not isinstance(header, dict):
        raise _invalid("the header is not a JSON object")
    return header, view[_LENGTH_BYTES + length :]


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str() as dtype, "shape": list() as shape, "data_offsets": [begin, end]} if len(entry) == 3:
            if dtype not in ITEM_SIZES:
                raise _invalid(f"tensor {name!r} has an unknown dtype")
            # The bounds also keep the product of a hostile shape from becoming an endless multiplication.
            sizes = all(type(number) is int and 0 <= number < _MAX_SIZE for number in (*shape, begin, end))
            if sizes and len(shape) <= _MAX_RANK and begin <= end:
                return dtype, tuple(shape), begin, end
    raise _invalid(f"tensor {name!r} needs a dtype, a shape of at most {_MAX_RANK} sizes and two data offsets")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate name")
    return found


def _invalid(rule: str) -> InvalidRequest:
    return InvalidRequest.of("bundle", rule, reason="BUNDLE_INVALID")
