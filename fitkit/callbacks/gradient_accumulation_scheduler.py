"""GradientAccumulationScheduler: larger effective batches from some epoch on."""

from __future__ import annotations

from collections.abc import Mapping

from fitkit.core.callback import Callback
from fitkit.core.checks import require_count
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs


class GradientAccumulationScheduler(Callback):
    """Changes over the epochs how many batches make one optimizer step.

    It takes the place of ``gradient_accumulation_steps`` of ``fit``.

    Args:
        scheduling: for an epoch (from 0) the number of batches, at least 1, per optimizer step from
            that epoch on; before the first of them it is 1.

    Raises:
        ConfigurationError: it is empty, or an epoch or number is out of range.

    >>> callback = GradientAccumulationScheduler({0: 8, 4: 4, 8: 1})
    """

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        if not isinstance(scheduling, Mapping) or not scheduling:
            raise ConfigurationError(
                f"scheduling must be a dict of epochs and numbers of batches such as "
                f"{{0: 4, 10: 1}}, received {scheduling!r}."
            )
        for epoch, factor in scheduling.items():
            require_count("an epoch of scheduling", epoch, minimum=0)
            require_count(f"scheduling[{epoch}]", factor)
        self.scheduling = dict(sorted(scheduling.items()))

    def factor(self, epoch: int) -> int:
        """Batches per optimizer step in ``epoch``."""
        reached = [number for first, number in self.scheduling.items() if first <= epoch]
        return reached[-1] if reached else 1

    def on_train_begin(self, logs: Logs) -> None:
        """A resume may land inside an epoch, whose beginning is not heard again."""
        self._apply(self.handler.state.epoch)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Set the number of this epoch."""
        self._apply(epoch)

    def _apply(self, epoch: int) -> None:
        self.handler.gradient_accumulation_steps = self.factor(epoch)
