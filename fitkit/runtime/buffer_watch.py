"""BufferWatch: warns once of buffers that training changes and no checkpoint holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from fitkit.core.errors import listed
from fitkit.core.state_placement import detached_copy


class BufferWatch:
    """Compares buffers with ``persistent=False`` after the first batch and after each epoch.

    What the first batch fills is a cache, and so is what changes its shape. The methods are hooks.

    Args:
        modules: the modules whose buffers are compared.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = tuple(modules)
        self._first: dict[str, Tensor] | None = None
        self._is_told = False

    def after_batch(self, *_: Any) -> None:
        """Copy the buffers after the first batch of this process."""
        if self._first is None:
            self._first = {n: detached_copy(b) for n, b in self._buffers().items()}

    def after_epoch(self, *_: Any) -> None:
        """Compare the buffers, until it was told that some have changed."""
        if self._is_told or self._first is None:
            return
        now = self._buffers()
        changed = [n for n in self._first.keys() & now if _differ(self._first[n], now[n])]
        if changed:
            self._is_told = True
            warnings.warn(
                f"training changes the buffers {listed(changed)}, which no checkpoint holds: a "
                f"resumed run begins with their initial values. Register them with "
                f"persistent=True.",
                stacklevel=2,
            )

    def _buffers(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for module in self._modules:
            names = unsaved_buffers(module)
            found |= {name: b for name, b in module.named_buffers() if name in names}
        return found


def unsaved_buffers(module: nn.Module) -> set[str]:
    """The names of the buffers with ``persistent=False``, also of those without a tensor yet."""
    return {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        for name in vars(part)["_non_persistent_buffers_set"]
    }


def _differ(first: Tensor, now: Tensor) -> bool:
    if first.shape != now.shape or first.dtype != now.dtype:
        return False
    are_nan = (first != first) & (now != now)
    return not bool(((first == now) | are_nan).all())
