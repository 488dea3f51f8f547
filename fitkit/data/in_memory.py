"""Tensors and arrays in memory, fetched a batch at a time by indexing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fitkit.core.errors import DataError
from fitkit.core.tree import iterate_leaves, iterate_tensors, map_leaves, map_tensors
from fitkit.core.types import Share
from fitkit.data.batches import TARGET_KEYS
from fitkit.data.order import epoch_order
from fitkit.data.shares import ALONE, Ranks, Stride


class InMemorySource:
    """Batches of tensors that share their first dimension.

    Args:
        tensors: a nesting of tensors, each of shape ``(samples, ...)``.
        batch_size: samples per batch, over all processes; the last batch may be short.
        shuffle: a new order each pass, a function of ``(seed, epoch)``.
        seed: the seed of that order.
        drop_last: leave out a short last batch.
        pin: give batches in pinned memory, from which copies to an accelerator do not wait.
        ranks: this process among those that share each batch.
    """

    def __init__(
        self,
        tensors: Any,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        pin: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self._tensors = tensors
        self._ranks = ranks
        self._stride = Stride(batch_size)
        self._drop_last = drop_last
        self._pin = pin
        self.share: Share | None = None
        self._shuffle = shuffle
        self._seed = seed
        self.num_samples = common_length(tensors)

    @property
    def num_batches(self) -> int | None:
        """Batches of one pass."""
        return self._count()

    def _count(self) -> int:
        return self._stride.batches_of(self.num_samples, whole_only=self._drop_last)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of pass ``epoch`` from batch ``start`` on, each a copy of its samples."""
        orders = self._orders(epoch)
        size, tensors = self._stride.step, self._tensors
        begin = self._stride.begin(start)
        is_flat = type(tensors) is tuple and all(type(tensor) is Tensor for tensor in tensors)
        for first in range(begin, begin + (self._count() - start) * size, size):
            chosen = slice(first, first + size)
            if self._ranks.size > 1:
                chosen = self._own_part(first)
            samples = {at: chosen if one is None else one[chosen] for at, one in orders.items()}
            if is_flat:
                batch: Any = tuple([rows(tensor, samples[tensor.device]) for tensor in tensors])
            else:
                batch = map_tensors(partial(_rows_of, samples=samples), tensors)
            yield map_tensors(_pinned, batch) if self._pin else batch

    def _orders(self, epoch: int) -> dict[torch.device, Tensor | None]:
        """The order of samples on each device that holds some, copied there once an epoch."""
        devices = {tensor.device for tensor in iterate_tensors(self._tensors)}
        if not self._shuffle:
            return dict.fromkeys(devices)
        order = epoch_order(self.num_samples, self._seed, epoch)
        return {device: order.to(device) for device in devices}

    def _own_part(self, first: int) -> slice:
        part, self.share = self._ranks.part(min(self._stride.step, self.num_samples - first))
        return slice(first + part.start, first + part.stop)

    def state_dict(self) -> dict[str, Any]:
        """How batches lie in the order, which is a function of the seed and the epoch."""
        return {"stride": self._stride.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the pass where ``state_dict`` was taken."""
        if "stride" in state_dict:
            self._stride.load_state_dict(state_dict["stride"])


def _rows_of(tensor: Tensor, samples: Mapping[torch.device, slice | Tensor]) -> Tensor:
    return rows(tensor, samples[tensor.device])


def rows(tensor: Tensor, samples: slice | Tensor) -> Tensor:
    """A copy of the rows ``samples``, so that a model that works in place changes no data.

    Args:
        tensor: of shape ``(samples, ...)``.
        samples: a slice, or their indices, int64 and not negative.
    """
    if isinstance(samples, slice):
        return tensor[samples].clone()
    index = samples if samples.device == tensor.device else samples.to(tensor.device)
    if tensor.is_contiguous():  # several times faster, but makes every result contiguous
        return tensor.index_select(0, index)
    return tensor[index]


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def common_length(arrays: Any) -> int:
    """The first dimension that all arrays of a nesting share.

    Raises:
        DataError: they do not share one.
    """
    shapes = [tuple(leaf.shape) for leaf in iterate_leaves(arrays)]
    sizes = {shape[0] if shape else None for shape in shapes}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None:
        raise DataError(
            f"arrays in memory must have the same first dimension, the number of samples; received "
            f"the shapes {', '.join(map(str, shapes)) or 'of no array at all'}. Cut them to the "
            f"same length."
        )
    return int(size)


def is_in_memory(data: Any) -> bool:
    """Whether ``data`` is an array, or a tuple or mapping of nothing but arrays."""
    if isinstance(data, (Tensor, np.ndarray)):
        return True
    if isinstance(data, tuple):
        return bool(data) and all(is_in_memory(value) for value in data)
    if isinstance(data, Mapping):
        return bool(data) and all(is_in_memory(value) for value in data.values())
    return False


def as_tensors(data: Any, dtype: torch.dtype) -> Any:
    """Arrays as tensors; tensors stay as they are.

    NumPy's floats become ``dtype`` and its signed integers int64, as models and losses want them;
    unsigned bytes stay (images), except as labels: the second of a pair, or a mapping's targets.
    """
    if isinstance(data, tuple) and not hasattr(data, "_fields") and len(data) == 2:
        return (_convert(data[0], dtype), _convert(data[1], dtype, labels=True))
    if isinstance(data, Mapping):
        return {
            key: _convert(value, dtype, labels=key in TARGET_KEYS) for key, value in data.items()
        }
    return _convert(data, dtype)


def _convert(data: Any, dtype: torch.dtype, *, labels: bool = False) -> Any:
    return map_leaves(
        lambda leaf: leaf if isinstance(leaf, Tensor) else _tensor_of(leaf, dtype, labels=labels),
        data,
    )


def _tensor_of(array: np.ndarray[Any, Any], dtype: torch.dtype, *, labels: bool) -> Tensor:
    kind = array.dtype.kind
    if kind not in "biufc":
        raise DataError(
            f"an array of numbers was expected, received dtype {array.dtype}: encode it as numbers."
        )
    if (kind == "u" and (labels or array.dtype.itemsize > 1)) or kind == "i":
        native = array.astype(np.int64, order="C", copy=False)
    elif kind == "f":
        # torch knows no longer floats, and no foreign byte order
        kept = np.float64 if array.dtype.itemsize > 8 else array.dtype.type
        native = array.astype(kept, order="C", copy=False)
    else:
        native = np.require(array, dtype=array.dtype.type, requirements=["C"])
    # torch warns about memory that must not be written to
    tensor = torch.from_numpy(native if native.flags.writeable else native.copy())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def tensors_of(dataset: Dataset[Any]) -> Any | None:
    """The tensors behind a dataset that is nothing but tensors, else ``None``."""
    return dataset.tensors if type(dataset) is TensorDataset else None


def take(data: Any, index: slice) -> Any:
    """The samples ``index`` of in-memory data."""
    return map_leaves(lambda array: array[index], data)
