"""InMemorySource: batches of tensors and arrays, fetched by indexing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from mmap import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from fitkit.core.errors import DataError
from fitkit.core.tree import iterate_leaves, map_leaves, map_tensors
from fitkit.core.types import Share
from fitkit.data.epoch_sampler import epoch_order
from fitkit.data.frames import NUMBER_KINDS
from fitkit.data.rank_split import SINGLE_RANK, RankSplit, Stride
from fitkit.data.split_batch import TARGET_KEYS


class InMemorySource:
    """Batches of tensors with the same first dimension.

    Args:
        tensors: nested tensors of shape ``(samples, ...)``, or ``ArrayRows``.
        batch_size: samples per batch, over all ranks; the last batch may be shorter.
        shuffle: a new order for each pass, which depends on ``(seed, epoch)``.
        seed: seed of the order.
        drop_last: leave out a shorter last batch.
        pin: return batches in pinned memory, for asynchronous copies to an accelerator.
        ranks: the split of each batch over ranks.
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
        ranks: RankSplit = SINGLE_RANK,
    ) -> None:
        self._tensors, self._ranks = tensors, ranks
        self._shuffle, self._seed = shuffle, seed
        self._drop_last, self._pin = drop_last, pin
        self._stride = Stride(batch_size)
        self.share: Share | None = None
        self.num_samples = common_length(tensors)

    @property
    def num_batches(self) -> int:
        """Batches of one pass."""
        return self._stride.batches_of(self.num_samples, whole_only=self._drop_last)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of pass ``epoch`` from batch ``start`` on; samples are copied."""
        orders = self._orders(epoch)
        size, tensors = self._stride.step, self._tensors
        begin = self._stride.begin(start)
        is_flat = type(tensors) is tuple and all(type(tensor) is Tensor for tensor in tensors)
        for first in range(begin, begin + (self.num_batches - start) * size, size):
            part, self.share = self._ranks.part(min(size, self.num_samples - first))
            chosen = slice(first + part.start, first + part.stop)
            samples = {
                device: chosen if order is None else order[chosen]
                for device, order in orders.items()
            }
            if is_flat:
                batch: Any = tuple([rows(tensor, samples[tensor.device]) for tensor in tensors])
            else:
                batch = map_leaves(partial(_rows_of, samples=samples), tensors)
            yield map_tensors(_pinned, batch) if self._pin else batch

    def _orders(self, epoch: int) -> dict[torch.device, Tensor | None]:
        """The order of samples on each device that has tensors, copied there once per epoch."""
        devices = {tensor.device for tensor in iterate_leaves(self._tensors)}
        if not self._shuffle:
            return dict.fromkeys(devices)
        order = epoch_order(self.num_samples, self._seed, epoch)
        return {device: order.to(device) for device in devices}

    def state_dict(self) -> dict[str, Any]:
        """The stride of batches in the order, which depends on the seed and the epoch."""
        return {"stride": self._stride.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position for the next ``iterate``."""
        self._stride.load_from(state_dict)


def _rows_of(leaf: Tensor | ArrayRows, samples: Mapping[torch.device, slice | Tensor]) -> Tensor:
    chosen = samples[leaf.device]
    return leaf.rows(chosen) if isinstance(leaf, ArrayRows) else rows(leaf, chosen)


class ArrayRows:
    """A NumPy array whose rows are copied and converted batch by batch, not as a whole.

    Args:
        array: an array in a file or in memory that is read-only; it is never written to.
        dtype: as in ``as_tensors``.
        labels: whether unsigned bytes become int64.
    """

    device = torch.device("cpu")

    def __init__(
        self, array: np.ndarray[Any, Any], dtype: torch.dtype, *, labels: bool = False
    ) -> None:
        self._array, self._dtype, self._labels = array, dtype, labels
        self.shape = array.shape

    def rows(self, samples: slice | Tensor) -> Tensor:
        """A new tensor of the rows ``samples``."""
        chosen = samples if isinstance(samples, slice) else samples.numpy()
        return _tensor_of(np.array(self._array[chosen]), self._dtype, labels=self._labels)


def rows(tensor: Tensor, samples: slice | Tensor) -> Tensor:
    """A copy of the rows ``samples`` (a slice, or int64 indices that are not negative).

    It is a copy so that in-place operations of a model do not change the data.
    """
    if isinstance(samples, slice):
        return tensor[samples].clone()
    index = samples if samples.device == tensor.device else samples.to(tensor.device)
    if tensor.is_contiguous():  # several times faster, but the result is always contiguous
        return tensor.index_select(0, index)
    return tensor[index]


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def common_length(arrays: Any) -> int:
    """The common first dimension of nested arrays, or ``DataError``."""
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
    """Whether ``data`` is an array, or a tuple or mapping of arrays only."""
    if isinstance(data, (Tensor, np.ndarray)):
        return True
    values = data.values() if isinstance(data, Mapping) else data
    return isinstance(data, (tuple, Mapping)) and bool(data) and all(map(is_in_memory, values))


def as_tensors(data: Any, dtype: torch.dtype) -> Any:
    """Arrays as tensors; tensors are not converted.

    NumPy floats become ``dtype`` and signed integers int64, as models and losses need them;
    unsigned bytes (images) stay, except for labels: the second of a pair, or a mapping's targets.
    Arrays in a file (``numpy.memmap``) and read-only arrays become ``ArrayRows``.
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
        lambda leaf: leaf if isinstance(leaf, Tensor) else _leaf_of(leaf, dtype, labels=labels),
        data,
    )


def _leaf_of(
    array: np.ndarray[Any, Any], dtype: torch.dtype, *, labels: bool
) -> Tensor | ArrayRows:
    if array.dtype.kind not in NUMBER_KINDS:
        raise DataError(
            f"expected an array of numbers, received dtype {array.dtype}: encode it as numbers."
        )
    if array.ndim and (not array.flags.writeable or _is_in_file(array)):
        return ArrayRows(array, dtype, labels=labels)
    return _tensor_of(array, dtype, labels=labels)


def _is_in_file(array: np.ndarray[Any, Any]) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return isinstance(base, mmap)


def _tensor_of(array: np.ndarray[Any, Any], dtype: torch.dtype, *, labels: bool) -> Tensor:
    kind = array.dtype.kind
    if (kind == "u" and (labels or array.dtype.itemsize > 1)) or kind == "i":
        native = array.astype(np.int64, order="C", copy=False)
    elif kind == "f":
        # torch has no longer floats and no other byte order
        supported = np.float64 if array.dtype.itemsize > 8 else array.dtype.type
        native = array.astype(supported, order="C", copy=False)
    else:
        native = np.require(array, dtype=array.dtype.type, requirements=["C"])
    # torch warns about read-only memory
    tensor = torch.from_numpy(native if native.flags.writeable else native.copy())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def tensors_of(dataset: Dataset[Any]) -> Any | None:
    """The dense tensors of a plain ``TensorDataset``, else ``None``."""
    if type(dataset) is not TensorDataset:
        return None
    is_dense = all(tensor.layout is torch.strided for tensor in dataset.tensors)
    return dataset.tensors if is_dense else None


def whole_tensors(data: Any) -> Any:
    """What ``as_tensors`` returned, with all rows of ``ArrayRows`` as tensors."""
    return map_leaves(
        lambda leaf: leaf.rows(slice(None)) if isinstance(leaf, ArrayRows) else leaf, data
    )


def slice_samples(data: Any, index: slice) -> Any:
    """The samples ``index`` of in-memory data, without a copy."""
    return map_leaves(lambda array: array[index], data)
