import ctypes
import json
from collections.abc import Callable
from typing import Any

import google_crc32c
import pytest
import safetensors
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from rushes.v1 import tensors_pb2
from services.chassis import errors
from services.chassis.bundles import (
    CHUNK_BYTES,
    ITEM_SIZES,
    MAX_HEADER_BYTES,
    Bundle,
    BundleReceiver,
    Tensor,
    chunks,
    pack,
    unpack,
)
from tests.chassis.probe import Probe, probing, text
from tests.chassis.test_errors import failure

LATENTS = tensors_pb2.BUNDLE_KIND_LATENTS
PAYLOAD = bytes(range(256)) * (CHUNK_BYTES // 100)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(ITEM_SIZES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=4)))
    count = ITEM_SIZES[dtype]
    for size in shape:
        count *= size
    return Tensor(dtype=dtype, shape=shape, data=draw(st.binary(min_size=count, max_size=count)))


NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
BUNDLES = st.builds(
    lambda held, metadata: Bundle(tensors=held, metadata=metadata),
    st.dictionaries(NAMES, tensors(), max_size=4),
    st.dictionaries(NAMES, st.text(max_size=8), max_size=3),
)


def plain(bundle: Bundle) -> dict[str, tuple[str, list[int], bytes]]:
    return {name: (held.dtype, list(held.shape), bytes(held.data)) for name, held in bundle.tensors.items()}


@given(BUNDLES)
def test_a_bundle_survives_the_way(bundle: Bundle) -> None:
    arrived = unpack(pack(bundle))
    assert plain(arrived) == plain(bundle)
    assert arrived.metadata == bundle.metadata


@given(BUNDLES)
def test_the_safetensors_library_reads_what_is_packed(bundle: Bundle) -> None:
    read = dict(safetensors.deserialize(pack(bundle)))
    assert {name: (held["dtype"], held["shape"], bytes(held["data"])) for name, held in read.items()} == plain(bundle)


def test_what_the_safetensors_library_writes_is_unpacked() -> None:
    data = bytes(range(24))
    held = ctypes.create_string_buffer(data, len(data))
    spec = safetensors.TensorSpec(dtype="float32", shape=[2, 3], data_ptr=ctypes.addressof(held), data_len=len(data))
    bundle = unpack(safetensors.serialize({"latents": spec}, {"step": "3"}))
    assert plain(bundle) == {"latents": ("F32", [2, 3], data)}
    assert bundle.metadata == {"step": "3"}


def test_every_tensor_begins_where_its_items_are_aligned() -> None:
    bundle = Bundle(
        tensors={
            "a": Tensor(dtype="U8", shape=(3,), data=b"abc"),
            "b": Tensor(dtype="F64", shape=(1,), data=b"8" * 8),
            "c": Tensor(dtype="BF16", shape=(1,), data=b"22"),
        }
    )
    packed = pack(bundle)
    header_end = 8 + int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8:header_end])
    for entry in header.values():
        assert (header_end + entry["data_offsets"][0]) % ITEM_SIZES[entry["dtype"]] == 0


def test_unpacking_copies_nothing() -> None:
    payload = bytearray(pack(Bundle(tensors={"a": Tensor(dtype="U8", shape=(3,), data=b"abc")})))
    held = unpack(payload).tensors["a"]
    payload[-3:] = b"xyz"
    assert bytes(held.data) == b"xyz"


@pytest.mark.parametrize(("dtype", "shape", "data"), [("F32", (2,), b"1234"), ("F31", (1,), b"1234"), ("U8", (), b"")])
def test_a_tensor_whose_bytes_do_not_fit_is_none(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(ValueError, match=r"F32|F31|U8"):
        Tensor(dtype=dtype, shape=shape, data=data)


def raw(header: Any, data: bytes = b"") -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} | changes


LIES = {
    "no length": b"1234",
    "a header longer than the bundle": (2**20).to_bytes(8, "little") + b"{}",
    "a header longer than allowed": (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}" + b" " * MAX_HEADER_BYTES,
    "a header length of all ones": b"\xff" * 8 + b"{}",
    "no JSON": raw(b"{'a'}"),
    "no UTF-8": raw(b'{"\xff": 1}'),
    "no object": raw([1]),
    "endless nesting": raw(b"[" * 200_000),
    "a name twice": raw(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), b"1234"),
    "an unknown dtype": raw({"a": entry(dtype="F31")}, b"1234"),
    "an entry that is none": raw({"a": 1}, b"1234"),
    "an entry with more to it": raw({"a": entry(pickle="x")}, b"1234"),
    "a negative size": raw({"a": entry(shape=[-4])}, b"1234"),
    "a size that is no integer": raw({"a": entry(shape=[4.0])}, b"1234"),
    "a size that is a truth": raw({"a": entry(shape=[True, 4])}, b"1234"),
    "a shape of a million sizes": raw({"a": entry(shape=[9] * 300_000)}, b"1234"),
    "a shape too large for its bytes": raw({"a": entry(shape=[5])}, b"1234"),
    "a shape too small for its bytes": raw({"a": entry(shape=[3])}, b"1234"),
    "an end beyond the data": raw({"a": entry(shape=[5], data_offsets=[0, 5])}, b"1234"),
    "an end before the beginning": raw({"a": entry(shape=[0], data_offsets=[4, 0])}, b"1234"),
    "a hole": raw({"a": entry(shape=[1], data_offsets=[0, 1]), "b": entry(shape=[1], data_offsets=[2, 3])}, b"123"),
    "an overlap": raw({"a": entry(), "b": entry(shape=[3], data_offsets=[1, 4])}, b"1234"),
    "bytes of nobody": raw({"a": entry()}, b"12345"),
    "metadata that is no text": raw({"__metadata__": {"step": 3}, "a": entry()}, b"1234"),
    "metadata that is no mapping": raw({"__metadata__": "x", "a": entry()}, b"1234"),
}


