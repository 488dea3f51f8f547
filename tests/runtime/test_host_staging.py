"""HostCopies: exact copies of every kind of tensor, in memory that is used again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fitkit.runtime.host_staging import HostStaging


def copy(copies, *tensors):
    found = [copies.reserve(tensor) for tensor in tensors]
    copies.fetch()
    copies.wait()
    return found


def bits(tensor):
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def assert_exact(found, tensor):
    assert (found.dtype, found.shape, found.layout) == (tensor.dtype, tensor.shape, tensor.layout)
    assert found.device.type == "cpu"
    assert not found.requires_grad
    assert torch.equal(bits(found), bits(tensor))


def nans():
    return torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])


KINDS = {
    "float": lambda: torch.randn(3, 4),
    "scalar": lambda: torch.tensor(2.5),
    "nan and negative zero": nans,
    "bf16": lambda: torch.randn(5).bfloat16(),
    "fp16": lambda: torch.randn(5).half(),
    "fp8": lambda: torch.randn(5).to(torch.float8_e4m3fn),
    "double": lambda: torch.randn(5, dtype=torch.float64),
    "int64": lambda: torch.tensor([-(2**63), 2**63 - 1]),
    "uint8": lambda: torch.arange(256, dtype=torch.uint8),
    "bool": lambda: torch.tensor([True, False]),
    "complex": lambda: torch.randn(4, dtype=torch.complex64),
    "conjugated": lambda: torch.randn(4, dtype=torch.complex64).conj(),
    "negated": lambda: torch.randn(4, dtype=torch.complex64).conj().imag,
    "empty": lambda: torch.zeros(0, 3),
    "empty of three": lambda: torch.zeros(2, 0, 3),
    "transposed": lambda: torch.randn(3, 4).t(),
    "every second": lambda: torch.randn(20)[::2],
    "a part": lambda: torch.randn(6, 6)[2:4, 1:5],
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "part of an expanded": lambda: torch.randn(100)[:1].expand(10),
    "overlapping windows": lambda: torch.arange(10.0).unfold(0, 4, 1),
    "a parameter": lambda: nn.Parameter(torch.randn(3)),
    "of a graph": lambda: torch.randn(3, requires_grad=True) * 2,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_copied_exactly_and_does_not_follow_its_source(kind):
    tensor = KINDS[kind]()
    expected = tensor.detach().clone()
    (found,) = copy(HostStaging(), tensor)
    assert_exact(found, expected)
    if tensor.numel():
        assert found.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
    with torch.no_grad():
        base = tensor if tensor._base is None else tensor._base
        base.detach().resolve_conj().zero_()
    assert_exact(found, expected)


@pytest.mark.parametrize("kind", ["channels last", "transposed", "float"])
def test_dense_layouts_keep_their_strides(kind):
    tensor = KINDS[kind]()
    assert copy(HostStaging(), tensor)[0].stride() == tensor.stride()


def test_sparse_tensors_are_copied():
    tensor = torch.tensor([[0.0, 2.0], [0.0, 3.0]]).to_sparse()
    (found,) = copy(HostStaging(), tensor)
    tensor.values().zero_()
    assert found.layout is torch.sparse_coo
    assert found.to_dense().tolist() == [[0.0, 2.0], [0.0, 3.0]]


def test_all_kinds_at_once():
    tensors = [make() for make in KINDS.values()]
    for found, tensor in zip(copy(HostStaging(), *tensors), tensors, strict=True):
        assert_exact(found, tensor)


def test_a_copy_is_made_when_all_are_fetched_not_when_memory_is_reserved():
    copies, tensor = HostStaging(), torch.zeros(3)
    found = copies.reserve(tensor)
    tensor.fill_(7.0)
    copies.fetch()
    assert found.tolist() == [7.0] * 3


def test_tied_tensors_are_copied_once():
    layer = nn.Linear(3, 3)
    found = copy(HostStaging(), layer.weight, layer.weight.detach(), layer.weight.data, layer.bias)
    assert len({one.data_ptr() for one in found}) == 2
    assert found[0] is found[1] is found[2]


def test_different_views_of_the_same_memory_are_not_confused():
    base = torch.arange(6.0)
    views = [base, base.view(2, 3), base.view(3, 2), base[:3], base.view(2, 3).t(), base[::2]]
    views.append(base.view(torch.int32))
    for found, view in zip(copy(HostStaging(), *views), views, strict=True):
        assert_exact(found, view)


def test_a_tensor_and_its_conjugate_are_not_confused():
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    views = [tensor, tensor.conj(), tensor.imag, tensor.conj().imag]
    for found, view in zip(copy(HostStaging(), *views), views, strict=True):
        assert_exact(found, view)


def test_memory_is_used_again_by_the_next_copy():
    copies = HostStaging()
    tensors = [torch.randn(4, 3), torch.randn(4, 3), torch.randn(7).double(), torch.zeros(0)]
    first = copy(copies, *tensors)
    pointers = sorted(one.data_ptr() for one in first)
    for tensor in tensors:
        tensor.add_(1)
    second = copy(copies, *tensors)
    assert sorted(one.data_ptr() for one in second) == pointers
    for found, tensor in zip(second, tensors, strict=True):
        assert_exact(found, tensor)


def test_memory_that_is_not_needed_any_more_is_let_go():
    copies = HostStaging()
    (large,) = copy(copies, torch.randn(1000))
    pointer = large.data_ptr()
    del large
    copy(copies, torch.randn(3))
    assert not any(
        tensor.data_ptr() == pointer for held in copies._free.values() for tensor in held
    )


def test_one_tensor_that_is_gone_does_not_lend_its_place_to_another():
    """Tensors that live only while the state is walked may be made at the same address."""
    copies, found = HostStaging(), []
    for number in range(50):
        found.append(copies.reserve(torch.full((5,), float(number))))
    empty = [copies.reserve(torch.zeros(0, number)) for number in range(20)]
    copies.fetch()
    assert [one[0].item() for one in found] == list(range(50))
    assert [tuple(one.shape) for one in empty] == [(0, number) for number in range(20)]


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool])


@settings(max_examples=60)
@given(st.lists(st.lists(st.tuples(shapes, dtypes), max_size=6), min_size=1, max_size=4))
def test_whatever_changes_from_snapshot_to_snapshot_each_is_exact(snapshots):
    copies = HostStaging()
    for number, snapshot in enumerate(snapshots):
        tensors = [(torch.rand(shape) * (number + 2) * 3).to(dtype) for shape, dtype in snapshot]
        for found, tensor in zip(copy(copies, *tensors), tensors, strict=True):
            assert_exact(found, tensor)
