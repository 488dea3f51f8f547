"""Sums over ranks by name: a rank may lack names or have met them in another order."""

from __future__ import annotations

import pytest
import torch

from fitkit import DataError
from fitkit.metrics.ranks import sum_by_name


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_sums_are_matched_by_name(on_ranks):
    vectors = [
        {"a": vector(1), "b": vector(2, 3)},
        {"b": vector(20, 30), "c": vector(5), "a": vector()},
        {"d": vector()},
    ]
    for sums in on_ranks(sum_by_name, vectors):
        numbers = {name: sums[name].tolist() for name in sums}
        assert numbers == {"a": [1.0], "b": [22.0, 33.0], "c": [5.0], "d": []}
        assert list(sums) == ["a", "b", "c", "d"]  # on every rank


def test_nothing_to_sum(on_ranks):
    assert on_ranks(sum_by_name, [{}, {}]) == [{}, {}]


def test_one_rank_keeps_its_vectors(on_ranks):
    vectors = {"a": vector(1)}
    assert sum_by_name(vectors, None) is vectors


def test_vectors_of_one_name_have_one_length(on_ranks):
    def caught(vectors, ranks):
        with pytest.raises(DataError, match=r"metric 'a' .* on each rank, received 1 and 2"):
            sum_by_name(vectors, ranks)

    on_ranks(caught, [{"a": vector(1)}, {"a": vector(1, 2)}])
