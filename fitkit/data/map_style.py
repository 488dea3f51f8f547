"""Map-style data sets behind a DataLoader: seekable to any batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fitkit.core.types import Share
from fitkit.data.fetching import Request, SeededFetch
from fitkit.data.generators import UserGenerators, announce_epoch
from fitkit.data.iterables import drawn_in
from fitkit.data.order import EpochSampler
from fitkit.data.shares import ALONE, Ranks, Stride
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
    """The requests of one pass, from any item on; what a DataLoader takes for its sampler.

    Items are samples where an ordinary ``BatchSampler`` makes batches of them, which can be cut
    anywhere; else they are what the batch sampler (or a sampler without batches) gives.

    Args:
        indices: a batch sampler, or a sampler of what is fetched one by one.
        batched: which of the two.
        seed: the seed of augmentation, and of samplers that draw from the global generator.
        ranks: this process among those that share each batch.

    Attributes:
        cuts: whether samples are the items.
        step: items per batch of all processes.
        shares: of the batches that were requested and not yet given to anybody, in order.
    """

    def __init__(self, indices: Any, *, batched: bool, seed: int, ranks: Ranks) -> None:
        self._batched = batched
        self._seed = seed
        self._ranks = ranks
        self._epoch = 0
        self._start = 0
        self.cuts = type(indices) is BatchSampler
        self._items: Any = indices.sampler if self.cuts else indices
        self.step = ranks.size * (indices.batch_size if self.cuts else 1)
        self.drops_last = self.cuts and indices.drop_last
        self.shares: deque[Share] = deque()
        self._draws_late = type(self._items) not in _DRAW_AT_START

    def __len__(self) -> int:
        """Items of a pass."""
        return len(self._items)

    def begin(self, epoch: int, start: int) -> None:
        """The next iteration is that of ``epoch``, from item ``start`` on."""
        self._epoch = epoch
        self._start = start
        self.shares.clear()

    def __iter__(self) -> Iterator[Request]:
        return self._cut() if self.cuts else self._dealt()

    def _drawn(self) -> Iterator[Any]:
        """The items of the pass; drawn when the first is asked for, as a DataLoader has it."""
        streams = IsolatedStreams(derive_seed(self._seed, "sampler", self._epoch))
        return _drawn_apart(self._items, streams, always=self._draws_late)

    def _cut(self) -> Iterator[Request]:
        """This process's part of each batch that is cut from the order of samples."""
        samples = self._drawn()
        position = sum(1 for _ in islice(samples, self._start))
        while chosen := list(islice(samples, self.step)):
            size = len(chosen)
            if self.drops_last and size < self.step:
                return
            own, begin = chosen, 0
            if self._ranks.size > 1:
                part, share = self._ranks.part(size)
                own, begin = chosen[part], part.start
                self.shares.append(share)
            yield Request(own, self._seed, self._epoch, position + begin)
            position += size

    def _dealt(self) -> Iterator[Request]:
        """This process's one of each round of batches; the first stands in where there is none."""
        batches = self._drawn()
        position = sum(map(self._size, islice(batches, self._start)))
        while chosen := list(islice(batches, self.step)):
            sizes = list(map(self._size, chosen))
            has_own = self._ranks.rank < len(chosen)
            mine = self._ranks.rank if has_own else 0
            if self._ranks.size > 1:
                self.shares.append(Share(sizes[mine] if has_own else 0, sum(sizes)))
            begin = position + sum(sizes[:mine])
            yield Request(chosen[mine], self._seed, self._epoch, begin)
            position += sum(sizes)

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
        ranks: this process among those that share each batch.
        global_batch_size: samples of all of them; default: those of the loader, for each.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        seed: int,
        ranks: Ranks = ALONE,
        global_batch_size: int | None = None,
    ) -> None:
        self._seed = seed
        self._given = loader
        self._ranks = ranks
        indices = _indices_of(loader, seed)
        self._plan = RequestPlan(indices, batched=_is_batched(loader), seed=seed, ranks=ranks)
        if global_batch_size is not None and self._plan.cuts:
            self._plan.step = global_batch_size
        self._stride = Stride(self._plan.step)
        self.share: Share | None = None
        self._generators = UserGenerators(loader)
        self._loader = _fed_by(self._plan, loader)

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass, ``None`` if the sampler has no length."""
        try:
            num_items = len(self._plan)
        except TypeError:
            return None
        return self._stride.batches_of(num_items, whole_only=self._plan.drops_last)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of pass ``epoch`` from batch ``start`` on."""
        self._generators.open(epoch)
        announce_epoch(self._given, epoch)
        self._plan.begin(epoch, self._stride.begin(start))
        with IsolatedStreams(derive_seed(self._seed, "workers", epoch)):
            iterator = iter(self._loader)
        if self._ranks.size == 1:
            yield from iterator
        else:
            for batch in iterator:
                self.share = self._plan.shares.popleft()
                yield batch
        self._generators.close()

    def state_dict(self) -> dict[str, Any]:
        """How batches lie in the order, and the user's generators at its start and now."""
        return {"stride": self._stride.state_dict(), **self._generators.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over generator states; where their number differs, warn and leave them."""
        rest = {key: value for key, value in state_dict.items() if key != "stride"}
        if "stride" in state_dict:
            self._stride.load_state_dict(state_dict["stride"])
        self._generators.load_state_dict(rest)


def _is_batched(loader: DataLoader[Any]) -> bool:
    return loader.batch_sampler is not None


def _indices_of(loader: DataLoader[Any], seed: int) -> Iterable[Any]:
    indices = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if not (isinstance(loader.sampler, DistributedSampler) and type(indices) is BatchSampler):
        return indices
    # each process's part is chosen here, without the samples that such a sampler would repeat
    length = len(loader.dataset)  # type: ignore[arg-type]
    shuffles = loader.sampler.shuffle
    order = EpochSampler(length, seed) if shuffles else SequentialSampler(range(length))
    return BatchSampler(order, indices.batch_size, indices.drop_last)


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
