"""Stubs in the place of tensors; the round trip is in storage/test_shard_folder.py."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit.checkpointing.format.tags import TAG
from fitkit.checkpointing.format.tensor_stubs import (
    dtype_from_name,
    extract_tensors,
    find_stubs,
    insert_tensors,
    is_stub,
)
from fitkit.core.formatting import dtype_name

STUB = {TAG: "piece", "key": "a", "shape": [2, 3], "dtype": "float32"}


def test_names_are_paths_and_never_the_same():
    one, two, three = (torch.full((1,), float(number)) for number in range(3))
    content = {"a": [one], "a.0": two, 0: {"x": three}}
    stubbed, tensors = extract_tensors(content, torch.is_tensor)
    assert list(tensors) == ["a.0", "a.0'", "0.x"]
    assert find_stubs(stubbed)["0.x"] == {**STUB, "key": "0.x", "shape": [1]}
    assert list(find_stubs(stubbed)) == list(tensors)
    filled = insert_tensors(stubbed, lambda stub: tensors[stub["key"]])
    assert (filled["a"][0] is one, filled["a.0"] is two, filled[0]["x"] is three) == (True,) * 3


def test_only_what_is_selected_is_taken_and_the_content_stays():
    small, large = torch.ones(1), torch.ones(9)
    content = OrderedDict(small=small, large=(large, "text"))
    stubbed, tensors = extract_tensors(content, lambda value: value is large)
    assert list(tensors) == ["large.0"]
    assert type(stubbed) is OrderedDict
    assert stubbed["small"] is small
    assert content["large"][0] is large


def test_a_named_tuple_is_one_value():
    class Pair(NamedTuple):
        one: torch.Tensor

    pair = Pair(torch.ones(1))
    assert extract_tensors([pair], torch.is_tensor) == ([pair], {})


@pytest.mark.parametrize(
    "change",
    [
        {TAG: "class"},
        {"key": 1},
        {"shape": (2, 3)},
        {"shape": [2, -1]},
        {"shape": [True]},
        {"shape": [2.0]},
        {"shape": [2**56]},
        {"shape": [0, 2**28, 2**28]},  # no element, but its strides overflow
        {"dtype": "float33"},
        {"dtype": "nn"},
        {"dtype": None},
    ],
)
def test_what_is_no_stub_is_left_alone(change):
    altered = {**STUB, **change}
    assert is_stub(STUB)
    assert not is_stub(altered)
    assert insert_tensors([altered], lambda stub: "filled") == [altered]


@given(st.lists(st.integers(0, 2**20), max_size=4))
def test_every_stub_can_be_a_tensor(shape):
    if is_stub({**STUB, "shape": shape}):
        assert list(torch.empty(shape, device="meta").shape) == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_names_of_types(dtype):
    assert dtype_from_name(dtype_name(dtype)) is dtype
    assert dtype_from_name(str(dtype)) is None
