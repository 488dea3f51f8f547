"""make_source: from anything a user may pass as data to a source of batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
)

from fitkit.core.checks import require_count
from fitkit.core.devices import reads_pinned_memory
from fitkit.core.errors import ConfigurationError, DataError
from fitkit.core.types import BatchSource, Stateful
from fitkit.data.batches import describe
from fitkit.data.fetching import is_map_style, require_length
from fitkit.data.in_memory import (
    InMemorySource,
    as_tensors,
    is_in_memory,
    tensors_of,
)
from fitkit.data.iterables import IterableSource, StatefulSource
from fitkit.data.map_style import MapStyleSource
from fitkit.data.order import EpochSampler
from fitkit.data.shares import ALONE, Ranks, RoundsSource
from fitkit.data.spec import DataSpec, split_off_validation

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "DataSpec",
    "batch_size_of",
    "make_source",
    "split_off_validation",
]

DEFAULT_BATCH_SIZE = 32

CPU = torch.device("cpu")

# Arguments of a DataLoader that decide which samples are read, and in which order.
_ORDERING = ("sampler", "batch_sampler", "drop_last", "generator")


def make_source(
    spec: DataSpec,
    *,
    seed: int,
    dtype: torch.dtype,
    training: bool,
    in_order: bool = False,
    device: torch.device = CPU,
    ranks: Ranks = ALONE,
) -> BatchSource:
    """The source of batches for ``spec``.

    Args:
        spec: the data and how to read it.
        seed: the seed from which order and augmentation derive.
        dtype: what floating NumPy arrays are converted to.
        training: whether data is shuffled where nobody said.
        in_order: read in the data set's order, whatever a loader's sampler says, and all of it.
        device: where batches will go; where that helps, batches that are made here are in pinned
            memory, and loaders keep their workers. A loader of the user's own stays as it is.
        ranks: this process among those that share each batch.

    Raises:
        DataError: the data is of no kind that can be read.
        ConfigurationError: the settings do not fit the kind of data.
    """
    require_count("batch_size", spec.batch_size, optional=True)
    data = spec.data
    if in_order and not isinstance(data, DataLoader):
        kept = {k: v for k, v in spec.loader_kwargs.items() if k not in _ORDERING}
        spec = replace(spec, shuffle=None, loader_kwargs=kept)
        training = False
    if isinstance(data, DataLoader):
        _refuse_settings(spec, "a DataLoader, which brings its own batches")
        return _loader_source(_sequential(data) if in_order else data, seed, ranks)
    if is_in_memory(data):
        tensors = as_tensors(data, dtype)
        return _array_source(spec, tensors, ranks, seed=seed, training=training, device=device)
    if isinstance(data, IterableDataset):
        if spec.shuffle:
            raise ConfigurationError(
                "an IterableDataset decides its own order, but shuffle=True was passed: pass "
                "shuffle=None, and shuffle inside it."
            )
        # not persistent_workers: theirs is a copy of the data set, with whatever it remembers
        kwargs = {"pin_memory": reads_pinned_memory(device), **spec.loader_kwargs}
        loader = DataLoader(data, batch_size=_per_process(spec, ranks), **kwargs)
        return RoundsSource(IterableSource(loader, seed), ranks)
    if is_map_style(data):
        return _dataset_source(spec, ranks, seed=seed, training=training, device=device)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping)):
        _refuse_mixture(data)
        _refuse_settings(spec, "an iterable of batches")
        return _iterable_source(data, seed, ranks)
    raise DataError(
        f"data must be arrays or tensors, a Dataset, a DataLoader or an iterable of batches; "
        f"received {describe(data)}."
    )


def _whole_batch(spec: DataSpec, ranks: Ranks) -> int:
    """Samples per batch over all processes."""
    if spec.global_batch_size is not None:
        return spec.global_batch_size
    return ranks.size * (DEFAULT_BATCH_SIZE if spec.batch_size is None else spec.batch_size)


def _per_process(spec: DataSpec, ranks: Ranks) -> int:
    """Samples per batch where every process reads whole batches."""
    return max(_whole_batch(spec, ranks) // ranks.size, 1)


def batch_size_of(spec: DataSpec, num_processes: int) -> int | None:
    """Samples per batch and process; ``None`` where the data brings its own batches."""
    data = spec.data
    if isinstance(data, DataLoader):
        return data.batch_size
    if is_in_memory(data) or is_map_style(data) or isinstance(data, IterableDataset):
        return _per_process(spec, Ranks(0, num_processes))
    return None


def _array_source(
    spec: DataSpec, tensors: Any, ranks: Ranks, *, seed: int, training: bool, device: torch.device
) -> BatchSource:
    unknown = set(spec.loader_kwargs) - {"drop_last", "pin_memory", "num_workers"}
    if unknown:
        raise ConfigurationError(
            f"data in memory is fetched without a DataLoader, so it takes no "
            f"{', '.join(sorted(unknown))}: pass a Dataset for that."
        )
    return InMemorySource(
        tensors,
        _whole_batch(spec, ranks),
        shuffle=training if spec.shuffle is None else spec.shuffle,
        seed=seed,
        drop_last=bool(spec.loader_kwargs.get("drop_last", False)),
        pin=spec.loader_kwargs.get("pin_memory", reads_pinned_memory(device)),
        ranks=ranks,
    )


def _dataset_source(
    spec: DataSpec, ranks: Ranks, *, seed: int, training: bool, device: torch.device
) -> BatchSource:
    kwargs = dict(spec.loader_kwargs)
    tensors = tensors_of(spec.data)
    if tensors is not None and not set(kwargs) - {"drop_last"}:
        return _array_source(spec, tensors, ranks, seed=seed, training=training, device=device)
    _refuse_contradictions(spec)
    length = require_length(spec.data)
    shuffle = training if spec.shuffle is None else spec.shuffle
    if kwargs.get("batch_sampler") is None:
        kwargs["batch_size"] = _per_process(spec, ranks)
        if kwargs.get("generator") is not None:
            kwargs["shuffle"] = shuffle and kwargs.get("sampler") is None
        elif kwargs.get("sampler") is None and shuffle:
            kwargs["sampler"] = EpochSampler(length, seed)
    loader = DataLoader(spec.data, **{**_faster(spec, device), **kwargs})
    return MapStyleSource(loader, seed, ranks, spec.global_batch_size)


def _faster(spec: DataSpec, device: torch.device) -> dict[str, Any]:
    """Settings of a loader that change its speed only."""
    if not reads_pinned_memory(device):
        return {}
    has_workers = bool(spec.loader_kwargs.get("num_workers"))
    # workers that stay have copies of the data set, which would not hear of a new epoch
    hears_epochs = hasattr(spec.data, "set_epoch")
    return {"pin_memory": True, "persistent_workers": has_workers and not hears_epochs}


def _loader_source(loader: DataLoader[Any], seed: int, ranks: Ranks) -> BatchSource:
    if type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset):
        return MapStyleSource(loader, seed, ranks)
    return _iterable_source(loader, seed, ranks)


def _iterable_source(batches: Iterable[Any], seed: int, ranks: Ranks) -> BatchSource:
    if isinstance(batches, Stateful):
        return RoundsSource(StatefulSource(batches, seed), ranks)
    return RoundsSource(IterableSource(batches, seed), ranks)


def _sequential(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader over all samples of the same data set, in its order."""
    in_order = type(loader.sampler) is SequentialSampler and not loader.drop_last
    has_own_batches = loader.batch_sampler is not None and loader.batch_size is None
    if isinstance(loader.dataset, IterableDataset) or (in_order and not has_own_batches):
        return loader
    order: dict[str, Any] = {"batch_size": loader.batch_size}
    if has_own_batches:
        order = {"batch_size": getattr(loader.batch_sampler, "batch_size", DEFAULT_BATCH_SIZE)}
    elif type(loader.sampler) is BatchSampler:
        size = loader.sampler.batch_size
        everything = range(require_length(loader.dataset))
        order["sampler"] = BatchSampler(everything, size, drop_last=False)
    return DataLoader(
        loader.dataset,
        **order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if loader.num_workers else None,
    )


