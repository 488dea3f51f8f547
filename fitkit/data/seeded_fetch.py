"""SeededFetch: loads a batch by indices; its randomness depends on (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from fitkit.core.errors import DataError
from fitkit.data.in_memory import rows
from fitkit.data.quick_collate import quicker
from fitkit.data.sample_streams import Begin, SampleStreams


class Request(NamedTuple):
    """What a worker receives: the indices of a batch, and its place in the run."""

    indices: Any
    seed: int
    epoch: int
    position: int


class SeededFetch(Dataset[Any]):
    """Loads and collates the batch of a ``Request``.

    What dataset and collation draw from the host streams is a function of (seed, epoch, position),
    so random augmentation depends neither on the number of workers nor on a resume. The main
    process has its own streams back afterwards.

    Args:
        dataset: the map-style dataset.
        collate: makes a batch of the loaded samples.
        batched: whether a request has the indices of several samples; else it has one index, which
            is passed to the dataset unchanged, even if it is a list.
    """

    def __init__(self, dataset: Any, collate: Callable[[Any], Any], *, batched: bool) -> None:
        self.dataset = dataset
        self._collate = quicker(collate)
        self._batched = batched
        self._fetches_at_once = not batched or _fetches_batches(dataset)
        self._may_index_tensors = batched and collate is default_collate
        self._streams = SampleStreams()

    def __getitem__(self, request: Request) -> Any:
        indices, place = request.indices, (request.seed, request.epoch, request.position)
        if self._may_index_tensors:
            batch = index_tensors(self.dataset, indices)
            if batch is not None:
                return batch
        count = 1 if self._fetches_at_once else len(indices)
        return self._streams.run(*place, count, lambda begin: self._load(indices, begin))

    def _load(self, indices: Any, begin: Begin | None) -> Any:
        dataset = self.dataset
        if self._fetches_at_once:
            if begin is not None:
                begin(0)
            loaded = dataset.__getitems__(indices) if self._batched else dataset[indices]
        elif begin is None:
            loaded = [dataset[index] for index in indices]
        else:
            loaded = []
            for offset, index in enumerate(indices):
                begin(offset)
                loaded.append(dataset[index])
        return self._collate(loaded)


def _fetches_batches(dataset: Any) -> bool:
    """Whether ``dataset`` loads a whole batch with ``__getitems__``; ``Subset`` only delegates."""
    if type(dataset) is Subset:
        return _fetches_batches(dataset.dataset)
    return callable(getattr(dataset, "__getitems__", None))


def index_tensors(dataset: Any, indices: Any) -> list[Tensor] | None:
    """A collated batch of a ``TensorDataset``, by one indexing operation per tensor.

    Returns:
        the batch that ``default_collate`` would make; ``None`` if the result could differ, or if an
        index is invalid.
    """
    while type(dataset) is Subset:
        if type(indices) is not list:
            return None
        subset = dataset.indices
        dataset, indices = dataset.dataset, [subset[index] for index in indices]
    is_plain = type(dataset) is TensorDataset and all(map(_is_plain_memory, dataset.tensors))
    if not is_plain or type(indices) is not list or get_worker_info() is not None:
        return None
    index = torch.from_numpy(np.array(indices))
    if index.dtype is not torch.int64 or index.ndim != 1:
        return None
    try:
        return [rows(tensor, index) for tensor in dataset.tensors]
    except IndexError:  # out of range, or negative
        return None


def _is_plain_memory(tensor: Tensor) -> bool:
    is_dense = type(tensor) is Tensor and tensor.layout is torch.strided
    return is_dense and tensor.device.type == "cpu" and tensor.is_contiguous()


def require_length(dataset: Any) -> int:
    """The number of samples of a map-style dataset, or ``DataError`` if it has no length."""
    try:
        return len(dataset)
    except TypeError as error:
        raise DataError(
            f"{type(dataset).__name__} has no length: define __len__, or make it an "
            f"IterableDataset."
        ) from error


def is_map_style(data: Any) -> bool:
    """Whether ``data`` is a map-style dataset, by its class or its methods; a list is none."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    return (
        not isinstance(data, (list, tuple, str, bytes, Mapping))
        and hasattr(data, "__getitem__")
        and hasattr(data, "__len__")
        and (not hasattr(data, "__iter__") or hasattr(data, "__getitems__"))
    )


class WorkerDataset:
    """A ``worker_init_fn`` after which ``get_worker_info().dataset`` is the user's own dataset.

    torch reads the dataset of a worker before this is called, so the worker keeps its fetch.

    Args:
        own: the ``worker_init_fn`` of the user's loader, called afterwards.
    """

    def __init__(self, own: Callable[[int], None] | None) -> None:
        self._own = own

    def __call__(self, worker_id: int) -> None:
        """Begin the worker."""
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)  # its own refuses
        if self._own is not None:
            self._own(worker_id)
