"""Parts of ranks that run out at different times; real ranks are in ``tests/distributed``."""

from __future__ import annotations

import threading

import pytest
import torch

from fitkit import DataError
from fitkit.core.types import Share
from fitkit.data.iterables import IterableSource
from fitkit.data.rank_part import RankPartSource
from fitkit.data.sample_count import SampleCount


class Together:
    """Threads that exchange values, as ranks do."""

    def __init__(self, size):
        self.size, self.values = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=5)
        self.exchanges = 0

    def rank(self, number):
        outer = self

        class Rank:
            rank, size = number, outer.size

            def gather_all(self, value):
                outer.exchanges += number == 0
                outer.values[number] = value
                outer.barrier.wait()
                found = list(outer.values)
                outer.barrier.wait()
                return found

            def largest(self, values):
                return [max(column) for column in zip(*self.gather_all(values), strict=True)]

        return Rank()


class Stream:
    """Batches of a number that nobody knows."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def batches(first, *sizes):
    return [torch.full((size,), float(first + i)) for i, size in enumerate(sizes)]


def passed(parts, start=0, *, wrap=list):
    """For each rank the value and the share of each batch of a pass, or the error."""
    together, found = Together(len(parts)), [None] * len(parts)

    def run(number):
        try:
            inner = IterableSource(wrap(parts[number]), 0, may_end_early=True)
            source = RankPartSource(inner, together.rank(number), SampleCount())
            known = source.num_batches
            one = [(int(batch[0]), source.share) for batch in source.iterate(0, start)]
            found[number] = known, one
        except DataError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, together.exchanges


UNEVEN = [batches(0, 2, 2, 1), batches(10, 3)]


@pytest.mark.parametrize(("wrap", "known"), [(list, 3), (Stream, None)])
def test_a_rank_that_runs_out_repeats_a_batch_that_counts_nothing(wrap, known):
    (first, second), _ = passed(UNEVEN, wrap=wrap)
    assert first == (known, [(0, Share(2, None)), (1, Share(2, None)), (2, Share(1, None))])
    assert second == (known, [(10, Share(3, None)), (10, Share(0, None)), (10, Share(0, None))])


def test_known_lengths_are_exchanged_once_per_pass():
    assert passed(UNEVEN)[1] == 2  # when it is made, and when the pass begins
    assert passed(UNEVEN, wrap=Stream)[1] == 2 + 3 + 1  # and before each batch, and the end


@pytest.mark.filterwarnings("ignore:.*cannot seek")
@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("wrap", [list, Stream])
def test_a_pass_goes_on_where_one_rank_has_run_out(start, wrap):
    (first, second), _ = passed(UNEVEN, start, wrap=wrap)
    assert [value for value, _ in first[1]] == [0, 1, 2][start:]
    assert second[1] == [(10, Share(0, None))] * (3 - start)


@pytest.mark.parametrize("wrap", [list, Stream])
def test_a_rank_without_any_batch_is_an_error_on_all(wrap):
    found, _ = passed([batches(0, 2), [], batches(9, 1)], wrap=wrap)
    assert [type(one) for one in found] == [DataError] * 3
    assert {str(one).partition(":")[0] for one in found} == {
        "the part of rank 1 has no batch, while others have"
    }


def test_the_state_says_how_many_parts_there_are():
    inner = IterableSource(UNEVEN[0], 0, may_end_early=True)
    source = RankPartSource(inner, Together(1).rank(0), SampleCount())
    assert source.state_dict() == {**inner.state_dict(), "parts": 1}
    source.load_state_dict({**inner.state_dict(), "parts": 1})
