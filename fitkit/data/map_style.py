"""MapStyleSource: batches of a DataLoader over a map-style dataset, seekable to any batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from fitkit.core.types import Share
from fitkit.data.epoch_sampler import EpochSampler
from fitkit.data.generator_state import UserGenerators, announce_epoch
from fitkit.data.loader_workers import start_iterator
from fitkit.data.own_part import replaces_sampler
from fitkit.data.rank_split import SINGLE_RANK, RankSplit, Stride
from fitkit.data.request_sampler import RequestSampler
from fitkit.data.seeded_fetch import SeededFetch, WorkerDataset
from fitkit.data.split_batch import as_fields, collates_fields
from fitkit.runtime.rng import IsolatedStreams, derive_seed


class MapStyleSource:
    """The batches of a DataLoader over a map-style dataset.

    An inner DataLoader with the same settings (workers, collation, pinning, samplers) gets requests
    instead of indices. Skipped batches are not loaded. If the user gave a generator to the loader
    or its sampler, that determines the order, and its state is part of the position.

    Args:
        loader: a plain ``torch.utils.data.DataLoader``.
        seed: seed of the order (without a user's generator) and of augmentation.
        ranks: the split of each batch over ranks.
        global_batch_size: samples per batch of all ranks; default: the loader's size for each.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        seed: int,
        ranks: RankSplit = SINGLE_RANK,
        global_batch_size: int | None = None,
    ) -> None:
        self._seed, self._user_loader, self._ranks = seed, loader, ranks
        indices = _indices_of(loader, seed)
        self._sampler = RequestSampler(indices, batched=_is_batched(loader), seed=seed, ranks=ranks)
        if global_batch_size is not None and self._sampler.cuts_batches:
            self._sampler.step = global_batch_size
        self._stride = Stride(self._sampler.step)
        self.share: Share | None = None
        self._generators = UserGenerators(loader)
        # each rank takes its part of the same batch
        in_order = ranks.size > 1 or getattr(loader, "in_order", True)
        self._loader = _inner_loader(self._sampler, loader, in_order=in_order)
        self._is_in_order = in_order

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass; ``None`` if the sampler has no length."""
        try:
            num_items = len(self._sampler)
        except TypeError:
            return None
        return self._stride.batches_of(num_items, whole_only=self._sampler.drops_last)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of pass ``epoch`` from batch ``start`` on."""
        self._generators.open(epoch)
        announce_epoch(self._user_loader, epoch)
        self._sampler.begin(epoch, self._stride.begin(start))
        with IsolatedStreams(derive_seed(self._seed, "workers", epoch)):
            iterator = start_iterator(self._loader)
        # batches of several workers may arrive in another order than they were requested in
        has_fields = collates_fields(self._user_loader)
        for batch in iterator:
            share = self._sampler.shares.popleft()
            self.share = share if self._is_in_order else None
            yield as_fields(batch) if has_fields else batch
        self._generators.close()

    def state_dict(self) -> dict[str, Any]:
        """The stride of batches, and the states of the user's generators at its start and now."""
        return {"stride": self._stride.state_dict(), **self._generators.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position for the next ``iterate``."""
        self._generators.load_state_dict(self._stride.load_from(state_dict))


def _is_batched(loader: DataLoader[Any]) -> bool:
    return loader.batch_sampler is not None


def _indices_of(loader: DataLoader[Any], seed: int) -> Any:
    indices: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if not replaces_sampler(loader):
        return indices
    # split by RankSplit instead, because a DistributedSampler repeats samples
    length = len(loader.dataset)  # type: ignore[arg-type]
    shuffles = indices.sampler.shuffle
    order = EpochSampler(length, seed) if shuffles else SequentialSampler(range(length))
    return BatchSampler(order, indices.batch_size, indices.drop_last)


class _DirectLoader:
    """A DataLoader without workers and pinning, but with less work per batch."""

    def __init__(
        self, sampler: RequestSampler, fetch: SeededFetch, generator: torch.Generator | None
    ) -> None:
        self._sampler, self._fetch, self._generator = sampler, fetch, generator

    def __iter__(self) -> Iterator[Any]:
        if self._generator is not None:
            # a DataLoader draws a seed for workers before the order, even without workers
            torch.empty((), dtype=torch.int64).random_(generator=self._generator)
        return map(self._fetch.__getitem__, self._sampler)


def _inner_loader(
    sampler: RequestSampler, loader: DataLoader[Any], *, in_order: bool
) -> Iterable[Any]:
    fetch = SeededFetch(loader.dataset, loader.collate_fn, batched=_is_batched(loader))
    if not loader.num_workers and not loader.pin_memory:
        return _DirectLoader(sampler, fetch, loader.generator)
    options: dict[str, Any] = {}
    if loader.num_workers:
        options = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
            "timeout": loader.timeout,
            **({} if in_order else {"in_order": False}),
        }
    return DataLoader(
        fetch,
        batch_size=None,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=_no_collation,
        pin_memory=loader.pin_memory,
        worker_init_fn=WorkerDataset(loader.worker_init_fn),
        generator=loader.generator,
        **options,
    )


def _no_collation(batch: Any) -> Any:
    return batch
