"""Sums of a batch over ranks; ``tests/distributed/test_logs.py`` has them on real ranks."""

from __future__ import annotations

import threading

import pytest
import torch

from fitkit import DataError
from fitkit.metrics.batch_sums import BatchSums

CPU = torch.device("cpu")


class Together:
    """Threads that sum and gather, as ranks do."""

    def __init__(self, size):
        self.size, self.values = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=5)
        self.sums = self.gathers = 0

    def rank(self, number):
        outer = self

        class Rank:
            def exchange(self, value):
                outer.values[number] = value
                outer.barrier.wait()
                found = list(outer.values)
                outer.barrier.wait()
                return found

            def sum(self, sums):
                outer.sums += number == 0
                return torch.stack(self.exchange(sums)).sum(0)

            def gather_all(self, value):
                outer.gathers += number == 0
                return self.exchange(value)

        return Rank()


def over_ranks(batches, *, names_vary=True):
    """What each rank gets for each of its batches of vectors by name; how often they talked."""
    together, found = Together(len(batches)), [None] * len(batches)

    def run(number):
        sums = BatchSums(together.rank(number), CPU, names_vary=names_vary)
        try:
            found[number] = [
                {name: part.tolist() for name, part in sums.over_ranks(batch).items()}
                for batch in batches[number]
            ]
        except DataError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, together


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)


def test_sums_of_each_name_with_one_reduction_per_batch():
    batches = [
        [{"a": vector(1, 2), "b": vector(3)}, {"a": vector(4, 5), "b": vector(6)}],
        [{"a": vector(10, 20), "b": vector(30)}, {}],
    ]
    found, together = over_ranks(batches)
    assert found[0] == found[1] == [{"a": [11, 22], "b": [33]}, {"a": [4, 5], "b": [6]}]
    assert (together.sums, together.gathers) == (2, 1)


def test_a_name_that_comes_later_on_one_rank_is_agreed_on():
    batches = [[{"a": vector(1)}] * 3, [{"a": vector(2)}, {"late": vector(7)}, {"a": vector(2)}]]
    found, together = over_ranks(batches)
    assert found[0] == found[1] == [{"a": [3]}, {"a": [1], "late": [7]}, {"a": [3]}]
    assert (together.sums, together.gathers) == (4, 2)


def test_a_batch_of_no_rank_has_no_values():
    found, _ = over_ranks([[{}, {"a": vector(1)}], [{}, {}]])
    assert found[0] == found[1] == [{}, {"a": [1]}]


def test_statistics_of_different_length_are_an_error_on_all():
    found, _ = over_ranks([[{"a": vector(1)}], [{"a": vector(1, 2)}]])
    assert [type(error) for error in found] == [DataError, DataError]


@pytest.mark.parametrize(("names_vary", "reductions"), [(True, 2), (False, 1)])
def test_on_a_device_the_names_travel_apart_from_the_sums(names_vary, reductions, monkeypatch):
    together = Together(1)
    sums = BatchSums(together.rank(0), CPU, names_vary=names_vary)
    # not the host's, as far as the code can tell
    monkeypatch.setattr(sums, "_device", torch.device("meta"))
    monkeypatch.setattr(sums, "_term", lambda vector, length: vector)
    assert sums.over_ranks({"a": vector(1, 2)})["a"].tolist() == [1, 2]
    assert together.sums == reductions
