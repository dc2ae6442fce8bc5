"""Torch tensors survive the wire bit for bit."""

import pytest
import torch

from services.chassis.bundles import Bundle, Tensor, pack, unpack
from services.model.bundles import to_bundle, to_tensors

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_comes_back_as_it_went(dtype: torch.dtype) -> None:
    sent = torch.randn(2, 3, 5).mul(9).to(dtype)
    received = to_tensors(unpack(pack(to_bundle({"x": sent}, {"step": "3"}))), "cpu")["x"]
    assert received.dtype == dtype
    assert torch.equal(received, sent)


def test_a_view_that_is_not_contiguous_travels_in_its_own_order() -> None:
    sent = torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)[1:]
    assert torch.equal(to_tensors(unpack(pack(to_bundle({"x": sent}, {}))), "cpu")["x"], sent)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_tensors_travel(shape: tuple[int, ...]) -> None:
    received = to_tensors(unpack(pack(to_bundle({"x": torch.ones(shape)}, {}))), "cpu")["x"]
    assert received.shape == shape


def test_infinities_and_the_sign_of_zero_survive() -> None:
    sent = torch.tensor([float("inf"), -float("inf"), -0.0, 1e-45])
    received = to_tensors(unpack(pack(to_bundle({"x": sent}, {}))), "cpu")["x"]
    assert torch.equal(received.view(torch.int32), sent.view(torch.int32))


def test_metadata_travels_with_the_tensors() -> None:
    assert unpack(pack(to_bundle({"x": torch.ones(1)}, {"next_step": "7"}))).metadata == {"next_step": "7"}


def test_the_received_tensor_does_not_share_memory_with_the_payload() -> None:
    payload = bytearray(pack(to_bundle({"x": torch.ones(4)}, {})))
    received = to_tensors(unpack(payload), "cpu")["x"]
    payload[-4:] = b"\0\0\0\0"
    assert received.tolist() == [1, 1, 1, 1]


def test_a_dtype_that_no_bundle_carries_is_refused() -> None:
    bundle = Bundle(tensors={"x": Tensor(dtype="U16", shape=(1,), data=b"\0\0")}, metadata={})
    with pytest.raises(ValueError, match="U16"):
        to_tensors(bundle, "cpu")
