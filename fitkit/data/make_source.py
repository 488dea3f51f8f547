"""make_source: makes a source of batches from any supported kind of data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from fitkit.core.argument_checks import require_count
from fitkit.core.device_capabilities import has_async_copies
from fitkit.core.errors import ConfigurationError, DataError, describe
from fitkit.core.types import BatchSource, Stateful
from fitkit.data.epoch_sampler import EpochSampler
from fitkit.data.in_memory import InMemorySource, as_tensors, is_in_memory, tensors_of
from fitkit.data.iterables import IterableSource, StatefulSource
from fitkit.data.map_style import MapStyleSource
from fitkit.data.rank_split import SINGLE_RANK, RankSplit, RoundRobinSource
from fitkit.data.sample_count import SampleCount
from fitkit.data.seeded_fetch import is_map_style, require_length
from fitkit.data.spec import DataSpec, is_batched_by_fitkit

DEFAULT_BATCH_SIZE = 32

CPU = torch.device("cpu")

# Arguments of a DataLoader that determine which samples are read, and in which order.
_ORDER_ARGUMENTS = ("sampler", "batch_sampler", "drop_last", "generator")


def make_source(
    spec: DataSpec,
    *,
    seed: int,
    dtype: torch.dtype,
    training: bool,
    in_order: bool = False,
    device: torch.device = CPU,
    ranks: RankSplit = SINGLE_RANK,
    count: SampleCount | None = None,
) -> BatchSource:
    """The source of batches for ``spec``.

    Args:
        spec: the data and its loading options.
        seed: the seed of order and augmentation.
        dtype: floating NumPy arrays are converted to it.
        training: shuffle if ``spec.shuffle`` is ``None``.
        in_order: read all samples in the order of the dataset, without a loader's sampler.
        device: the device of the model; for asynchronous copies, batches made here are in pinned
            memory and loaders keep their workers. A user's own loader is not changed.
        ranks: the split of each batch over ranks.
        count: counts the samples of batches; default: as ``spec.num_samples`` says.

    Raises:
        DataError: the kind of data is not supported.
        ConfigurationError: the options do not fit the kind of data.
    """
    require_count("batch_size", spec.batch_size, optional=True)
    data = spec.data
    count = SampleCount(spec.num_samples) if count is None else count
    if in_order and not isinstance(data, DataLoader):
        kwargs = {k: v for k, v in spec.loader_kwargs.items() if k not in _ORDER_ARGUMENTS}
        spec = replace(spec, shuffle=None, loader_kwargs=kwargs)
        training = False
    if isinstance(data, DataLoader):
        _refuse_settings(spec, "a DataLoader, which brings its own batches")
        return _loader_source(_sequential(data) if in_order else data, seed, ranks, count)
    if is_in_memory(data):
        tensors = as_tensors(data, dtype)
        return _array_source(spec, tensors, ranks, seed=seed, training=training, device=device)
    if isinstance(data, IterableDataset):
        if spec.shuffle:
            raise ConfigurationError(
                "an IterableDataset determines its own order, but shuffle=True was passed: pass "
                "shuffle=None, and shuffle inside it."
            )
        # not persistent_workers, whose copies of the dataset would keep their state
        kwargs = {"pin_memory": has_async_copies(device), **spec.loader_kwargs}
        loader = DataLoader(data, batch_size=_batch_per_rank(spec, ranks.size), **kwargs)
        return RoundRobinSource(IterableSource(loader, seed), ranks, count)
    if is_map_style(data):
        return _dataset_source(spec, ranks, seed=seed, training=training, device=device)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping)):
        _refuse_mixture(data)
        _refuse_lists(data)
        _refuse_settings(spec, "an iterable of batches")
        return _iterable_source(data, seed, ranks, count)
    raise DataError(
        f"data must be arrays or tensors, a Dataset, a DataLoader or an iterable of batches; "
        f"received {describe(data)}."
    )


def _global_batch(spec: DataSpec, num_ranks: int) -> int:
    """Samples per batch over all ranks."""
    if spec.global_batch_size is not None:
        return spec.global_batch_size
    return num_ranks * (DEFAULT_BATCH_SIZE if spec.batch_size is None else spec.batch_size)


def _batch_per_rank(spec: DataSpec, num_ranks: int) -> int:
    return max(_global_batch(spec, num_ranks) // num_ranks, 1)


def batch_size_of(spec: DataSpec, num_ranks: int) -> int | None:
    """Samples per batch and rank; ``None`` if the data is an iterable of batches."""
    data = spec.data
    if isinstance(data, DataLoader):
        return data.batch_size
    return _batch_per_rank(spec, num_ranks) if is_batched_by_fitkit(data) else None


def _array_source(
    spec: DataSpec,
    tensors: Any,
    ranks: RankSplit,
    *,
    seed: int,
    training: bool,
    device: torch.device,
) -> BatchSource:
    unknown = set(spec.loader_kwargs) - {"drop_last", "pin_memory", "num_workers"}
    if unknown:
        raise ConfigurationError(
            f"data in memory is fetched without a DataLoader, so it takes no "
            f"{', '.join(sorted(unknown))}: pass a Dataset for that."
        )
    return InMemorySource(
        tensors,
        _global_batch(spec, ranks.size),
        shuffle=training if spec.shuffle is None else spec.shuffle,
        seed=seed,
        drop_last=bool(spec.loader_kwargs.get("drop_last", False)),
        pin=spec.loader_kwargs.get("pin_memory", has_async_copies(device)),
        ranks=ranks,
    )


def _dataset_source(
    spec: DataSpec, ranks: RankSplit, *, seed: int, training: bool, device: torch.device
) -> BatchSource:
    kwargs = dict(spec.loader_kwargs)
    tensors = tensors_of(spec.data)
    if tensors is not None and not set(kwargs) - {"drop_last"}:
        return _array_source(spec, tensors, ranks, seed=seed, training=training, device=device)
    _refuse_contradictions(spec)
    length = require_length(spec.data)
    shuffle = training if spec.shuffle is None else spec.shuffle
    if kwargs.get("batch_sampler") is None:
        kwargs["batch_size"] = _batch_per_rank(spec, ranks.size)
        if kwargs.get("generator") is not None:
            kwargs["shuffle"] = shuffle and kwargs.get("sampler") is None
        elif kwargs.get("sampler") is None and shuffle:
            kwargs["sampler"] = EpochSampler(length, seed)
    loader = DataLoader(spec.data, **{**_fast_options(spec, device), **kwargs})
    return MapStyleSource(loader, seed, ranks, spec.global_batch_size)


def _fast_options(spec: DataSpec, device: torch.device) -> dict[str, Any]:
    """Options of a loader that only change its speed."""
    if not has_async_copies(device):
        return {}
    has_workers = bool(spec.loader_kwargs.get("num_workers"))
    # set_epoch does not reach the copies of the dataset in persistent workers
    has_epochs = hasattr(spec.data, "set_epoch")
    return {"pin_memory": True, "persistent_workers": has_workers and not has_epochs}


def _loader_source(
    loader: DataLoader[Any], seed: int, ranks: RankSplit, count: SampleCount
) -> BatchSource:
    if type(loader) is DataLoader and not isinstance(loader.dataset, IterableDataset):
        return MapStyleSource(loader, seed, ranks)
    return _iterable_source(loader, seed, ranks, count)


def _iterable_source(
    batches: Iterable[Any], seed: int, ranks: RankSplit, count: SampleCount
) -> BatchSource:
    source_type = StatefulSource if isinstance(batches, Stateful) else IterableSource
    return RoundRobinSource(source_type(batches, seed), ranks, count)


def _sequential(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader over all samples of the same dataset, in its order."""
    in_order = type(loader.sampler) is SequentialSampler and not loader.drop_last
    has_batch_sampler = loader.batch_sampler is not None and loader.batch_size is None
    if isinstance(loader.dataset, IterableDataset) or (in_order and not has_batch_sampler):
        return loader
    order: dict[str, Any] = {"batch_size": loader.batch_size}
    if has_batch_sampler:
        order = {"batch_size": getattr(loader.batch_sampler, "batch_size", DEFAULT_BATCH_SIZE)}
    elif type(loader.sampler) is BatchSampler:
        size = loader.sampler.batch_size
        indices = range(require_length(loader.dataset))
        order["sampler"] = BatchSampler(indices, size, drop_last=False)
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
    """Raise ``ConfigurationError`` for options that a sampler would override silently."""
    for name in ("sampler", "batch_sampler"):
        given = ["shuffle"] if spec.shuffle else []
        if name == "batch_sampler" and spec.batch_size is not None:
            given.append("batch_size")
        if spec.loader_kwargs.get(name) is not None and given:
            raise ConfigurationError(
                f"{name} overrides {' and '.join(given)}: pass only one of them."
            )


