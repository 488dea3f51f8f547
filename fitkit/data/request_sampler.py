"""RequestSampler: what a DataLoader's sampler yields, with the seed and the place of each batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain, islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fitkit.core.types import Share
from fitkit.data.epoch_sampler import EpochSampler
from fitkit.data.rank_split import RankSplit
from fitkit.data.seeded_fetch import Request
from fitkit.runtime.rng import IsolatedStreams, derive_seed

# Samplers that draw from the global generator only when their iteration begins.
_DRAWS_AT_START_ONLY = (
    SequentialSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    EpochSampler,
)


_BLOCK = 4096


class RequestSampler:
    """The sampler of the inner DataLoader, which yields the requests of a pass from any item on.

    Requests carry indices with seed, epoch and position, from which a worker seeds its streams.
    So seeking loads nothing, and the number of workers may change.

    Items are samples if a plain ``BatchSampler`` groups them, so that batches can be cut anywhere;
    else they are what the batch sampler (or a sampler without batches) yields.

    Args:
        indices: a batch sampler, or a sampler whose items are fetched one by one.
        batched: whether it is a batch sampler.
        seed: seed of augmentation, and of samplers that draw from the global generator.
        ranks: the split of each batch over ranks.

    Attributes:
        cuts_batches: whether the items are samples.
        step: items per batch of all ranks.
        shares: shares of the requested batches that were not yielded yet, in order.
    """

    def __init__(self, indices: Any, *, batched: bool, seed: int, ranks: RankSplit) -> None:
        self._batched, self._seed, self._ranks = batched, seed, ranks
        self._epoch = self._start = 0
        self.cuts_batches = type(indices) is BatchSampler
        self._items: Any = indices.sampler if self.cuts_batches else indices
        self.step = ranks.size * (indices.batch_size if self.cuts_batches else 1)
        self.drops_last = self.cuts_batches and indices.drop_last
        self.shares: deque[Share] = deque()
        self._draws_late = type(self._items) not in _DRAWS_AT_START_ONLY

    def __len__(self) -> int:
        """Items per pass."""
        return len(self._items)

    def begin(self, epoch: int, start: int) -> None:
        """Set the epoch and the first item of the next iteration."""
        self._epoch, self._start = epoch, start
        self.shares.clear()

    def __iter__(self) -> Iterator[Request]:
        return self._requests_of_samples() if self.cuts_batches else self._requests_of_batches()

    def _start_items(self) -> Callable[[int], list[Any]]:
        """Begin a pass; returns a function that takes a number of items from the sampler.

        What the sampler draws comes from streams of its own, once for all items that are taken.
        """
        streams = IsolatedStreams(derive_seed(self._seed, "sampler", self._epoch))
        with streams:
            iterator = iter(self._items)
            first = list(islice(iterator, 1))  # many samplers draw here
        iterator = chain(first, iterator)

        def take(number: int) -> list[Any]:
            with streams if self._draws_late else nullcontext():
                return list(islice(iterator, number))

        return take

    def _requests_of_samples(self) -> Iterator[Request]:
        """This rank's part of each batch of samples."""
        take = self._start_items()
        position = sum(map(len, _in_blocks(take, self._start)))
        while chosen := take(self.step):
            size = len(chosen)
            if self.drops_last and size < self.step:
                return
            part, share = self._ranks.part(size)
            self.shares.append(share)
            yield Request(chosen[part], self._seed, self._epoch, position + part.start)
            position += size

    def _requests_of_batches(self) -> Iterator[Request]:
        """This rank's batch of each round of batches."""
        take = self._start_items()
        skipped = chain.from_iterable(_in_blocks(take, self._start))
        position = sum(map(self._size, skipped))
        while chosen := take(self.step):
            sizes = list(map(self._size, chosen))
            # without batches the dataset returns whole ones, whose samples nobody can count here
            index, share = self._ranks.pick(sizes if self._batched else [None] * len(sizes))
            self.shares.append(share)
            begin = position + sum(sizes[:index])
            yield Request(chosen[index], self._seed, self._epoch, begin)
            position += sum(sizes)

    def _size(self, indices: Any) -> int:
        return len(indices) if self._batched else 1


def _in_blocks(take: Callable[[int], list[Any]], number: int) -> Iterator[list[Any]]:
    """What ``take`` gives of a large number of items, without holding them all."""
    for begin in range(0, number, _BLOCK):
        yield take(min(_BLOCK, number - begin))
