"""Map-style data sets behind a DataLoader: seekable to any batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fitkit.data.fetching import Request, SeededFetch
from fitkit.data.generators import UserGenerators, announce_epoch
from fitkit.data.iterables import drawn_in
from fitkit.data.order import EpochSampler
from fitkit.runtime.rng import IsolatedStreams, derive_seed

# Samplers that draw from the global generator at most when their iteration begins.
_DRAW_AT_START = (
    SequentialSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    EpochSampler,
)


class RequestPlan:
    """The requests of one pass, from any batch on; what a DataLoader takes for its sampler.

    Args:
        indices: a batch sampler, or a sampler of what is fetched one by one.
        batched: which of the two.
        seed: the seed of augmentation, and of samplers that draw from the global generator.
    """

    def __init__(self, indices: Iterable[Any], *, batched: bool, seed: int) -> None:
        self._indices = indices
        self._batched = batched
        self._seed = seed
        self._epoch = 0
        self._start = 0
        sampler = indices.sampler if type(indices) is BatchSampler else indices
        self._draws_late = type(sampler) not in _DRAW_AT_START

    def begin(self, epoch: int, start: int) -> None:
        """The next iteration is that of ``epoch``, from batch ``start`` on."""
        self._epoch = epoch
        self._start = start

    def __iter__(self) -> Iterator[Request]:
        streams = IsolatedStreams(derive_seed(self._seed, "sampler", self._epoch))
        iterator = _drawn_apart(self._indices, streams, always=self._draws_late)
        position = sum(self._size(indices) for indices in islice(iterator, self._start))
        for indices in iterator:
            yield Request(indices, self._seed, self._epoch, position)
            position += self._size(indices)

    def _size(self, indices: Any) -> int:
        return len(indices) if self._batched else 1


def _drawn_apart(
    indices: Iterable[Any], streams: IsolatedStreams, *, always: bool
) -> Iterator[Any]:
    """An iteration whose first draw, or every draw, comes from streams of its own."""
    with streams:
        iterator = iter(indices)
        first = list(islice(iterator, 1))
    return chain(first, drawn_in(streams, iterator) if always else iterator)


class MapStyleSource:
    """The batches of a DataLoader over a map-style data set.

    The loader's own settings (workers, collation, pinning, samplers) are taken over into a loader
    that is fed with requests. Skipped batches are not loaded. A generator that the user gave to the
    loader or its sampler decides the order; its state is part of the position.

    Args:
        loader: a plain ``torch.utils.data.DataLoader``.
        seed: the seed from which order (where no generator was given) and augmentation derive.
    """

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self._seed = seed
        self._given = loader
        self._indices = _indices_of(loader)
        self._plan = RequestPlan(self._indices, batched=_is_batched(loader), seed=seed)
        self._generators = UserGenerators(loader)
        self._loader = _fed_by(self._plan, loader)

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass, ``None`` if the sampler has no length."""
        try:
            return len(self._indices)  # type: ignore[arg-type]  # a sampler need not have one
        except TypeError:
            return None

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of pass ``epoch`` from batch ``start`` on."""
        self._generators.open(epoch)
        announce_epoch(self._given, epoch)
        self._plan.begin(epoch, start)
        with IsolatedStreams(derive_seed(self._seed, "workers", epoch)):
            iterator = iter(self._loader)
        yield from iterator
        self._generators.close()

    def state_dict(self) -> dict[str, Any]:
        """The user's generators, as they were when the pass began and as they are now."""
        return self._generators.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over generator states; where their number differs, warn and leave them."""
        self._generators.load_state_dict(state_dict)


def _is_batched(loader: DataLoader[Any]) -> bool:
    return loader.batch_sampler is not None


def _indices_of(loader: DataLoader[Any]) -> Iterable[Any]:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


class _FetchedHere:
    """What a DataLoader without workers does with requests, without its detours."""

    def __init__(
        self, plan: RequestPlan, fetch: SeededFetch, generator: torch.Generator | None
    ) -> None:
        self._plan = plan
        self._fetch = fetch
        self._generator = generator

    def __iter__(self) -> Iterator[Any]:
        if self._generator is not None:
            # a DataLoader draws a seed for its workers, also where it has none, and then the order
            torch.empty((), dtype=torch.int64).random_(generator=self._generator)
        return map(self._fetch.__getitem__, self._plan)


def _fed_by(plan: RequestPlan, loader: DataLoader[Any]) -> Iterable[Any]:
    fetch = SeededFetch(loader.dataset, loader.collate_fn, batched=_is_batched(loader))
    if not loader.num_workers and not loader.pin_memory:
        return _FetchedHere(plan, fetch, loader.generator)
    options: dict[str, Any] = {}
    if loader.num_workers:
        options = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
            "timeout": loader.timeout,
            "in_order": getattr(loader, "in_order", True),
        }
    return DataLoader(
        fetch,
        batch_size=None,
        sampler=plan,
        num_workers=loader.num_workers,
        collate_fn=_as_it_is,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        **options,
    )


def _as_it_is(batch: Any) -> Any:
    return batch
