"""The memory of the global generators is used only where it is what it was expected to be."""

from __future__ import annotations

import random
import sys

import numpy as np

from fitkit.runtime.generator_memory import memory_of_numpy, memory_of_python
from fitkit.runtime.host_streams import STREAMS, NumpyStream, PythonStream


def test_the_memory_of_both_generators_is_known_here():
    assert sys.implementation.name == "cpython"
    python, numpy, _ = STREAMS
    assert python._memory is not None
    assert numpy._memory is not None


def test_what_is_not_where_it_was_expected_is_not_used(monkeypatch):
    assert memory_of_python(random.Random(1)) is None
    assert memory_of_numpy(np.random.MT19937(1)) is None
    assert memory_of_numpy(np.random.PCG64(1)) is None
    state = np.random.get_state(legacy=False)
    monkeypatch.setattr(sys.implementation, "name", "another")
    assert PythonStream()._memory is None
    assert NumpyStream()._memory is None
    assert str(np.random.get_state(legacy=False)) == str(state)
