"""Lazy modules of torch (``nn.LazyLinear``): parameters without shape before a first batch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from fitkit.core.errors import CheckpointError, listed


def has_values(tensor: Any) -> bool:
    """Whether ``tensor`` is no parameter or buffer that is still without shape and values."""
    return not is_lazy(tensor)


def uninitialized_names(module: nn.Module) -> list[str]:
    """The names of the parameters and buffers that have no values yet."""
    named = chain(module.named_parameters(), module.named_buffers())
    return [name for name, tensor in named if is_lazy(tensor)]


def require_values(module: nn.Module) -> None:
    """Raise ``CheckpointError`` if parameters or buffers have no values yet."""
    names = uninitialized_names(module)
    if names:
        raise CheckpointError(
            f"{type(module).__name__} has lazy parameters without values ({listed(names)}), so "
            f"there is nothing to save: train or call it on one batch before."
        )


def make_lazy_undo(module: nn.Module) -> Callable[[], None]:
    """A function that makes lazy again what is lazy in ``module`` now; objects stay the same.

    An optimizer that holds the parameters need not be built again.
    """
    parts = [part for part in module.modules() if isinstance(part, LazyModuleMixin)]
    undo_parts = [_make_attributes_undo(part) for part in parts]
    tensors: list[tuple[Any, type, torch.device, torch.dtype]] = [
        (tensor, type(tensor), tensor.device, tensor.dtype)
        for tensor in chain(module.parameters(), module.buffers())
        if is_lazy(tensor)
    ]

    def undo() -> None:
        for undo_part in undo_parts:
            undo_part()
        for tensor, kind, device, dtype in tensors:
            if not is_lazy(tensor):
                tensor.grad = None
                tensor.data = torch.empty(0, device=device, dtype=dtype)
                tensor.__class__ = kind  # as ``materialize`` does it, the other way round

    return undo


def _make_attributes_undo(part: nn.Module) -> Callable[[], None]:
    """A function that puts back the class and attributes; torch changes them at the first call."""
    kind, attributes = type(part), dict(vars(part))
    # a hook is removed from the very dict that it was added to
    contents = {name: dict(value) for name, value in attributes.items() if isinstance(value, dict)}

    def undo() -> None:
        part.__class__ = kind
        vars(part).clear()
        vars(part).update(attributes)
        for name, content in contents.items():
            attributes[name].clear()
            attributes[name].update(content)

    return undo


def with_values(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict that have values."""
    return {
        name: value
        for name, value in tensors.items()
        if isinstance(value, Tensor) and has_values(value)
    }
