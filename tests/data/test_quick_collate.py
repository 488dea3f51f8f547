"""quick_collate makes and refuses what torch's default_collate does."""

from __future__ import annotations

from collections import namedtuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

from fitkit.data import quick_collate as module
from fitkit.data.quick_collate import quick_collate, quicker

Pair = namedtuple("Pair", "x y")


def outcome(collate, samples):
    try:
        return described(collate(samples))
    except Exception as error:  # noqa: BLE001  both must raise the same
        return type(error), str(error)


def described(batch):
    if isinstance(batch, Tensor):
        return type(batch), batch.dtype, batch.requires_grad, batch.tolist()
    if isinstance(batch, dict):
        return type(batch), {key: described(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch), [described(value) for value in batch]
    return batch


PARTS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(2**70, 2**71),
    st.booleans(),
    st.floats(allow_nan=False),
    st.text(max_size=2),
    st.none(),
    st.sampled_from(
        [
            torch.ones(2), torch.ones(2, dtype=torch.int32), torch.zeros(3), torch.tensor(1.0),
            torch.ones(2).to_sparse(), nn.Parameter(torch.ones(2)), torch.ones(2).requires_grad_(),
            torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), np.ones(2),
            np.float32(1.0),
            {"a": 1, "b": torch.ones(2)}, [1, torch.ones(2)], (1, 2.0), Pair(1, torch.ones(1)),
        ]
    ),
)  # fmt: skip
SAMPLES = st.one_of(PARTS, st.lists(PARTS, max_size=3).map(tuple), st.lists(PARTS, max_size=3))


@settings(max_examples=300)
@given(st.data())
def test_it_is_torch_s(data):
    kind = data.draw(st.sampled_from(["same part", "same tuple", "any"]))
    number = data.draw(st.integers(1, 4))
    if kind == "any":
        samples = data.draw(st.lists(SAMPLES, max_size=4))
    else:
        samples = [data.draw(SAMPLES if kind == "same part" else PARTS.map(lambda p: (p, 1)))]
        samples *= number
    assert outcome(quick_collate, samples) == outcome(default_collate, samples)


def test_columns_of_tensors_and_whole_numbers_are_not_walked_through():
    samples = [(torch.ones(2), 3), (torch.zeros(2), 4)]
    with mock.patch.object(module, "default_collate") as torchs:
        inputs, targets = quick_collate(samples)
    assert not torchs.called
    assert (inputs.shape, targets.tolist()) == ((2, 2), [3, 4])


@pytest.mark.parametrize("kind", [Tensor, int, tuple])
def test_a_function_that_the_program_has_registered_is_called(monkeypatch, kind):
    monkeypatch.setitem(default_collate_fn_map, kind, lambda batch, **_: ["mine", *batch])
    samples = [(torch.ones(2), 3), (torch.zeros(2), 4)]
    assert described(quick_collate(samples)) == described(default_collate(samples))
    assert "mine" in str(quick_collate(samples))


def test_other_functions_stay():
    assert quicker(default_collate) is quick_collate
    assert quicker(len) is len
