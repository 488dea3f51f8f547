"""TerminateOnNaN: stop when the training loss is no longer a finite number."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fitkit.core.callback import Callback
from fitkit.core.checks import require_count
from fitkit.core.devices import is_on_host
from fitkit.core.logs import Logs


class TerminateOnNaN(Callback):
    """Stops training when the loss of a batch is NaN or infinite.

    A loss on the CPU is looked at after each batch. On an accelerator looking means waiting for it,
    so what was seen is gathered there and looked at every ``check_every_n_batches`` batches of an
    epoch and at its end.

    Args:
        check_every_n_batches: batches between two looks at an accelerator, at least 1.

    Attributes:
        all_finite: a boolean scalar on the accelerator: whether all losses since the last look were
            finite; ``None`` right after one.

    Raises:
        ConfigurationError: the number is out of range.
    """

    state_fields: ClassVar[tuple[str, ...]] = ("all_finite",)

    def __init__(self, check_every_n_batches: int = 50) -> None:
        require_count("check_every_n_batches", check_every_n_batches)
        self.check_every_n_batches = check_every_n_batches
        self.all_finite: Tensor | None = None

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Look at the loss, or keep it in mind."""
        loss: Any = logs.raw("loss")
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
            self._look(f"at or before batch {batch + 1}")

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Look at what is left of the epoch."""
        self._look("in the last batches", epoch)

    def _look(self, where: str, epoch: int | None = None) -> None:
        if self.all_finite is not None and not bool(self.all_finite):
            self._stop(f"the training loss is not finite {where}", epoch)
        self.all_finite = None

    def _stop(self, why: str, epoch: int | None = None) -> None:
        epoch = self.handler.state.epoch if epoch is None else epoch
        self.handler.state.stop(f"{self.name}: {why} of epoch {epoch + 1}", non_finite=True)
