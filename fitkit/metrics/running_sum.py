"""RunningSum: rows of numbers added up batch by batch, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fitkit.core.devices import has_float64, is_on_host

# Values wait in a list and are added in one operation when so many have come: a step then costs an
# append, not an addition on the device. Saving keeps the list as it is, so that the order of
# additions, and with it the last bit, does not depend on when a checkpoint was made.
FOLD_AFTER = 64

AddUp = Callable[[Tensor, list[int]], Tensor]


class RunningSum:
    """The float64 sum of rows of numbers, one row per batch, that does not wait for the device.

    Rows are stacked into blocks, and a block is added in one operation where its device has
    float64. Blocks of another device are added on the host, ``FOLD_AFTER`` of them at a time or
    when the sum is read. What a checkpoint held goes to the device of the rows that come after it.

    Args:
        add_up: the sums of a block of rows, float64 of shape ``(rows, ...)``, with their weights;
            ``None``: the sum over the rows.
        at_once: add each row when it comes, where its device has float64.
    """

    def __init__(self, add_up: AddUp | None = None, *, at_once: bool) -> None:
        self._add_up = add_up
        self._at_once = at_once
        self.load(None, None)

    def load(
        self, total: Tensor | None, waiting: Tensor | None, weights: list[int] | None = None
    ) -> None:
        """Begin with what was added before: its sum, and rows that are yet to be added.

        Args:
            total: the sum.
            waiting: the rows, as one tensor.
            weights: their weights; ``None``: each is 1.
        """
        if weights is None:
            weights = [] if waiting is None else [1] * len(waiting)
        self._total = total
        self._blocks: list[tuple[Tensor, list[int]]] = []
        self._restored = waiting
        self._rows: list[Any] = []
        self._weights = list(weights)

    def add(self, row: Any, weight: int = 1) -> None:
        """Add one row: a number, or a tensor of the shape of the others."""
        if self._at_once and has_float64(row.device):
            if self._weights:  # rows of a device without float64 may have another form
                self._close_block()
                self._add_blocks()
            wide = row.to(torch.float64)
            sums = wide if self._add_up is None else self._add_up(wide[None], [weight])
            self._total = self._with(sums)
            return
        self._rows.append(row)
        self._weights.append(weight)
        if len(self._weights) >= FOLD_AFTER:
            block = self._close_block()
            if has_float64(block.device) or len(self._blocks) >= FOLD_AFTER:
                self._add_blocks()

    def _close_block(self) -> Tensor:
        """Make a block of the rows that wait."""
        block: Tensor = self.waiting()
        self._blocks.append((block, self._weights))
        self._restored, self._rows, self._weights = None, [], []
        return block

    def waiting(self) -> Any:
        """The rows that are yet to be added, as one tensor; ``None`` without any."""
        if not self._rows:
            return self._restored
        block = _stacked(self._rows)
        if self._restored is None:
            return block
        restored = self._restored
        if not has_float64(block.device):
            restored = restored.to(block.dtype)
        return torch.cat([restored.to(block.device), block])

    @property
    def weights(self) -> list[int]:
        """Their weights."""
        return list(self._weights)

    def _add_blocks(self) -> None:
        blocks, self._blocks = self._blocks, []
        for block, weights in blocks:
            self._total = self._with(self._sums_of(block, weights))

    def _sums_of(self, block: Tensor, weights: list[int]) -> Tensor:
        wide = (block if has_float64(block.device) else block.cpu()).to(torch.float64)
        return wide.sum(0) if self._add_up is None else self._add_up(wide, weights)

    def _with(self, sums: Tensor) -> Tensor:
        return sums if self._total is None else sums + self._total.to(sums.device)

    def added(self) -> Tensor | None:
        """The sum of the rows that no longer wait, float64; ``None`` without any."""
        self._add_blocks()
        return self._total

    def total(self) -> Tensor | None:
        """The sum of all rows, float64; ``None`` without any."""
        added, waiting = self.added(), self.waiting()
        return added if waiting is None else self._with(self._sums_of(waiting, self._weights))


def _stacked(rows: list[Any]) -> Tensor:
    if len(rows) == 1 and isinstance(rows[0], Tensor):
        return rows[0].unsqueeze(0)
    if all(isinstance(row, Tensor) for row in rows):
        return torch.stack(rows)
    return torch.tensor([float(row) for row in rows], dtype=torch.float64)


def weighted_sum(values: Tensor, weights: list[int]) -> Tensor:
    """The sum of ``values`` times ``weights``; a device does not have to be waited for."""
    if len(set(weights)) == 1:
        return (values * weights[0]).sum()
    factors = torch.tensor(weights, dtype=torch.float64)
    if not is_on_host(values):
        factors = factors.pin_memory().to(values.device, non_blocking=True)
    return (values * factors).sum()


def is_vector(value: Any, *, ndim: int) -> bool:
    """Whether ``value`` is a real tensor with so many dimensions."""
    is_tensor = isinstance(value, Tensor) and value.layout is torch.strided
    return is_tensor and value.ndim == ndim and not value.is_complex()
