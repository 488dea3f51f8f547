"""Names and values of the numbers in what a metric returned."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch

from fitkit import DataError
from fitkit.metrics.entries import MAX_ENTRIES, entries, loggable

Scores = namedtuple("Scores", ["f1", "recall"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, {"m": 1.0}),
        (True, {"m": 1.0}),
        (np.float32(0.5), {"m": 0.5}),
        (np.array(0.5), {"m": 0.5}),
        (np.array([[2]]), {"m": 2.0}),
        (torch.tensor([[0.5]]), {"m": 0.5}),
        (torch.tensor([1, 2]), {"m_0": 1.0, "m_1": 2.0}),
        (np.arange(3)[::2], {"m_0": 0.0, "m_1": 2.0}),
        (torch.tensor([[1, 2]]), {"m_0_0": 1.0, "m_0_1": 2.0}),
        (torch.zeros(0), {}),
        ({"a": 1, 2: [3, 4]}, {"m_a": 1.0, "m_2_0": 3.0, "m_2_1": 4.0}),
        (Scores(1, 2), {"m_f1": 1.0, "m_recall": 2.0}),
        ((torch.tensor(1), [2]), {"m_0": 1.0, "m_1_0": 2.0}),
    ],
)
def test_every_number_has_a_name(value, expected):
    found = entries("m", value)
    assert {name: float(number) for name, number in found.items()} == expected
    assert loggable("m", value) == expected


def test_numbers_of_a_tensor_are_detached_and_not_read():
    found = entries("m", torch.ones(2, requires_grad=True))
    assert [(type(one), one.requires_grad) for one in found.values()] == [(torch.Tensor, False)] * 2


@pytest.mark.parametrize("value", [None, "1", b"1", object(), {"a": None}, [{}, "x"], 1j])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(DataError, match=r"metric 'm' must return one number, or a mapping"):
        entries("m", value)
    with pytest.warns(UserWarning, match=r"metric 'm' must return.* It is not logged\."):
        assert loggable("m", value) == {}


def test_only_so_many_numbers_are_logged():
    assert len(entries("m", torch.zeros(MAX_ENTRIES))) == MAX_ENTRIES
    for value in (
        torch.zeros(MAX_ENTRIES + 1),
        [0] * (MAX_ENTRIES + 1),
        {"a": torch.zeros(40, 40)},
    ):
        with pytest.raises(DataError, match=r"metric 'm' returned 1\d00 numbers|returned 1001"):
            entries("m", value)
