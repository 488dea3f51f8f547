"""Data sets that notice how they are read. Worker processes reach them by forking."""

import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Sampler


class Augmented(Dataset):
    """Draws from every host stream for each sample; remembers what was loaded."""

    def __init__(self, size=10):
        self.size = size
        self.loaded = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.loaded.append(index)
        return torch.tensor(
            [index, random.random(), np.random.rand(), float(torch.rand(()))], dtype=torch.float64
        )


class LateSampler(Sampler):
    """Draws from the global streams anew for each index."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __iter__(self):
        for _ in range(self.size):
            yield (int(torch.randint(self.size, ())) + random.randrange(self.size)) % self.size


def noisy_collate(samples):
    """Adds one random number, drawn from every host stream, to the batch."""
    values = [sample[0] if isinstance(sample, (tuple, list)) else sample for sample in samples]
    return torch.stack(values) + torch.rand(()) + random.random() + np.random.rand()


def flat(batches):
    """Batches as lists, comparable bit by bit."""
    return [
        batch.tolist() if isinstance(batch, torch.Tensor) else [part.tolist() for part in batch]
        for batch in batches
    ]


@pytest.fixture
def kit():
    """The data sets, samplers and helpers of these tests."""
    return SimpleNamespace(
        Augmented=Augmented, LateSampler=LateSampler, noisy_collate=noisy_collate, flat=flat
    )


class _ThreadsAsRanks:
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


@pytest.fixture
def threads_as_ranks():
    """Call a function for each rank in a thread; what they return, and how often they exchanged.

    An error of the given types is returned in place of a value.
    """

    def run(size, function, *errors):
        together, found = _ThreadsAsRanks(size), [None] * size

        def call(number):
            try:
                found[number] = function(together.rank(number))
            except errors as error:
                found[number] = error

        threads = [threading.Thread(target=call, args=(number,)) for number in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found, together.exchanges

    return run
