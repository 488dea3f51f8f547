"""Parts of ranks that run out at different times; real ranks are in ``tests/distributed``."""

from __future__ import annotations

import pytest
import torch

from fitkit import DataError
from fitkit.core.types import Share
from fitkit.data.iterables import IterableSource
from fitkit.data.rank_part import RankPartSource
from fitkit.data.sample_count import SampleCount


class Stream:
    """Batches of a number that nobody knows."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def batches(first, *sizes):
    return [torch.full((size,), float(first + i)) for i, size in enumerate(sizes)]


@pytest.fixture
def passed(threads_as_ranks):
    """For each rank the value and the share of each batch of a pass, or the error."""

    def run(parts, start=0, *, wrap=list):
        def of_rank(rank):
            inner = IterableSource(wrap(parts[rank.rank]), 0, may_end_early=True)
            source = RankPartSource(inner, rank, SampleCount())
            known = source.num_batches
            return known, [(int(batch[0]), source.share) for batch in source.iterate(0, start)]

        return threads_as_ranks(len(parts), of_rank, DataError)

    return run


UNEVEN = [batches(0, 2, 2, 1), batches(10, 3)]


@pytest.mark.parametrize(("wrap", "known"), [(list, 3), (Stream, None)])
def test_a_rank_that_runs_out_repeats_a_batch_that_counts_nothing(wrap, known, passed):
    (first, second), _ = passed(UNEVEN, wrap=wrap)
    assert first == (known, [(0, Share(2, None)), (1, Share(2, None)), (2, Share(1, None))])
    assert second == (known, [(10, Share(3, None)), (10, Share(0, None)), (10, Share(0, None))])


def test_known_lengths_are_exchanged_once_per_pass(passed):
    assert passed(UNEVEN)[1] == 2  # when it is made, and when the pass begins
    assert passed(UNEVEN, wrap=Stream)[1] == 2 + 3 + 1  # and before each batch, and the end


@pytest.mark.filterwarnings("ignore:.*cannot seek")
@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("wrap", [list, Stream])
def test_a_pass_goes_on_where_one_rank_has_run_out(start, wrap, passed):
    (first, second), _ = passed(UNEVEN, start, wrap=wrap)
    assert [value for value, _ in first[1]] == [0, 1, 2][start:]
    assert second[1] == [(10, Share(0, None))] * (3 - start)


@pytest.mark.parametrize("wrap", [list, Stream])
def test_a_rank_without_any_batch_is_an_error_on_all(wrap, passed):
    found, _ = passed([batches(0, 2), [], batches(9, 1)], wrap=wrap)
    assert [type(one) for one in found] == [DataError] * 3
    assert {str(one).partition(":")[0] for one in found} == {
        "the part of rank 1 has no batch, while others have"
    }


def test_the_state_says_how_many_parts_there_are(threads_as_ranks):
    def states(rank):
        inner = IterableSource(UNEVEN[0], 0, may_end_early=True)
        source = RankPartSource(inner, rank, SampleCount())
        source.load_state_dict({**inner.state_dict(), "parts": 1})
        return source.possible_parts, source.state_dict(), inner.state_dict()

    ((possible, state, inner),), _ = threads_as_ranks(1, states)
    assert (possible, state) == ((1,), {**inner, "parts": 1})
