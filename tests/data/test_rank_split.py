from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from fitkit.core.errors import DataError
from fitkit.core.types import Share
from fitkit.data.in_memory import InMemorySource
from fitkit.data.iterables import IterableSource
from fitkit.data.map_style import MapStyleSource
from fitkit.data.rank_split import SINGLE_RANK, RankSplit, RoundRobinSource, Stride

NUMBERS = st.integers(1, 9)


@given(total=st.integers(0, 40), size=NUMBERS)
def test_the_parts_of_a_batch_are_all_of_it_in_order(total, size):
    parts = [RankSplit(rank, size).part(total) for rank in range(size)]
    counted = [list(range(total))[part] for part, share in parts if share.local]
    assert [one for part in counted for one in part] == list(range(total))
    assert sum(share.local for _, share in parts) == total
    assert {share.total for _, share in parts} == {total}
    owns = [share.local for _, share in parts]
    assert max(owns) - min(owns) <= 1
    assert owns == sorted(owns, reverse=True)


@given(total=st.integers(1, 40), size=NUMBERS)
def test_whoever_has_nothing_is_given_something_to_stay_in_step_with(total, size):
    for rank in range(size):
        part, share = RankSplit(rank, size).part(total)
        given = list(range(total))[part]
        assert given
        assert len(given) == share.local or share.local == 0


def test_alone_everything_is_ours():
    assert SINGLE_RANK.part(7) == (slice(0, 7), Share(7, 7))


# ---- Stride -------------------------------------------------------------------------------------


def walk(stride, items, first_batch, batches):
    """Some batches of a pass; the items that were covered."""
    begin = stride.begin(first_batch)
    ends = min(begin + batches * stride.step, items)
    covered = list(range(begin, ends))
    return covered, -(-len(covered) // stride.step)


LEGS = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 4), st.booleans()), max_size=6)


def after(items, legs):
    """What the legs covered, the batches that this took, and the last one's position.

    A leg is its step, the batches until it is cut, and whether it is cut before it begins.
    """
    covered, batch, state = [], 0, None
    for step, batches, is_cut_at_once in legs:
        stride = Stride(step)
        if state is not None:
            stride.load_from({"stride": state})
        if not is_cut_at_once:
            more, done = walk(stride, items, batch, batches)
            covered, batch = covered + more, batch + done
        state = stride.state_dict()
    return covered, batch, state


@given(items=st.integers(1, 60), legs=LEGS, last=st.integers(1, 7))
def test_any_sequence_of_resumes_covers_each_item_once(items, legs, last):
    covered, batch, state = after(items, legs)
    stride = Stride(last)
    if state is not None:
        stride.load_from({"stride": state})
    assert covered + walk(stride, items, batch, items)[0] == list(range(items))


@given(items=st.integers(1, 60), legs=LEGS.map(lambda legs: [(*leg[:2], False) for leg in legs]))
def test_the_batches_of_a_pass_are_known_when_it_goes_on(items, legs):
    _, batch, state = after(items, legs)
    stride = Stride(2)
    if state is not None:
        stride.load_from({"stride": state})
    assert stride.batches_of(items) >= 0
    _, done = walk(stride, items, batch, items)
    assert stride.batches_of(items) == batch + done


