"""TerminateOnNaN: stops training when the loss is NaN or infinite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fitkit.core.argument_checks import require_count
from fitkit.core.callback import BuiltinCallback
from fitkit.core.logs import Logs
from fitkit.core.state_placement import is_on_host


class TerminateOnNaN(BuiltinCallback):
    """Stops training when the loss of a batch is NaN or infinite.

    A loss on the CPU is checked after each batch. Reading a loss from an accelerator would wait for
    the device, so the results of the checks stay there and are read every
    ``check_every_n_batches`` batches and at the end of an epoch.

    Args:
        check_every_n_batches: batches between two reads from an accelerator, at least 1.

    Attributes:
        all_finite: a boolean scalar on the accelerator: whether all losses since the last read were
            finite; ``None`` right after a read.

    Raises:
        ConfigurationError: the number is out of range.
    """

    has_fixed_state_types = True
    state_fields = ("all_finite",)

    def __init__(self, check_every_n_batches: int = 50) -> None:
        require_count("check_every_n_batches", check_every_n_batches)
        self.check_every_n_batches = check_every_n_batches
        self.all_finite: Tensor | None = None

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Check the loss."""
        # of this rank, without communication: a stop ends all ranks
        loss: Any = logs.of_this_rank.get("loss")
        if loss is None:  # the batch was skipped, or had no weight
            return
        if not isinstance(loss, Tensor) or is_on_host(loss):
            value = float(loss)
            if not math.isfinite(value):
                self._stop(f"the training loss is {value} in batch {batch + 1}")
            return
        is_finite = torch.isfinite(loss)
        if self.all_finite is not None:
            is_finite = is_finite & self.all_finite.to(loss.device)
        self.all_finite = is_finite
        if (batch + 1) % self.check_every_n_batches == 0:
            self._read(f"at or before batch {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Read the checks of the last batches."""
        self._read("in the last batches", epoch)

    def _read(self, where: str, epoch: int | None = None) -> None:
        if self.all_finite is not None and not bool(self.all_finite):
            self._stop(f"the training loss is not finite {where}", epoch)
        self.all_finite = None

    def _stop(self, reason: str, epoch: int | None = None) -> None:
        epoch = self.handler.state.epoch if epoch is None else epoch
        self.handler.state.stop(f"{self.name}: {reason} of epoch {epoch + 1}", non_finite=True)
