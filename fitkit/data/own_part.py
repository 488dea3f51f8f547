"""Finds out whether each rank brings its own part of the data, or all bring the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Subset

from fitkit.core.errors import ConfigurationError, listed
from fitkit.core.tree import iterate_leaves
from fitkit.data.generator_state import UserGenerators, samplers_of
from fitkit.data.in_memory import is_in_memory, tensors_of

AUTO, RANK = "auto", "rank"
SPLITS = (AUTO, RANK)

# of samplers, batch samplers and data sets of torch, transformers and accelerate
_NUMBERS_OF_RANKS = ("num_replicas", "num_processes")
_SEQUENCES = (list, tuple, np.ndarray, Tensor)
_SKETCH_SIZE = 256
_OVERLAP = 0.1  # share of common samples from which on index sets are no parts of one set
DATA_REMEDY = (
    "pass split='rank' beside it if the data of each rank is its own part; else give all ranks the "
    "same data"
)


def require_split(split: Any) -> str:
    """``split``, or ``ConfigurationError`` if there is no such way."""
    if split not in SPLITS:
        raise ConfigurationError(
            f"split must be one of {listed(SPLITS)}, received {split!r}: 'rank' says that the data "
            f"of each rank is its own part."
        )
    return str(split)


def replaces_sampler(loader: Any) -> bool:
    """Whether a loader has torch's ``DistributedSampler``, for which fitkit splits the data.

    That sampler repeats samples to give all ranks equally many.
    """
    batches: Any = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader, "sampler", None) if batches is None else None
    if type(batches) is BatchSampler:
        sampler = batches.sampler
    return type(sampler) is DistributedSampler


def splits_itself(data: Any, loader_kwargs: Mapping[str, Any], num_ranks: int) -> str | None:
    """How data gives each rank its own part, in words; ``None``: nothing is known of it."""
    owner = _loader_of(data, loader_kwargs)
    if replaces_sampler(owner):
        return None
    dataset = data.dataset if isinstance(data, DataLoader) else data
    for part in (*samplers_of(owner), dataset):
        for name in _NUMBERS_OF_RANKS:
            if num_ranks > 1 and getattr(part, name, None) == num_ranks:
                return f"{type(part).__name__} has {name}={num_ranks}"
    distributed = getattr(dataset, "_distributed", None)  # of split_dataset_by_node
    if getattr(distributed, "world_size", 1) > 1:
        return "it was split by split_dataset_by_node"
    pipeline = getattr(dataset, "pipeline", None)  # of webdataset
    stages = pipeline if isinstance(pipeline, (list, tuple)) else ()
    if any(getattr(stage, "__name__", "") == "split_by_node" for stage in stages):
        return "its pipeline has split_by_node"
    return None


def _loader_of(data: Any, loader_kwargs: Mapping[str, Any]) -> Any:
    """What has the samplers: the loader, or the arguments for the one that fitkit will make."""
    return data if isinstance(data, DataLoader) else SimpleNamespace(**loader_kwargs)


def part_facts(
    data: Any, loader_kwargs: Mapping[str, Any], split: str, num_ranks: int, length: str | None
) -> dict[str, Any]:
    """What ranks compare of the data of one pass; no sample of a dataset is loaded."""
    owner = _loader_of(data, loader_kwargs)
    indices, states = _indices(data, owner), UserGenerators(owner).states()
    length = length or f"a {type(data).__name__}"
    if (number := _num_batches(owner)) is not None:
        length += f", {number} batches"
    return {
        "split": split,
        "itself": splits_itself(data, loader_kwargs, num_ranks),
        "length": length,
        "indices": None if indices is None else _digest(indices.tobytes()),
        "sketch": None if indices is None else _sketch(indices),
        "rows": _digest_of_rows(data),
        "generators": _digest(b"".join(s.numpy().tobytes() for s in states)) if states else None,
    }


def _num_batches(owner: Any) -> int | None:
    """What samplers say of the number of batches."""
    for sampler in samplers_of(owner):
        try:
            return len(sampler)
        except (TypeError, NotImplementedError):
            continue
    return None


def resolve(name: str, facts: Sequence[Mapping[str, Any]]) -> tuple[str, str | None, str | None]:
    """How the data of a pass is split, from the facts of all ranks.

    Returns:
        the split; what prevents it, or ``None``; a warning, or ``None``.
    """

    def differs(fact: str) -> bool:
        return len({one[fact] for one in facts}) > 1

    if differs("split"):
        return AUTO, f"{name} is passed with split='rank' on some ranks only (pass it on all)", None
    if facts[0]["split"] == RANK or all(one["itself"] for one in facts):
        return RANK, None, None
    if differs("indices"):
        if _are_parts([one["sketch"] for one in facts]):
            return RANK, None, None
        return AUTO, f"{name} has other indices on each rank, which overlap ({DATA_REMEDY})", None
    if differs("generators"):
        problem = f"the generator of the loader of {name} is in another state on each rank"
        return AUTO, f"{problem} (seed it equally)", None
    if differs("rows") and not differs("length"):
        return RANK, None, taken_as_parts(name)
    return AUTO, None, None


def taken_as_parts(name: str) -> str:
    """The warning for data that differs between ranks, without a sign that it was split by rank."""
    return (
        f"{name} differs between ranks, so each rank takes all of its own, as with split='rank': "
        f"{DATA_REMEDY}."
    )


def _are_parts(sketches: Sequence[Sequence[int] | None]) -> bool:
    """Whether index sets have nothing, or next to nothing, in common."""
    seen: set[int] = set()
    for sketch in sketches:
        if sketch is None:
            return False
        if len(seen & set(sketch)) > _OVERLAP * len(sketch):
            return False
        seen |= set(sketch)
    return True


def _indices(data: Any, owner: Any) -> Any:
    """The indices of a subset, or of a sampler that has some, as an int64 array."""
    found = next((i for s in samplers_of(owner) if (i := _of_sampler(s)) is not None), None)
    dataset = data.dataset if isinstance(data, DataLoader) else data
    while isinstance(dataset, Subset):
        own = np.asarray(dataset.indices, dtype=np.int64)
        found = own if found is None else own[found]
        dataset = dataset.dataset
    return found


def _of_sampler(sampler: Any) -> Any:
    """The indices that a sampler holds: a list of them, or of batches of them."""
    indices = getattr(sampler, "indices", sampler)
    if isinstance(indices, (list, tuple)) and all(isinstance(i, (list, tuple)) for i in indices):
        indices = list(chain(*indices))
    is_sequence = isinstance(indices, (list, tuple, range, np.ndarray, Tensor))
    try:
        array = np.asarray(indices, dtype=np.int64) if is_sequence else None
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array is not None and array.ndim == 1 and array.size else None


def _sketch(indices: Any) -> list[int]:
    """The smallest hashes of the indices: sets with common elements have them in common."""
    with np.errstate(over="ignore"):
        hashes = indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashes = np.sort(np.unique(hashes ^ (hashes >> np.uint64(32))))
    return [int(value) for value in hashes[:_SKETCH_SIZE]]


def _digest_of_rows(data: Any) -> str | None:
    """Of the first and the last sample, where they are in memory.

    In a dataset of the user's own that is what it holds one of per sample, such as names of files.
    """
    tensors = data if is_in_memory(data) else tensors_of(data)
    rows = _held_per_sample(data) if tensors is None else list(iterate_leaves(tensors))
    rows = [one for one in rows if getattr(one, "ndim", 1) and len(one)]
    return _digest(b"".join(_bytes_of(one[i]) for one in rows for i in (0, -1))) if rows else None


def _held_per_sample(data: Any) -> list[Any]:
    """Lists, arrays and tensors that a dataset holds and that are as long as it is."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if not isinstance(dataset, Dataset):
        return []
    held = [one for one in vars(dataset).values() if isinstance(one, _SEQUENCES)]
    try:
        return [one for one in held if getattr(one, "ndim", 1) and len(one) == len(dataset)]  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):  # it has no length
        return []


def batch_digest(batch: Any) -> str:
    """A short text that is the same for equal batches."""
    return _digest(_bytes_of(batch))


def _bytes_of(tree: Any) -> bytes:
    return b"".join(map(_bytes, iterate_leaves(tree)))


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (
            value.contiguous().view(torch.uint8).numpy().tobytes()
            if value.ndim and value.numel()
            else repr(value).encode()
        )
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tobytes()
    is_plain = isinstance(value, (bool, int, float, str, bytes, type(None)))
    return repr(value).encode() if is_plain else type(value).__name__.encode()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
