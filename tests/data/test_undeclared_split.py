"""Iterables that nobody declares to be split by rank; real ranks are in ``tests/distributed``."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from fitkit import ConfigurationError, DataError
from fitkit.data.make_source import make_source
from fitkit.data.rank_part import make_part_source
from fitkit.data.rank_split import RankSplit
from fitkit.data.sample_count import SampleCount
from fitkit.data.spec import DataSpec
from fitkit.data.undeclared_split import UndeclaredSplitSource


class Stream(IterableDataset):
    """Numbers, and how often it was iterated."""

    def __init__(self, numbers):
        self.numbers, self.passes = list(numbers), 0

    def __iter__(self):
        self.passes += 1
        return (torch.tensor([float(n)]) for n in self.numbers)


def source_of(rank, data):
    """The source on one rank; batches of 2 of a dataset."""
    size = 2 if isinstance(data, IterableDataset) else None
    spec, options = DataSpec(data, size), {"seed": 0, "dtype": torch.float32, "training": True}
    options["count"] = SampleCount()
    shared = make_source(spec, ranks=RankSplit(rank.rank, rank.size), **options)

    def make_part(one):
        return make_part_source(replace(spec, data=one), rank, **options)

    return UndeclaredSplitSource("the data", data, shared, make_part, rank)


def counted_batches(source, epoch=0, start=0, stop=None):
    """The numbers of the samples that count, and how many batches there were."""
    found, num_batches = [], 0
    for batch in islice(source.iterate(epoch, start), stop):
        num_batches += 1
        if source.share is None or source.share.local:
            found += [int(n) for n in batch.flatten()]
    return found, num_batches


def batches(numbers):
    return [torch.tensor([[float(n)]]) for n in numbers]


def counted(*args, **kwargs):
    """The numbers of the samples that count."""
    return counted_batches(*args, **kwargs)[0]


KINDS = {
    "dataset": Stream,
    "loader": lambda numbers: DataLoader(Stream(numbers), batch_size=2),
    "list": batches,
    "generator": lambda numbers: (one for one in batches(numbers)),
}
# what two or three ranks have
WHOLE = {size: [range(7)] * size for size in (2, 3)}
PARTS = {size: [range(rank, 7 + rank, size) for rank in range(size)] for size in (2, 3)}
CASES = [(kind, WHOLE) for kind in KINDS]
CASES += [(kind, PARTS) for kind in KINDS if kind != "generator"]
REREAD = pytest.mark.filterwarnings("ignore:.*cannot seek")
TAKEN = pytest.mark.filterwarnings("ignore:the data differs between ranks")


@TAKEN
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("kind", "parts"), CASES)
def test_each_sample_counts_once_in_each_pass(kind, parts, size, threads_as_ranks):
    passes = 1 if kind == "generator" else 3

    def run(rank):
        source = source_of(rank, KINDS[kind](parts[size][rank.rank]))
        return [counted(source, epoch) for epoch in range(passes)]

    of_ranks, _ = threads_as_ranks(size, run)
    expected = sorted(range(7)) if parts is WHOLE else sorted(n for one in parts[size] for n in one)
    for epoch in range(passes):
        assert sorted(n for found in of_ranks for n in found[epoch]) == expected
        if parts is PARTS:
            assert [found[epoch] for found in of_ranks] == list(map(list, parts[size]))


@TAKEN
@REREAD
@pytest.mark.parametrize(("kind", "parts"), CASES)
@pytest.mark.parametrize("stop", range(5))
def test_a_pass_goes_on_where_it_was_interrupted(kind, parts, stop, threads_as_ranks):
    def run(rank):
        def new():
            return source_of(rank, KINDS[kind](parts[2][rank.rank]))

        source, resumed = new(), new()
        before, position = counted_batches(source, stop=stop)
        resumed.load_state_dict(source.state_dict())
        after = counted(resumed, start=position)
        following = [] if kind == "generator" else counted(resumed, epoch=1)
        whole = new()
        expected = counted(whole), [] if kind == "generator" else counted(whole, epoch=1)
        return (before + after, following), expected

    for found, expected in threads_as_ranks(2, run)[0]:
        assert found == expected


def test_data_that_is_the_same_is_read_once_and_compared_once(threads_as_ranks):
    def run(rank):
        stream = Stream(range(8))
        source = source_of(rank, stream)
        return [counted(source, epoch) for epoch in range(3)], stream.passes

    (first, second), exchanges = threads_as_ranks(2, run)
    assert (first[1], second[1], exchanges) == (3, 3, 1)


def test_rank_0_says_once_that_the_data_differs(threads_as_ranks):
    def run(rank):
        source = source_of(rank, Stream(PARTS[2][rank.rank]))
        return [counted(source, epoch) for epoch in range(2)]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads_as_ranks(2, run)
    (warning,) = caught
    assert "the data differs between ranks, so each rank takes all of its own" in str(
        warning.message
    )


@TAKEN
def test_later_batches_may_differ(threads_as_ranks):
    """The ranks look at the first round alone, so a stream of noise is the user's to declare."""

    def run(rank):
        return counted(source_of(rank, Stream([0, 1, 2, 3, 4 + rank.rank])))

    (first, second), _ = threads_as_ranks(2, run)
    assert (first, second) == ([0, 1, 4], [2, 3])


@REREAD
def test_data_that_differs_only_after_a_resume_is_refused(threads_as_ranks):
    def run(rank):
        source = source_of(rank, Stream(range(8)))
        counted(source, stop=1)
        resumed = source_of(rank, Stream(range(rank.rank, 20, 2)))
        resumed.load_state_dict(source.state_dict())
        return counted(resumed, start=1)

    found, _ = threads_as_ranks(2, run, ConfigurationError)
    for error in found:
        assert "differs between ranks and did not when the epoch was interrupted: pass" in str(
            error
        )


class Once:
    """Batches that can be read once, and whose position can be saved."""

    def __init__(self, numbers):
        self.batches, self.saved = iter(batches(numbers)), {}

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.batches)

    def state_dict(self):
        return self.saved

    def load_state_dict(self, state_dict):
        self.saved = state_dict


@pytest.mark.parametrize("make", [KINDS["generator"], Once])
def test_parts_that_can_be_read_only_once_must_be_declared(make, threads_as_ranks):
    def run(rank):
        return counted(source_of(rank, make(PARTS[2][rank.rank])))

    for error in threads_as_ranks(2, run, ConfigurationError)[0]:
        assert "differs between ranks and can be read only once: pass split='rank'" in str(error)


@TAKEN
def test_a_rank_without_a_batch_is_an_error_on_all(threads_as_ranks):
    def run(rank):
        return counted(source_of(rank, Stream([] if rank.rank else range(4))))

    found, _ = threads_as_ranks(2, run, DataError)
    assert {str(error).partition(":")[0] for error in found} == {
        "the part of rank 1 has no batch, while others have"
    }


def test_no_batch_on_any_rank(threads_as_ranks):
    found, _ = threads_as_ranks(2, lambda rank: counted(source_of(rank, Stream([]))))
    assert found == [[], []]


def test_what_is_not_known_before_the_first_batch(threads_as_ranks):
    def run(rank):
        source = source_of(rank, batches(range(8)))
        before = source.possible_parts, source.num_batches, source.share
        counted(source)
        return before, source.num_batches

    for (possible, number, share), after in threads_as_ranks(2, run)[0]:
        assert (possible, number, share, after) == ((1, 2), 4, None, 4)
