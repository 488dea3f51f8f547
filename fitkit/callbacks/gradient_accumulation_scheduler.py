"""GradientAccumulationScheduler: changes gradient accumulation over the epochs."""

from __future__ import annotations

from collections.abc import Mapping

from fitkit.core.argument_checks import require_count
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs


class GradientAccumulationScheduler(BuiltinCallback):
    """Sets at given epochs how many batches make one optimizer step.

    It replaces the argument ``gradient_accumulation_steps`` of ``fit``.

    Args:
        scheduling: maps an epoch (from 0) to the number of batches, at least 1, per optimizer step
            from that epoch on; before the first of these epochs it is 1.

    Raises:
        ConfigurationError: ``scheduling`` is empty, or an epoch or number is out of range.

    >>> callback = GradientAccumulationScheduler({0: 8, 4: 4, 8: 1})
    """

    def __init__(self, scheduling: Mapping[int, int]) -> None:
        if not isinstance(scheduling, Mapping) or not scheduling:
            raise ConfigurationError(
                f"scheduling must be a dict of epochs and numbers of batches such as "
                f"{{0: 4, 10: 1}}, received {scheduling!r}."
            )
        for epoch, steps in scheduling.items():
            require_count("an epoch of scheduling", epoch, minimum=0)
            require_count(f"scheduling[{epoch}]", steps)
        self.scheduling = dict(sorted(scheduling.items()))

    def factor(self, epoch: int) -> int:
        """Batches per optimizer step in ``epoch``."""
        reached = [steps for first, steps in self.scheduling.items() if first <= epoch]
        return reached[-1] if reached else 1

    def on_train_begin(self, logs: Logs) -> None:
        """Set the number also after a resume inside an epoch, without ``on_epoch_begin``."""
        self.on_epoch_begin(self.handler.state.epoch, logs)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Set the number of this epoch."""
        self.handler.gradient_accumulation_steps = self.factor(epoch)
