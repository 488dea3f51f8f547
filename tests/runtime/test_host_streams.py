"""The states of the global generators: quick where their memory is known, and the same anywhere."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit.runtime.host_streams import STREAMS, NumpyStream, PythonStream, TorchStream


def draw_python():
    return [random.random(), random.gauss(0, 1), random.getrandbits(70), random.randrange(1000)]


def draw_numpy():
    return [np.random.rand(), np.random.randn(), int(np.random.randint(1000))]


def draw_torch():
    return [float(torch.rand(())), float(torch.randn(())), int(torch.randint(1000, ()))]


DRAW = {"python": draw_python, "numpy": draw_numpy, "torch": draw_torch}


def slow(stream):
    """The same without its memory, as in another interpreter."""
    stream._memory = None
    return stream


ALL = {
    "python": PythonStream,
    "python, slow": lambda: slow(PythonStream()),
    "numpy": NumpyStream,
    "numpy, slow": lambda: slow(NumpyStream()),
    "torch": TorchStream,
}
by_stream = pytest.mark.parametrize("kind", ALL)


@by_stream
@given(num_words=st.integers(0, 1500), num_normals=st.integers(0, 3))
@settings(max_examples=20)
def test_a_state_comes_back_wherever_it_was_taken(kind, num_words, num_normals):
    stream = ALL[kind]()
    for _ in range(num_normals):
        random.gauss(0, 1), np.random.randn(), torch.randn(())
    random.randbytes(4 * num_words), np.random.bytes(4 * num_words), torch.rand(num_words)
    state = stream.get()
    assert stream.is_at(state)
    expected = [DRAW[stream.name]() for _ in range(3)]
    assert not stream.is_at(state)
    stream.set(state)
    assert stream.is_at(state)
    assert [DRAW[stream.name]() for _ in range(3)] == expected


@by_stream
@pytest.mark.parametrize("draws", [1, 2, 311, 312, 623, 624, 625, 1248])
def test_any_number_of_draws_is_noticed(kind, draws):
    stream = ALL[kind]()
    state = stream.get()
    for _ in range(draws):
        random.getrandbits(32), np.random.bytes(4), torch.randint(2, ())
    assert not stream.is_at(state)


@by_stream
def test_what_is_drawn_elsewhere_is_not_noticed(kind):
    stream = ALL[kind]()
    state = stream.get()
    for name, draw in DRAW.items():
        if name != stream.name:
            draw()
    random.Random(1).random(), np.random.default_rng(1).random(), np.random.RandomState(1).rand()
    torch.rand((), generator=torch.Generator())
    assert stream.is_at(state)


@by_stream
@pytest.mark.parametrize("normals", [0, 1])
def test_a_checkpoint_holds_the_same_whatever_is_known(kind, normals):
    name = kind.partition(",")[0]
    stream, other = ALL[kind](), ALL[name]()
    for _ in range(normals):
        random.gauss(0, 1), np.random.randn()
    saved = stream.as_saved(stream.get())
    assert str(saved) == str(other.as_saved(other.get()))
    state = stream.get()
    expected = DRAW[name]()
    stream.set(state)
    restored = stream.of_saved(saved)
    assert stream.is_at(state), "reading a state changes none"
    for one in (stream, other):
        DRAW[name]()
        one.set(one.of_saved(saved))
        assert DRAW[name]() == expected
    stream.set(restored)
    assert DRAW[name]() == expected


def words_of(stream, count, seed=1):
    raw = np.random.PCG64(seed).random_raw(count * stream.num_raw)
    return raw.reshape(count, stream.num_raw)


@by_stream
def test_states_of_samples_are_the_same_whatever_is_known(kind):
    name = kind.partition(",")[0]
    stream, quick = ALL[kind](), ALL[name]()
    drawn = []
    for one in (stream, quick):
        start, _ = one.starter(words_of(one, 5))
        for index in range(5):
            start(index)
            drawn.append([DRAW[name]() for _ in range(300)])
    assert drawn[:5] == drawn[5:]
    assert len({tuple(map(tuple, one)) for one in drawn}) == 5


@by_stream
def test_states_of_samples_forget_a_normal_number_that_is_left_over(kind):
    stream, found = ALL[kind](), []
    for left_over in (False, True):
        start, _ = stream.starter(words_of(stream, 1))
        if left_over:
            random.gauss(0, 1), np.random.randn(), torch.randn(())
        start(0)
        found.append((random.gauss(0, 1), np.random.randn(), float(torch.randn(()))))
    index = ("python", "numpy", "torch").index(stream.name)
    assert found[0][index] == found[1][index]


def test_first_numbers_of_many_samples_are_uniform_and_independent():
    """By their moments: within five standard deviations."""
    count = 4000
    draw = {
        "python": random.random,
        "numpy": np.random.rand,
        "torch": lambda: float(torch.rand((), dtype=torch.float64)),
    }
    found = {}
    for seed, stream in enumerate(STREAMS):
        values = []
        start, _ = stream.starter(words_of(stream, count, seed))
        for index in range(count):
            start(index)
            values.append([draw[stream.name]() for _ in range(3)])
        found[stream.name] = np.array(values)
    columns = np.concatenate(list(found.values()), axis=1)  # three numbers of three streams
    error = 5 / count**0.5
    assert np.abs(columns.mean(axis=0) - 1 / 2).max() < error * 12**-0.5
    correlations = np.corrcoef(columns, rowvar=False) - np.eye(9)
    assert np.abs(correlations).max() < error
    following = [np.corrcoef(one[:-1], one[1:])[0, 1] for one in columns.T]
    assert np.abs(following).max() < error


@by_stream
@pytest.mark.parametrize("number", [0, 1, 4])
def test_the_first_words_suffice_for_few_numbers(kind, number):
    stream = ALL[kind]()
    name = kind.partition(",")[0]
    whole, first = words_of(stream, 2), words_of(stream, 2)[:, : stream.num_first].copy()
    drawn = []
    for start, suffices in (stream.starter(whole), stream.starter(first)):
        start(1)
        drawn.append([DRAW[name]() for _ in range(number)])
        assert suffices()
    assert drawn[0] == drawn[1]


def test_more_draws_than_the_first_words_allow_are_noticed():
    for stream in STREAMS[:2]:
        first = words_of(stream, 2)[:, : stream.num_first].copy()
        one = {"python": lambda: random.getrandbits(32), "numpy": lambda: np.random.bytes(4)}
        num_first = 2 * stream.num_first - (stream.name == "python")  # its place is one of them
        for number in (0, 1, 62, 63, 64, 65, 623, 624, 625, 687, 688, 689, 1247, 1248, 1249, 5000):
            start, suffices = stream.starter(first)
            start(0)
            for _ in range(number):
                one[stream.name]()
            start(1)
            assert suffices() == (number <= num_first), number
