import importlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import protovalidate
import pytest
from google.protobuf import message_factory
from google.protobuf.wrappers_pb2 import StringValue

import rushes.v1
from rushes.v1 import tensors_pb2
from services.chassis import errors
from services.chassis.bundles import BundleReceiver
from services.chassis.validation import validate
from tests.chassis.probe import Probe, probing, text
from tests.chassis.test_errors import failure

GOOD = tensors_pb2.BundleChunk(kind=tensors_pb2.BUNDLE_KIND_LATENTS, offset=0, total_size=1, data=b"x")


def test_a_message_that_keeps_the_rules_passes() -> None:
    validate(GOOD)


def test_every_broken_rule_is_named_with_its_field() -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        validate(tensors_pb2.BundleChunk(offset=-1, total_size=1, data=b"x"))

    assert [violation.field for violation in caught.value.violations] == ["kind", "offset"]
    assert "greater than or equal to 0" in caught.value.violations[1].rule


async def test_a_bad_message_in_the_middle_of_a_stream_is_refused() -> None:
    seen: list[tensors_pb2.BundleHeader] = []

    async def upload(requests: AsyncIterator[tensors_pb2.BundleHeader], _context: object) -> StringValue:
        async for header in requests:
            seen.extend([header])
        return text()

    def headers(*sizes: int) -> Iterator[tensors_pb2.BundleHeader]:
        return (tensors_pb2.BundleHeader(kind=tensors_pb2.BUNDLE_KIND_LATENTS, total_size=size) for size in sizes)

    async with probing(Probe(announce=upload)) as probe:
        arrived = errors.from_rpc_error(await failure(probe.caller.announce(headers(1, -1, 1))))

    assert isinstance(arrived, errors.InvalidRequest)
    assert [violation.field for violation in arrived.violations] == ["total_size"]
    assert seen == [*headers(1)]


def test_every_rule_of_the_protos_compiles() -> None:
    paths = [path for folder in rushes.v1.__path__ for path in Path(folder).glob("*.proto")]
    files = [importlib.import_module(f"rushes.v1.{path.stem}_pb2").DESCRIPTOR for path in paths]
    checked = [message for file in files for message in file.message_types_by_name.values()]
    for message in checked:
        protovalidate.collect_violations(message_factory.GetMessageClass(message)())
    assert tensors_pb2.BundleChunk.DESCRIPTOR in checked


async def test_a_chunk_is_left_to_the_receiver() -> None:
    async def upload(requests: AsyncIterator[tensors_pb2.BundleChunk], _context: object) -> StringValue:
        receiver = BundleReceiver(tensors_pb2.BUNDLE_KIND_LATENTS, 2**20)
        async for chunk in requests:
            receiver.feed(chunk)
        return text()

    bad = tensors_pb2.BundleChunk(kind=tensors_pb2.BUNDLE_KIND_LATENTS, total_size=-1, data=b"x")
    async with probing(Probe(upload=upload)) as probe:
        arrived = errors.from_rpc_error(await failure(probe.caller.upload(iter([bad]))))

    assert isinstance(arrived, errors.InvalidRequest)
    assert [violation.field for violation in arrived.violations] == ["chunk.total_size"]
