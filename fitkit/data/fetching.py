"""Fetching a batch by its indices: random only by (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
    default_convert,
    get_worker_info,
)

from fitkit.core.errors import DataError
from fitkit.runtime.rng import derive_seed, get_host_state, seed_host_streams, set_host_state


class Request(NamedTuple):
    """What travels to a worker: the indices of a batch, and where they stand in the run."""

    indices: Any
    seed: int
    epoch: int
    position: int


class SeededFetch(Dataset[Any]):
    """Fetches and collates the batch of a ``Request``.

    Before each sample the host streams are seeded from (seed, epoch, position), so that random
    augmentation depends neither on the number of workers nor on where a run was cut. In the main
    process the streams are put back afterwards. Where neither data set nor collation can draw,
    nothing is seeded.

    Args:
        dataset: the map-style data set.
        collate: makes a batch of what was fetched.
        batched: whether a request holds the indices of several samples; else it holds one index,
            which the data set gets as it is, even if it is a list.
    """

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], *, batched: bool) -> None:
        self.dataset = dataset
        self._collate = collate
        self._batched = batched
        cannot_draw = is_draw_free(dataset) and collate in (default_collate, default_convert)
        self._draws = not cannot_draw
        self._at_once = not batched or fetches_batches(dataset)

    def __getitem__(self, request: Request) -> Any:
        if not self._draws:
            return self._collate(self._fetch(request))
        outside = get_host_state() if get_worker_info() is None else None
        try:
            return self._collate(self._fetch(request))
        finally:
            if outside is not None:
                set_host_state(outside)

    def _fetch(self, request: Request) -> Any:
        if self._at_once:
            self._seed(request, 0)
            if self._batched:
                return self.dataset.__getitems__(request.indices)
            return self.dataset[request.indices]
        samples = []
        for offset, index in enumerate(request.indices):
            self._seed(request, offset)
            samples.append(self.dataset[index])
        return samples

    def _seed(self, request: Request, offset: int) -> None:
        if self._draws:
            position = request.position + offset
            seed_host_streams(derive_seed(request.seed, "sample", request.epoch, position))


def is_draw_free(dataset: Any) -> bool:
    """Whether fetching from ``dataset`` cannot draw random numbers, as far as its type tells."""
    if type(dataset) is Subset:
        return is_draw_free(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(is_draw_free(part) for part in dataset.datasets)
    return type(dataset) is TensorDataset


def fetches_batches(dataset: Any) -> bool:
    """Whether ``dataset`` fetches a whole batch at once; ``Subset`` only passes the call on."""
    if type(dataset) is Subset:
        return fetches_batches(dataset.dataset)
    return callable(getattr(dataset, "__getitems__", None))


def require_length(dataset: Any) -> int:
    """The number of samples of a map-style data set.

    Raises:
        DataError: it has no length.
    """
    try:
        return len(dataset)
    except TypeError as error:
        raise DataError(
            f"{type(dataset).__name__} has no length: define __len__, or make it an "
            f"IterableDataset."
        ) from error


def is_map_style(data: Any) -> bool:
    """Data sets of samples, also those that only look like one; a list of batches is none."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    return (
        not isinstance(data, (list, tuple, str, bytes, Mapping))
        and hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and (not hasattr(data, "__iter__") or hasattr(data, "__getitems__"))
    )
