"""RunningSum: sums rows of numbers batch by batch, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fitkit.core.device_capabilities import has_float64
from fitkit.core.errors import CheckpointError
from fitkit.core.state_placement import is_on_host

# So many rows are collected in a list and added in one operation: a step costs an append, not an
# operation on the device. A checkpoint holds the list as it is, so the order of additions, and with
# it the last bit of a sum, does not depend on when it was saved.
FOLD_AFTER = 64

AddUp = Callable[[Tensor, list[float]], Tensor]


class RunningSum:
    """The float64 sum of rows of numbers, one row per batch.

    Rows are stacked into blocks. A block is added in one operation on a device with float64; other
    blocks are added on the host, ``FOLD_AFTER`` at a time or when the sum is read. Restored sums
    move to the device of the next rows.

    Args:
        add_up: sums a block of rows, float64 of shape ``(rows, ...)``, with their weights;
            ``None``: the sum over the rows.
        at_once: add each row immediately if its device has float64.
    """

    def __init__(self, add_up: AddUp | None = None, *, at_once: bool) -> None:
        self._add_up = add_up
        self._at_once = at_once
        self.load(None, None)

    def load(
        self, total: Tensor | None, waiting: Tensor | None, weights: list[float] | None = None
    ) -> None:
        """Start from a sum and rows that are not added yet; their weights are 1 by default."""
        if weights is None:
            weights = [] if waiting is None else [1] * len(waiting)
        self._total = total
        self._blocks: list[tuple[Tensor, list[float]]] = []
        self._restored = waiting
        self._rows: list[Any] = []
        self._weights = list(weights)

    def add(self, row: Any, weight: float = 1) -> None:
        """Add one row: a number, or a tensor of the same shape as the others."""
        if self._at_once and has_float64(row.device):
            if self._weights:  # rows of a device without float64 may have another shape
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
        """Make a block of the waiting rows."""
        block: Tensor = self.waiting()
        self._blocks.append((block, self._weights))
        self._restored, self._rows, self._weights = None, [], []
        return block

    def waiting(self) -> Any:
        """The rows that are not added yet, as one tensor, or ``None``."""
        if not self._rows:
            return self._restored
        block, restored = _stacked(self._rows), self._restored
        if restored is None:
            return block
        if not has_float64(block.device):
            restored = restored.to(block.dtype)
        return torch.cat([restored.to(block.device), block])

    @property
    def num_waiting(self) -> int:
        """The number of rows that are not added yet."""
        return len(self._weights)

    @property
    def weights(self) -> list[float]:
        """The weights of the waiting rows."""
        return list(self._weights)

    def _add_blocks(self) -> None:
        blocks, self._blocks = self._blocks, []
        for block, weights in blocks:
            self._total = self._with(self._sums_of(block, weights))

    def _sums_of(self, block: Tensor, weights: list[float]) -> Tensor:
        wide = (block if has_float64(block.device) else block.cpu()).to(torch.float64)
        return wide.sum(0) if self._add_up is None else self._add_up(wide, weights)

    def _with(self, sums: Tensor) -> Tensor:
        return sums if self._total is None else sums + self._total.to(sums.device)

    def added(self) -> Tensor | None:
        """The float64 sum without the waiting rows, or ``None``."""
        self._add_blocks()
        return self._total

    def total(self) -> Tensor | None:
        """The float64 sum of all rows, or ``None``."""
        added, waiting = self.added(), self.waiting()
        return added if waiting is None else self._with(self._sums_of(waiting, self._weights))


def _stacked(rows: list[Any]) -> Tensor:
    if len(rows) == 1 and isinstance(rows[0], Tensor):
        return rows[0].unsqueeze(0)
    if all(isinstance(row, Tensor) for row in rows):
        return torch.stack(rows)
    return torch.tensor([float(row) for row in rows], dtype=torch.float64)


def weighted_sum(values: Tensor, weights: list[float]) -> Tensor:
    """The sum of ``values`` times ``weights``, without synchronization."""
    if len(set(weights)) == 1:
        return (values * weights[0]).sum()
    factors = torch.tensor(weights, dtype=torch.float64)
    if not is_on_host(values):
        factors = factors.pin_memory().to(values.device, non_blocking=True)
    return (values * factors).sum()


def is_real(value: Any, *, ndim: int) -> bool:
    """Whether ``value`` is a dense real tensor with ``ndim`` dimensions."""
    is_tensor = isinstance(value, Tensor) and value.layout is torch.strided
    return is_tensor and value.ndim == ndim and not value.is_complex()


def invalid_sums(sums: str) -> CheckpointError:
    """The exception for saved sums that are no numbers, or not as many as they must be."""
    return CheckpointError(
        f"the {sums} in the checkpoint are invalid: the file was altered, use another."
    )


def read_together(parts: list[tuple[Tensor, list[float]]]) -> list[Tensor]:
    """The sums of each meter as one vector on the host; device tensors are read in one transfer."""
    on_device = [sums for sums, _ in parts if not is_on_host(sums)]
    sizes = [len(sums) for sums in on_device]
    read = iter(torch.cat(on_device).cpu().split_with_sizes(sizes) if on_device else ())
    return [
        torch.cat(
            [
                sums if is_on_host(sums) else next(read),
                torch.tensor(host_numbers, dtype=torch.float64),
            ]
        )
        for sums, host_numbers in parts
    ]