def _refuse_mixture(data: Any) -> None:
    """Raise ``DataError`` for ``(array, list)``, which is not meant as an iterable of batches."""
    if isinstance(data, tuple) and 0 < sum(map(is_in_memory, data)) < len(data):
        raise DataError(
            f"a tuple as data must hold arrays or tensors only, received "
            f"{', '.join(map(describe, data))}: convert all of them to tensors; for an iterable of "
            f"batches pass a list."
        )


def _refuse_lists(data: Any) -> None:
    """Raise ``DataError`` for a tuple of lists of numbers, which is meant as arrays."""
    for part in data if isinstance(data, tuple) else ():
        first = part
        while isinstance(first, (list, tuple)) and first:
            first = first[0]
        if isinstance(part, (list, tuple)) and isinstance(first, (bool, int, float)):
            raise DataError(
                "a tuple as data holds lists of numbers: convert each to an array, for instance "
                "with numpy.asarray."
            )


def _refuse_settings(spec: DataSpec, kind: str) -> None:
    given = [name for name in ("batch_size", "shuffle") if getattr(spec, name) is not None]
    given += sorted(spec.loader_kwargs)
    if given:
        raise ConfigurationError(
            f"{' and '.join(given)} cannot be set for {kind}: set it where the batches are made, "
            f"or pass the Dataset itself."
        )
