"""LearningRateMonitor: logs the learning rate of every parameter group."""

from __future__ import annotations

from fitkit.callbacks.support.learning_rate import current_value, require_optimizer
from fitkit.core.callback import BuiltinCallback
from fitkit.core.logs import Logs


class LearningRateMonitor(BuiltinCallback):
    """Logs the learning rate of each parameter group as ``lr_0``, ``lr_1`` and so on.

    The value of an epoch is the learning rate of its last batch.

    Args:
        log_momentum: also log the momentum, or the first beta, as ``momentum_0`` and so on, for
            groups that have one.
    """

    needs_all_ranks = False

    def __init__(self, log_momentum: bool = False) -> None:
        self.log_momentum = bool(log_momentum)

    def on_train_begin(self, logs: Logs) -> None:
        """Raise ``ConfigurationError`` if there is no optimizer."""
        require_optimizer(self)

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Log the learning rates of this batch."""
        for index, group in enumerate(self.handler.optimizer.param_groups):
            self.log(f"lr_{index}", current_value(group["lr"]))
            momentum = group.get("momentum", group.get("betas", (None,))[0])
            if self.log_momentum and momentum is not None:
                self.log(f"momentum_{index}", current_value(momentum))
