"""NumPy's stream where a program has set a bit generator of its own."""

from __future__ import annotations

import numpy as np
import pytest

from fitkit.runtime.host_streams import STREAMS


@pytest.fixture
def own_bits():
    before = np.random.get_bit_generator()
    state = np.random.get_state()
    np.random.set_bit_generator(np.random.PCG64(1))
    yield before
    np.random.set_bit_generator(before)
    np.random.set_state(state)


def test_a_bit_generator_of_the_program_is_asked_by_numpy_s_functions(own_bits):
    stream = STREAMS[1]
    np.random.randn()
    state = stream.get()
    expected = np.random.rand()
    assert not stream.is_at(state)
    stream.set(state)
    assert stream.is_at(state)
    assert np.random.rand() == expected


def test_a_state_from_before_such_a_bit_generator_is_not_written_into_it(own_bits):
    stream = STREAMS[1]
    own = np.random.get_bit_generator()
    np.random.set_bit_generator(own_bits)
    state = stream.get()
    np.random.set_bit_generator(own)
    with pytest.raises(ValueError, match="must be for a PCG64"):
        stream.set(state)
    assert stream.get()["bit_generator"] == "PCG64"
