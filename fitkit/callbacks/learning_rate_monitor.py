"""LearningRateMonitor: the learning rate of every parameter group in the logs."""

from __future__ import annotations

from fitkit.callbacks.learning_rate import require_optimizer, value_now
from fitkit.core.callback import Callback
from fitkit.core.logs import Logs


class LearningRateMonitor(Callback):
    """Logs the learning rate of each parameter group as ``lr_0``, ``lr_1`` and so on.

    The value of an epoch is the one that its last batch was trained with.

    Args:
        log_momentum: also log the momentum, or the first beta, as ``momentum_0`` and so on, for
            groups that have one.
    """

    def __init__(self, log_momentum: bool = False) -> None:
        self.log_momentum = bool(log_momentum)

    def on_train_begin(self, logs: Logs) -> None:
        """Fail now where it can never work."""
        require_optimizer(self.handler.optimizer, self.name)

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Log what this batch is trained with."""
        for index, group in enumerate(self.handler.optimizer.param_groups):
            self.log(f"lr_{index}", value_now(group["lr"]))
            momentum = group.get("momentum", group.get("betas", (None,))[0])
            if self.log_momentum and momentum is not None:
                self.log(f"momentum_{index}", value_now(momentum))
