from collections.abc import AsyncIterator

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from rushes.v1 import tensors_pb2
from services.chassis import errors
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
    seen: list[tensors_pb2.BundleChunk] = []

    async def upload(requests: AsyncIterator[tensors_pb2.BundleChunk], _context: object) -> StringValue:
        async for chunk in requests:
            seen.extend([chunk])
        return text()

    bad = tensors_pb2.BundleChunk(kind=tensors_pb2.BUNDLE_KIND_LATENTS, offset=-1, total_size=1, data=b"x")
    async with probing(Probe(upload=upload)) as probe:
        arrived = errors.from_rpc_error(await failure(probe.caller.upload(iter([GOOD, bad, GOOD]))))

    assert isinstance(arrived, errors.InvalidRequest)
    assert [violation.field for violation in arrived.violations] == ["offset"]
    assert seen == [GOOD]
