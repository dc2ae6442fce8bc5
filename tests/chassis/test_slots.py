import asyncio

import pytest

from services.chassis.errors import Exhausted
from services.chassis.slots import Slots


async def test_a_caller_beyond_the_capacity_is_refused_at_once_and_told_when_to_come_back() -> None:
    slots = Slots(2, retry_after_seconds=1.5)
    async with slots.hold(), slots.hold():
        assert slots.in_use == 2
        with pytest.raises(Exhausted) as caught:
            async with slots.hold():
                pytest.fail("held a third of two")

    assert caught.value.reason == "SLOTS_BUSY"
    assert caught.value.retry_after_seconds == 1.5


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_slot_is_free_again_however_its_holder_ends(error: type[BaseException]) -> None:
    slots = Slots(1, retry_after_seconds=1)
    with pytest.raises(error):
        async with slots.hold():
            raise error

    assert slots.in_use == 0


def test_no_capacity_is_no_slots() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Slots(0, retry_after_seconds=1)