@given(items=st.integers(0, 30), step=NUMBERS)
def test_batches_of_a_pass(items, step):
    stride = Stride(step)
    assert stride.batches_of(items) == -(-items // step)
    assert stride.batches_of(items, whole_only=True) == items // step


def test_the_next_pass_begins_at_the_first_item():
    stride = Stride(4)
    stride.load_from({"stride": {"batch": 3, "item": 9, "step": 2}})
    assert stride.begin(5) == 13
    assert stride.batches_of(20) == 7
    assert stride.begin(0) == 0
    assert stride.batches_of(20) == 5
    assert stride.state_dict() == {"batch": 0, "item": 0, "step": 4}


# ---- sources ------------------------------------------------------------------------------------


def rounds_of(batches, size, start=0, epoch=0, load=None):
    """What each process counts, round by round, and the batches it is given besides."""
    sources = [
        RoundRobinSource(IterableSource(batches, 0), RankSplit(rank, size)) for rank in range(size)
    ]
    if load is not None:
        for source in sources:
            source.load_state_dict(load)
    counted = []
    for turns in zip(*(_shared(source, epoch, start) for source in sources), strict=True):
        counted += [batch for batch, share in turns if share is None or share.local]
        assert len({share.total for _, share in turns if share is not None}) <= 1
    return counted, sources


def _shared(source, epoch, start):
    return [(batch, source.share) for batch in source.iterate(epoch, start)]


def batches_of(*sizes):
    return [torch.full((size, 2), float(number)) for number, size in enumerate(sizes)]


def numbers(batches):
    return [int(batch[0, 0]) for batch in batches]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_rounds_count_each_batch_once_and_in_order(size):
    counted, sources = rounds_of(batches_of(3, 3, 3, 3, 1), size)
    assert numbers(counted) == [0, 1, 2, 3, 4]
    assert {source.num_batches for source in sources} == {-(-5 // size)}


def test_shares_of_a_round():
    source = RoundRobinSource(IterableSource(batches_of(3, 2, 4), 0), RankSplit(1, 2))
    given = [(int(batch[0, 0]), source.share) for batch in source.iterate(0)]
    assert given == [(1, Share(2, 5)), (2, Share(0, 4))]


def test_a_length_that_nobody_knows():
    source = RoundRobinSource(IterableSource((one for one in batches_of(1, 1)), 0), RankSplit(0, 2))
    assert source.num_batches is None
    assert numbers(source.iterate(0)) == [0]


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:.*cannot seek:UserWarning")
def test_rounds_go_on_with_another_number_of_processes(before, after):
    batches = batches_of(*[2] * 7)
    source = RoundRobinSource(IterableSource(batches, 0), RankSplit(0, before))
    list(islice(source.iterate(0), 2))
    counted, sources = rounds_of(batches, after, start=2, load=source.state_dict())
    assert numbers(counted) == list(range(2 * before, 7))
    assert numbers(rounds_of(batches, after, epoch=1)[0]) == list(range(7))
    for one in sources:
        assert one.num_batches == 2 + -(-(7 - 2 * before) // after)


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:.*cannot seek:UserWarning")
def test_a_pass_that_was_interrupted_after_its_last_round_goes_on_with_the_next(before, after):
    batches = batches_of(*[2] * 7)
    source = RoundRobinSource(IterableSource(batches, 0), RankSplit(0, before))
    rounds = len(list(islice(source.iterate(0), 7)))
    counted, _ = rounds_of(batches, after, start=rounds, load=source.state_dict())
    assert counted == []
    with pytest.raises(DataError, match="before the position of the checkpoint"):
        rounds_of(batches[:4], after, start=rounds, load=source.state_dict())


SAMPLES = torch.arange(23.0)


def in_memory(ranks, batch_size=6):
    return InMemorySource((SAMPLES,), batch_size, shuffle=True, seed=4, ranks=ranks)


def map_style(ranks, batch_size=6):
    loader = DataLoader(TensorDataset(SAMPLES), batch_size=2)
    return MapStyleSource(loader, 4, ranks, global_batch_size=batch_size)


def loader(ranks, batch_size=None):
    return MapStyleSource(DataLoader(TensorDataset(SAMPLES), batch_size=2, shuffle=True), 4, ranks)


def whole_batches(ranks, batch_size=None):
    batches = list(BatchSampler(SequentialSampler(SAMPLES), 2, drop_last=False))
    return MapStyleSource(DataLoader(TensorDataset(SAMPLES), batch_sampler=batches), 4, ranks)


def counted_by(make, size, start=0, state=None, stop=None, **options):
    """The samples that each of ``size`` processes counts, together in order; the last source."""
    sources = [make(RankSplit(rank, size), **options) for rank in range(size)]
    if state is not None:
        for source in sources:
            source.load_state_dict(state)
    given = []
    for source in sources:
        batches = islice(source.iterate(1, start), None if stop is None else stop - start)
        given.append([(batch[0].tolist(), source.share) for batch in batches])
    found = []
    for turns in zip(*given, strict=True):
        for samples, share in turns:
            assert share is None or share.local in (0, len(samples))
            found += samples if share is None or share.local else []
    return found, sources[0]


@pytest.mark.parametrize("make", [in_memory, map_style, loader, whole_batches])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_several_processes_count_the_samples_of_one_in_its_order(make, size):
    whole, _ = counted_by(make, 1)
    assert sorted(whole) == SAMPLES.tolist()
    found, source = counted_by(make, size)
    assert found == whole
    assert source.num_batches == len(list(make(RankSplit(0, size)).iterate(1)))


@pytest.mark.parametrize("make", [in_memory, map_style, loader, whole_batches])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3), (3, 2)])
def test_a_pass_goes_on_with_another_number_of_processes(make, before, after):
    whole, _ = counted_by(make, 1)
    first, source = counted_by(make, before, stop=2)
    rest, _ = counted_by(make, after, start=2, state=source.state_dict())
    assert first + rest == whole


@pytest.mark.parametrize("make", [in_memory, map_style])
def test_a_pass_goes_on_with_another_batch_size(make):
    whole, _ = counted_by(make, 1)
    first, source = counted_by(make, 2, stop=2, batch_size=3)
    second, source = counted_by(make, 3, start=2, stop=4, state=source.state_dict(), batch_size=5)
    rest, _ = counted_by(make, 1, start=4, state=source.state_dict(), batch_size=4)
    assert first + second + rest == whole


def test_a_short_last_batch_can_be_dropped():
    source = InMemorySource((SAMPLES,), 6, drop_last=True, ranks=RankSplit(1, 2))
    assert [batch[0].tolist() for batch in source.iterate(0)] == [
        [3, 4, 5],
        [9, 10, 11],
        [15, 16, 17],
    ]
    assert source.num_batches == 3
