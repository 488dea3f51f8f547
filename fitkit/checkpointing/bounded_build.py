"""Build a model from arguments that a file names, within the memory that its weights are worth."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fitkit.core.errors import CheckpointError
from fitkit.core.formatting import format_bytes
from fitkit.core.tree import iterate_tensors, map_tensors

# Initializing weights takes some times their memory, and not all buffers are saved.
_TIMES, _MORE_BYTES = 8, 1 << 30


@contextmanager
def bounded_build(weights: Mapping[str, Any]) -> Iterator[None]:
    """Inside ``with``, the new tensors that exist at a time may take some times ``weights``.

    A file of a kilobyte can name a model with a layer of 80000 x 80000. This is noticed before the
    layer takes memory, and on the device ``"meta"`` as well.

    Args:
        weights: the weights in the file, which the model is to have.

    Raises:
        CheckpointError: they would take more.
    """
    with _Bound(sum(map(_num_bytes, iterate_tensors(weights)))):
        yield


class _Bound(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Counts the memory of the tensors that torch has made and that still exist."""

    def __init__(self, stored_bytes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stored_bytes = stored_bytes
        self._new_bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _changes_or_views(function):
            return function(*args, **kwargs)
        total_bytes = self._new_bytes + _result_bytes(function, args, kwargs)
        if total_bytes > _MORE_BYTES + _TIMES * self._stored_bytes:
            raise CheckpointError(
                f"the model that the checkpoint describes would take more than "
                f"{format_bytes(total_bytes)}, but its weights in the file take "
                f"{format_bytes(self._stored_bytes)}, so it was not built. If you trust the rest "
                f"of the file, pass model_class=<a ready module>."
            )
        result = function(*args, **kwargs)
        for tensor in iterate_tensors(result):
            if tensor.layout is torch.strided:  # the parts of others were counted
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed: initializing weights makes and drops many."""
        self._add_bytes(storage.nbytes())
        weakref.finalize(storage, self._add_bytes, -storage.nbytes()).atexit = False

    def _add_bytes(self, num_bytes: int) -> None:
        self._new_bytes += num_bytes


def _changes_or_views(function: Any) -> bool:
    """Whether the results of a function have memory that its arguments have already."""
    schema = function._schema  # noqa: SLF001  torch has no public name for it
    return schema.is_mutable or any(one.alias_info is not None for one in schema.returns)


def _result_bytes(function: Any, args: Any, kwargs: Mapping[str, Any]) -> int:
    """The memory that the results of ``function`` will take; 0 where torch cannot tell."""
    given = {name: value for name, value in kwargs.items() if name != "generator"}
    if "device" in kwargs or not any(True for _ in iterate_tensors(args)):
        given["device"] = torch.device("meta")
    try:
        result = function(
            *map_tensors(_without_values, args), **map_tensors(_without_values, given)
        )
    except (RuntimeError, TypeError, ValueError, IndexError):  # it depends on values
        return 0
    return sum(map(_num_bytes, iterate_tensors(result)))


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=torch.device("meta")
    )