@pytest.mark.parametrize("payload", LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_refused(payload: bytes) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        unpack(payload)
    assert caught.value.reason == "BUNDLE_INVALID"


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(payload: bytes) -> None:
    try:
        unpack(raw(payload))
    except errors.InvalidRequest:
        return


def receive(*parts: tensors_pb2.BundleChunk, max_bytes: int = 2**24) -> BundleReceiver:
    receiver = BundleReceiver(LATENTS, max_bytes)
    for part in parts:
        receiver.feed(part)
    return receiver


def test_chunks_are_put_together_again() -> None:
    parts = list(chunks(LATENTS, PAYLOAD))
    receiver = BundleReceiver(LATENTS, len(PAYLOAD))
    assert len(parts) == 3
    assert [receiver.feed(part) for part in parts] == [False, False, True]
    assert receiver.payload() == PAYLOAD


def chunk(**changes: Any) -> tensors_pb2.BundleChunk:
    """The first of two chunks, with `changes`."""
    given_fields: dict[str, Any] = {"kind": LATENTS, "offset": 0, "total_size": 8, "data": b"1234"} | changes
    given_fields.setdefault("crc32c", google_crc32c.value(given_fields["data"]))
    return tensors_pb2.BundleChunk(**given_fields)


FIRST = chunk()
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "another kind": (lambda: receive(chunk(kind=tensors_pb2.BUNDLE_KIND_CONDITIONING)), "chunk.kind"),
    "no size": (lambda: receive(chunk(total_size=0)), "chunk.total_size"),
    "a negative size": (lambda: receive(chunk(total_size=-1)), "chunk.total_size"),
    "too large a size": (lambda: receive(chunk(), max_bytes=7), "chunk.total_size"),
    "another size": (lambda: receive(FIRST, chunk(offset=4, total_size=9)), "chunk.total_size"),
    "a chunk twice": (lambda: receive(FIRST, FIRST), "chunk.offset"),
    "a chunk left out": (lambda: receive(chunk(offset=4)), "chunk.offset"),
    "no data": (lambda: receive(chunk(data=b"")), "chunk.data"),
    "more data than announced": (lambda: receive(FIRST, chunk(offset=4, data=b"56789")), "chunk.data"),
    "data after the end": (lambda: receive(FIRST, chunk(offset=4), chunk(offset=8)), "chunk.data"),
    "too large a chunk": (lambda: receive(chunk(total_size=2**22, data=b"x" * (CHUNK_BYTES + 1))), "chunk.data"),
}


@pytest.mark.parametrize(("feed", "field"), REFUSED.values(), ids=REFUSED.keys())
def test_a_chunk_out_of_place_is_refused_by_its_field(feed: Callable[[], object], field: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        feed()
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_chunk_with_a_wrong_checksum_is_lost_data() -> None:
    with pytest.raises(errors.DataLoss) as caught:
        receive(FIRST, chunk(offset=4, data=b"5678", crc32c=google_crc32c.value(b"5679")))
    assert caught.value.reason == "BUNDLE_CHECKSUM"


@pytest.mark.parametrize("parts", [(), (FIRST,)])
def test_a_truncated_bundle_has_no_payload(parts: tuple[tensors_pb2.BundleChunk, ...]) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        receive(*parts).payload()
    assert caught.value.reason == "BUNDLE_TRUNCATED"


async def test_a_refused_upload_leaves_the_service_healthy() -> None:
    async def upload(requests: Any, _context: Any) -> StringValue:
        receiver = BundleReceiver(LATENTS, 2**24)
        async for part in requests:
            if receiver.feed(part):
                break
        return text(",".join(unpack(receiver.payload()).tensors))

    good = list(chunks(LATENTS, pack(Bundle(tensors={"latents": Tensor(dtype="U8", shape=(4,), data=b"1234")}))))
    bad = tensors_pb2.BundleChunk()
    bad.CopyFrom(good[0])
    bad.crc32c ^= 1
    async with probing(Probe(upload=upload)) as probe:
        lost = errors.from_rpc_error(await failure(probe.caller.upload(iter([bad]))))
        short = errors.from_rpc_error(await failure(probe.caller.upload(iter([]))))
        assert (await probe.caller.upload(iter(good))).value == "latents"

    assert (type(lost), type(short)) == (errors.DataLoss, errors.InvalidRequest)