def _refuse_contradictions(spec: DataSpec) -> None:
    """Fail where a setting would be overruled by a sampler without a word."""
    for name in ("sampler", "batch_sampler"):
        given = ["shuffle"] if spec.shuffle else []
        if name == "batch_sampler" and spec.batch_size is not None:
            given.append("batch_size")
        if spec.loader_kwargs.get(name) is not None and given:
            raise ConfigurationError(
                f"{name} decides what {' and '.join(given)} would decide: pass only one of them."
            )


def _refuse_mixture(data: Any) -> None:
    """Fail for ``(array, list)``, which is no iterable of batches but was not made of arrays."""
    if isinstance(data, tuple) and 0 < sum(map(is_in_memory, data)) < len(data):
        raise DataError(
            f"a tuple as data must hold arrays or tensors only, received "
            f"{', '.join(map(describe, data))}: convert all of them to tensors; for an iterable of "
            f"batches pass a list."
        )


def _refuse_settings(spec: DataSpec, kind: str) -> None:
    given = [name for name in ("batch_size", "shuffle") if getattr(spec, name) is not None]
    given += sorted(spec.loader_kwargs)
    if given:
        raise ConfigurationError(
            f"{' and '.join(given)} cannot be set for {kind}: set it where the batches are made, "
            f"or pass the Dataset itself."
        )
