"""Several ranks as threads of one process, which communicate as ``World`` does."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

SECONDS = 20  # a rank that waits longer has no counterpart


class ThreadRanks:
    """Rank ``rank`` of some threads; ``slots`` and ``barrier`` are shared by all of them."""

    def __init__(self, rank, slots, barrier):
        self.rank, self._slots, self._barrier = rank, slots, barrier

    def gather_all(self, value):
        self._slots[self.rank] = value
        self._barrier.wait(SECONDS)
        values = copy.deepcopy(self._slots)  # a process gets copies
        self._barrier.wait(SECONDS)
        return values

    def sum(self, sums):
        return torch.stack(self.gather_all(sums)).sum(0)


@pytest.fixture
def on_ranks():
    """``on_ranks(function, values)`` is ``function(value, ranks)`` of each rank, all at once."""

    def _on_ranks(function, values):
        slots, barrier = [None] * len(values), Barrier(len(values))
        ranks = [ThreadRanks(rank, slots, barrier) for rank in range(len(values))]
        with ThreadPoolExecutor(len(values)) as pool:
            return list(pool.map(function, values, ranks))

    return _on_ranks
