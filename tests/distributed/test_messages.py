"""Messages: values of any size arrive as they were sent."""

from __future__ import annotations

import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fitkit.distributed import messages
from fitkit.distributed.messages import exchange


class Collective:
    """Ranks in threads, which give each other their bytes."""

    def __init__(self, size):
        self.barrier = threading.Barrier(size)
        self.parts, self.calls = [None] * size, [0] * size

    def of(self, rank):
        def gather(part):
            self.calls[rank] += 1
            self.parts[rank] = part.clone()
            self.barrier.wait(10)
            found = list(self.parts)
            self.barrier.wait(10)
            assert len({one.shape for one in found}) == 1, "torch needs equal lengths"
            return found

        return gather


def exchanged(values):
    collective, found = Collective(len(values)), [None] * len(values)

    def run(rank):
        found[rank] = exchange(values[rank], collective.of(rank))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(values))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(collective.calls)) == 1
    return found, collective.calls[0]


VALUES = st.none() | st.integers() | st.binary(max_size=5000) | st.lists(st.text(), max_size=5)


@settings(max_examples=40)
@given(st.lists(VALUES, min_size=1, max_size=3))
def test_every_rank_gets_the_values_of_all(values):
    found, _ = exchanged(values)
    assert found == [values] * len(values)


@pytest.mark.parametrize(("beyond", "calls"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("others", [b"", None, b"x" * 9000])
def test_a_second_collective_only_for_what_does_not_fit(beyond, calls, others):
    around = len(pickle.dumps(b"x" * 1000)) - 1000
    value = b"\0" * (messages._ROOM - around + beyond)
    found, number = exchanged([value, others])
    assert found == [[value, others]] * 2
    assert number == (2 if others else calls)


def test_tensors_keep_their_values():
    found, _ = exchanged([torch.arange(3000), torch.tensor(1.0)])
    assert torch.equal(found[1][0], torch.arange(3000))
    assert found[0][1] == 1.0
