"""History: how the values of a storage came about, so that they can be computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class View:
    """A tensor that can be made again: a view of a storage whose history is known.

    Attributes:
        num_bytes: of the storage.
        steps: how the values of the storage came about.
        dtype: of the tensor.
        place: its offset in the storage, its size and its strides.
    """

    num_bytes: int
    steps: tuple[Step, ...]
    dtype: torch.dtype
    place: tuple[Any, ...]

    def of(self, storage: Any) -> Tensor:
        """The tensor in a storage that has the values."""
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.place)

    def again(self) -> Tensor:
        """The tensor, made again."""
        storage = torch.empty(self.num_bytes, dtype=torch.uint8).untyped_storage()
        for step in self.steps:
            step.apply_to(storage)
        return self.of(storage)


class Step(NamedTuple):
    """An operation that makes the values of a storage, or changes them.

    Attributes:
        operation: the operation.
        args: its arguments, with a ``View`` in place of a large tensor; without the tensor that
            it changes, if it does not make one.
        kwargs: its arguments by name.
        changed: the tensor that it changes; ``None``: it makes one.
        random_state: that of the CPU's generator before it, if it draws random numbers.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    changed: View | None
    random_state: Tensor | None

    def apply_to(self, storage: Any) -> None:
        """Do it to a storage."""
        args, kwargs = replaced(View, View.again, (self.args, self.kwargs))
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)
        if self.changed is None:
            storage.copy_(self.operation(*args, **kwargs).untyped_storage())
        else:
            self.operation(self.changed.of(storage), *args, **kwargs)


class History(NamedTuple):
    """How the values of a storage came about."""

    num_bytes: int
    steps: list[Step]

    def view(self, tensor: Tensor) -> View:
        """``tensor`` as it is now."""
        place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        return View(self.num_bytes, tuple(self.steps), tensor.dtype, place)


def replaced(kind: type, change: Callable[[Any], Any], arguments: Any) -> Any:
    """Arguments of an operation, with all objects of one kind changed."""
    return tree_map(lambda it: change(it) if isinstance(it, kind) else it, arguments)
