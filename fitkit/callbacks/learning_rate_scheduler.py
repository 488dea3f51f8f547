"""LearningRateScheduler: a learning rate that is a function of the epoch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from fitkit.callbacks.support.learning_rate import require_optimizer, set_learning_rate
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs, as_float


class LearningRateScheduler(BuiltinCallback):
    """Sets the learning rate at the beginning of each epoch.

    Args:
        schedule: ``schedule(epoch)`` or ``schedule(epoch, lr)`` returns the learning rate of epoch
            ``epoch`` (from 0), at least 0; which of the two is called depends on its signature.
            ``lr`` is the current learning rate. It is called for each parameter group.
        verbose: above 0: log each learning rate.

    Raises:
        ConfigurationError: ``schedule`` cannot be called with an epoch.

    >>> callback = LearningRateScheduler(lambda epoch: 0.1 * 0.5 ** epoch)
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        self._takes_lr = _takes_lr(schedule)
        self.schedule = schedule
        self.verbose = verbose

    def on_train_begin(self, logs: Logs) -> None:
        """Raise ``ConfigurationError`` if there is no optimizer."""
        require_optimizer(self)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Set the learning rate of every parameter group."""
        rates = []
        for group in self.handler.optimizer.param_groups:
            rate = self._scheduled_rate(epoch, float(group["lr"]))
            set_learning_rate(group, rate)
            rates.append(f"{rate:g}")
        if self.verbose > 0:
            self.handler.logger.info(
                "epoch %d: %s sets the learning rate to %s", epoch + 1, self.name, ", ".join(rates)
            )

    def _scheduled_rate(self, epoch: int, current: float) -> float:
        returned: Any = self.schedule(epoch, current) if self._takes_lr else self.schedule(epoch)
        rate = as_float("learning rate returned by the schedule", returned)
        if not (math.isfinite(rate) and rate >= 0):
            raise ConfigurationError(
                f"the schedule of {self.name} must return a learning rate of at least 0, received "
                f"{returned!r} for epoch {epoch}."
            )
        return rate


def _takes_lr(schedule: Any) -> bool:
    """Whether ``schedule`` takes an epoch and a learning rate, or only an epoch."""
    try:
        signature = inspect.signature(schedule)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"schedule must be a function (epoch) -> lr or (epoch, lr) -> lr, received "
            f"{schedule!r}: wrap it, for instance in lambda epoch: ...."
        ) from error
    for arguments in ((0, 0.1), (0,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    raise ConfigurationError(
        f"schedule must take (epoch) or (epoch, lr), received a function with the signature "
        f"{signature}: bind its other arguments, for instance with functools.partial."
    )
