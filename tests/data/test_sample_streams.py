"""What samples draw is a function of their place, whichever of them draw and in which batches."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit.data import sample_streams
from fitkit.data.sample_streams import SampleStreams
from fitkit.runtime.rng import get_host_state

DRAW = {
    "p": lambda: random.random(),
    "g": lambda: random.gauss(0, 1),
    "n": lambda: np.random.rand(),
    "m": lambda: np.random.randn(),
    "t": lambda: float(torch.rand(())),
    "r": lambda: float(torch.randn(())),
}


class Samples:
    """Samples that draw what their text says, one letter after the other; notes what is loaded."""

    def __init__(self, texts, collated=""):
        self.texts, self.collated, self.loaded = texts, collated, []

    def load(self, first, count):
        """What ``SampleStreams.run`` calls."""

        def load(begin):
            found = []
            for offset in range(count):
                if begin is not None:
                    begin(offset)
                self.loaded.append(first + offset)
                found.append([DRAW[letter]() for letter in self.texts[first + offset]])
            return found, [DRAW[letter]() for letter in self.collated]

        return load

    def batches(self, sizes, first=0, *, seed=1, epoch=2, streams=None):
        """All of them in batches of these sizes, and what collation drew."""
        streams = SampleStreams() if streams is None else streams
        found = []
        for size in sizes:
            found.append(streams.run(seed, epoch, first, size, self.load(first, size)))
            first += size
        return found

    def one_by_one(self, **options):
        """Each as the first that is loaded."""
        return [self.batches([1], index, **options)[0][0][0] for index in range(len(self.texts))]


def samples_of(batches):
    return [sample for samples, _ in batches for sample in samples]


def same(state, other):
    return state[:2] == other[:2] and torch.equal(state[2], other[2])


texts = st.lists(st.text("pgnmtr", max_size=3), min_size=1, max_size=8)


@given(texts, st.data())
def test_samples_draw_the_same_in_whatever_batches(texts, data):
    samples = Samples(texts)
    expected = samples.one_by_one()
    left, sizes = len(texts), []
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    before = get_host_state()
    assert samples_of(samples.batches(sizes)) == expected
    assert same(get_host_state(), before)


@pytest.mark.parametrize("first", [0, 3, 10**12])
def test_samples_draw_the_same_from_any_start(first):
    samples = Samples(["pnt"] * 4)
    samples.texts = dict.fromkeys(range(first, first + 6), "pntg")
    whole = samples_of(samples.batches([2, 2, 2], first))
    assert samples_of(samples.batches([3], first + 3)) == whole[3:]
    again = SampleStreams()
    assert samples_of(samples.batches([3], first + 3, streams=again)) == whole[3:]
    assert samples_of(samples.batches([2], first, streams=again)) == whole[:2], "and back"


def test_seed_epoch_place_and_stream_all_matter():
    samples = Samples(["pnt"] * 3)
    drawn = [
        number
        for seed in (1, 2)
        for epoch in (2, 3)
        for one in samples_of(samples.batches([3], seed=seed, epoch=epoch))
        for number in one
    ]
    assert len(set(drawn)) == 2 * 2 * 3 * 3


@pytest.mark.parametrize("collated", ["p", "nt", "pgnmtr"])
@pytest.mark.parametrize("text", ["", "t", "pn"])
def test_collation_draws_the_same_after_any_batch(text, collated):
    samples = Samples([text] * 6, collated)
    together, alone = samples.batches([3, 3]), samples.batches([3], first=3)
    assert together[1] == alone[0]
    assert together[0][1] != together[1][1]


@pytest.mark.parametrize("letter", DRAW)
@pytest.mark.parametrize("usual", ["", "p", "n", "t"])
def test_a_first_draw_in_a_later_batch_is_noticed_and_loaded_again(usual, letter):
    texts = [usual] * 4 + [usual + letter] + [usual] * 3
    samples = Samples(texts)
    expected = samples.one_by_one()
    samples.loaded.clear()
    assert samples_of(samples.batches([2] * 4)) == expected
    kinds = {"p": "pg", "g": "pg", "n": "nm", "m": "nm", "t": "tr", "r": "tr"}
    is_known = usual != "" and letter in kinds[usual]
    again = [] if is_known else [4, 5]
    assert samples.loaded == [0, 1, 2, 3, 4, 5, *again, 6, 7]


def noting(stream, sets):
    """Its ``starter``, which notes its name for each sample for which it is set."""
    own = stream.starter

    def starter(raw):
        start, suffices = own(raw)
        return (lambda index: (sets.append(stream.name), start(index))), suffices

    return starter


def test_streams_that_nothing_draws_from_are_not_set(monkeypatch):
    streams, samples = SampleStreams(), Samples([""] * 4 + ["t"] * 4)
    samples.batches([2], streams=streams)
    sets = []
    for stream in sample_streams.STREAMS:
        monkeypatch.setattr(stream, "starter", noting(stream, sets))
    samples.batches([2], first=2, streams=streams)
    assert sets == []
    samples.batches([2], first=4, streams=streams)
    sets.clear()
    samples.batches([2], first=6, streams=streams)
    assert sets == ["torch", "torch"]


def test_a_worker_keeps_no_streams_of_its_own(monkeypatch):
    samples = Samples(["pnt"] * 4)
    expected = samples_of(samples.batches([2, 2]))
    monkeypatch.setattr(sample_streams, "get_worker_info", SimpleNamespace)
    before = get_host_state()
    assert samples_of(samples.batches([2, 2])) == expected
    assert not same(get_host_state(), before)


@pytest.mark.parametrize("num_before", [0, 1])
def test_an_error_restores_the_streams(num_before):
    samples, streams = Samples(["pnt"] * 2), SampleStreams()
    samples.batches([1] * num_before, streams=streams)
    before = get_host_state()

    def load(begin):
        begin(0)
        random.random(), np.random.rand(), torch.rand(())
        raise KeyError("no file")

    with pytest.raises(KeyError):
        streams.run(1, 2, 0, 1, load)
    assert same(get_host_state(), before)


# ---- samples that draw more than the first words of a state -----------------------------------


def words_of_bits(kind, number):
    """So many words of 32 bits of a generator."""
    if kind == "p":
        return [random.getrandbits(32) for _ in range(number)]
    return np.random.randint(0, 2**32, number, dtype=np.uint32).tolist()


@pytest.fixture
def draws_words(monkeypatch):
    """Adds letters for so many words of one kind."""
    numbers = {}

    def add(kind, number):
        letter = chr(0x400 + len(numbers))
        numbers[letter] = number
        monkeypatch.setitem(DRAW, letter, lambda: words_of_bits(kind, number))
        return letter

    return add


PLACES = [0, 1, 31, 62, 63, 64, 65, 66, 127, 623, 624, 625, 630, 687, 688, 1247, 1248, 1250, 5000]


@pytest.mark.parametrize("kind", ["p", "n"])
@pytest.mark.parametrize("number", PLACES)
def test_however_many_words_are_drawn_they_are_those_of_a_whole_state(draws_words, kind, number):
    usual, many = draws_words(kind, 1), draws_words(kind, number)
    samples = Samples([usual] * 4 + [many, usual, many + usual, usual, usual, many])
    expected = samples.one_by_one()
    before = get_host_state()
    assert samples_of(samples.batches([2] * 5)) == expected
    assert same(get_host_state(), before)


@pytest.mark.parametrize("kind", ["p", "n"])
def test_a_batch_is_loaded_again_once_when_samples_begin_to_draw_more(draws_words, kind):
    few, many = draws_words(kind, 2), draws_words(kind, 100)
    samples = Samples([few] * 4 + [many] * 4)
    samples.batches([2] * 4)
    assert samples.loaded == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]


@pytest.mark.parametrize("kind", ["p", "n"])
def test_no_batch_is_loaded_again_where_the_first_one_draws_more(draws_words, kind):
    few, many = draws_words(kind, 2), draws_words(kind, 100)
    samples = Samples([few, many, few, few, many, many])
    samples.batches([2] * 3)
    assert samples.loaded == list(range(6))


@pytest.mark.parametrize("kind", ["p", "n"])
def test_collation_may_draw_more_than_samples(draws_words, kind):
    few, many = draws_words(kind, 2), draws_words(kind, 700)
    whole = Samples([few] * 6, many)
    together, alone = whole.batches([2, 2, 2]), whole.batches([2], first=4)
    assert together[2] == alone[0]


def test_samples_that_seed_the_generators_themselves_have_their_numbers():
    def seeded():
        random.seed(7), np.random.seed(7)
        return random.random(), np.random.rand()

    expected = seeded()
    samples, streams = Samples(["pn"] * 8), SampleStreams()
    samples.batches([2], streams=streams)
    found = streams.run(1, 2, 2, 2, lambda begin: [(begin(i), seeded())[1] for i in range(2)])
    assert found == [expected] * 2
    again = samples_of(samples.batches([2], first=4, streams=streams))
    assert again == samples.one_by_one()[4:6]


def test_a_bit_generator_that_a_sample_sets_is_noticed():
    before = np.random.get_bit_generator()
    samples, streams = Samples(["n"] * 8), SampleStreams()
    samples.batches([2], streams=streams)

    def load(begin):
        begin(0)
        first = np.random.rand()
        np.random.set_bit_generator(np.random.PCG64(3))
        np.random.set_bit_generator(before)
        begin(1)
        return first, np.random.rand()

    try:
        found = streams.run(1, 2, 2, 2, load)
    finally:
        np.random.set_bit_generator(before)
    assert [[one] for one in found] == samples.one_by_one()[2:4]
