"""SampleCount: how many samples a batch has."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fitkit.core.argument_checks import as_whole_number
from fitkit.core.errors import ConfigurationError, DataError, describe
from fitkit.core.tree import iterate_leaves, shapes_of
from fitkit.core.types import Share
from fitkit.data.split_batch import TARGET_KEYS, Fields

SizeOf = Callable[[Any], int]

_SIZE_ATTRIBUTES = ("num_graphs", "batch_size")  # of torch_geometric, DGL, TensorDict and others


class SampleCount:
    """Counts the samples of the batches of one pass.

    In this order: the indices from which the loader made the batch, what the batch says of itself
    (an attribute ``num_graphs`` or ``batch_size``, or the length of a list of samples), the user's
    function, and the first dimension of the targets or else of the first tensor. The function comes
    first where another of these numbers confirms it, as it can correct a loader whose
    ``collate_fn`` leaves samples out. The first time that two of them differ a warning says so.

    Args:
        function: the user's ``num_samples``, which gets a batch before it is moved to the device.

    Raises:
        ConfigurationError: ``function`` is not callable.
    """

    def __init__(self, function: SizeOf | None = None) -> None:
        if function is not None and not callable(function):
            raise ConfigurationError(
                f"num_samples must be a function that returns the number of samples in a batch, "
                f"received {describe(function)}."
            )
        self.function = function
        self._has_warned = False

    def of(self, batch: Any, indices: int | None = None) -> int:
        """The number of samples in ``batch``.

        Args:
            batch: the batch, on the host.
            indices: the number of indices from which the loader made it, if known.

        Raises:
            DataError: the batch has no sample, or the user's function returned no whole number.
        """
        if self.function is None and (rows := _common_rows(batch, indices)) is not None:
            return rows
        if indices is not None and self.function is None and self._has_warned:
            return indices
        count = self._of_any_batch(batch, indices)
        if count == 0:
            raise DataError(
                f"a batch holds no sample ({shapes_of(batch)}): leave empty batches out, for "
                f"instance in the sampler or in collate_fn."
            )
        return count

    def share_in(self, batch: Any, share: Share | None) -> Share:
        """The share of this rank in a batch; ``share`` is what the source knows of it."""
        if share is None:
            count = self.of(batch)
            return Share(count, count)
        has_function = self.function is not None  # it may count otherwise than the source
        if share.local == 0:
            return Share(0, None) if has_function else share
        count = self.of(batch, share.local)
        return Share(count, None) if has_function or share.local is None else share

    def _of_any_batch(self, batch: Any, indices: int | None) -> int:
        given = None if self.function is None else self._call(self.function, batch)
        said, is_certain = declared_size(batch)
        if indices in _lengths(batch):
            said, is_certain = indices, True
        counts = {
            "the loader's indices": indices,
            "the batch itself": said,
            "num_samples=": given,
            "the first dimension of its targets": None if is_certain else _rows(_targets(batch)),
            "the first dimension of its first tensor": None if is_certain else _rows(batch),
        }
        known = {source: count for source, count in counts.items() if count is not None}
        if not known:
            self._warn(f"{describe(batch)} does not say how many samples it has; 1 is counted")
            return 1
        (source, count), *others = known.items()
        if given is not None and (list(known.values()).count(given) > 1 or count == given):
            return given
        if others and others[0][1] != count:
            self._warn(
                f"a batch ({shapes_of(batch)}) has {count} samples by {source}, and "
                f"{others[0][1]} by {others[0][0]}; {count} are counted"
            )
        return count

    def _call(self, function: SizeOf, batch: Any) -> int:
        given: Any = function(batch)
        is_flag = isinstance(given, bool) or getattr(given, "dtype", None) is torch.bool
        count = None if is_flag else as_whole_number(given)
        if count is None:
            raise DataError(
                f"num_samples must return the number of samples in the batch, a whole number of at "
                f"least 0, received {given!r}."
            )
        return count

    def _warn(self, finding: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            f"{finding}, and means over samples are weighted by it. If that is wrong, pass "
            f"num_samples=, a function of the batch, with the data.",
            stacklevel=3,
        )


def _common_rows(batch: Any, indices: int | None) -> int | None:
    """The common case, which needs no walk over the batch: its tensors have as many rows."""
    first = batch[0] if type(batch) in (list, tuple) and batch else batch
    if type(first) is not Tensor or not first.ndim:
        return None
    rows = int(first.shape[0])
    if indices is not None:
        return rows if rows == indices else None
    if first is not batch and rows:
        for part in batch:
            if type(part) is not Tensor or not part.ndim or part.shape[0] != rows:
                return None
    return rows or None


def declared_size(batch: Any) -> tuple[int | None, bool]:
    """The number of samples that the batch says of itself, and whether it can be nothing else."""
    for leaf in _leaves(batch):
        if isinstance(leaf, PackedSequence):
            return int(leaf.batch_sizes[0]), True
        if not isinstance(leaf, (Tensor, str, bytes)):
            for name in _SIZE_ATTRIBUTES:
                value = getattr(leaf, name, None)
                if isinstance(value, torch.Size) and value:
                    return value[0], True
                if isinstance(value, int) and not isinstance(value, bool):
                    return value, True
    return _length_of_lists(batch)


def _length_of_lists(batch: Any) -> tuple[int | None, bool]:
    """The length of a list of samples in the batch, or of the batch if it is one.

    ``default_collate`` makes lists too, one item for each part of a sample: the tensors of such a
    batch all have the same first dimension. It makes no tuples.
    """
    parts = _parts(batch)
    if type(batch) is list and all(
        isinstance(part, tuple) and type(part) is not Fields for part in parts
    ):
        return len(parts), True
    lists = [part for part in parts if type(part) in (list, tuple)]
    of_objects = [len(part) for part in lists if _holds_objects(part)]
    has_one_length = len(lists) > 1 and len(set(map(len, lists))) == 1
    if of_objects and has_one_length:  # images and their targets
        return of_objects[0], True
    if _is_uniform(batch) and (len(parts) > 1 or type(batch) is not list):
        return None, False
    if type(batch) is list and _holds_objects(batch):
        return len(parts), True
    if of_objects:
        return of_objects[0], True
    if has_one_length or any(type(part) is list for part in lists):
        # tensors without dimensions can only be those of single samples
        has_scalars = any(isinstance(leaf, Tensor) and not leaf.ndim for leaf in _leaves(batch))
        return len(lists[0]), has_one_length and has_scalars
    return None, False


def _holds_objects(part: Any) -> bool:
    return not any(isinstance(one, (Tensor, list)) for one in part)


def _is_uniform(batch: Any) -> bool:
    sizes = {leaf.shape[:1] if isinstance(leaf, Tensor) else () for leaf in _leaves(batch)}
    return len(sizes) == 1 and () not in sizes


def _lengths(batch: Any) -> set[int]:
    """The lengths of the lists and tuples in a batch, each of which may have its samples."""
    own = [batch] if type(batch) is list else []
    return {len(one) for one in (*own, *_parts(batch)) if isinstance(one, (tuple, list))}


def _parts(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, (tuple, list)) else []


def _targets(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return next((batch[key] for key in TARGET_KEYS if key in batch), None)
    return batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None


def _rows(tree: Any) -> int | None:
    """The first dimension of the first tensor that has one."""
    tensors = (leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor) and leaf.ndim)
    first = next(tensors, None)
    return None if first is None else int(first.shape[0])


def _leaves(tree: Any) -> Iterator[Any]:
    """The leaves of a nesting in which dataclasses count as containers."""
    for leaf in iterate_leaves(tree):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            if any(hasattr(leaf, name) for name in _SIZE_ATTRIBUTES):
                yield leaf
            for field in dataclasses.fields(leaf):
                yield from _leaves(getattr(leaf, field.name))
        else:
            yield leaf
