"""ReduceLROnPlateau: a smaller learning rate when a value no longer gets better."""

from __future__ import annotations

from typing import ClassVar

from fitkit.callbacks.learning_rate import (
    get_learning_rate,
    require_optimizer,
    set_learning_rate,
)
from fitkit.core.callback import Callback
from fitkit.core.checks import require_count, require_number
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs
from fitkit.core.monitor import Monitor


class ReduceLROnPlateau(Callback):
    """Multiplies the learning rate when a monitored value has not improved for a while.

    Every parameter group is reduced, each from its own learning rate. Only epochs that bring a
    fresh value count.

    Args:
        monitor: a name in the epoch logs.
        factor: in ``(0, 1)``; the new learning rate is the old one times ``factor``.
        patience: checks without improvement after which it is reduced, at least 0; 0 and 1 reduce
            at the first one.
        verbose: above 0: log each reduction.
        mode: ``"min"``, ``"max"``, or ``"auto"`` by the name.
        min_delta: how much a value must beat the best one by, at least 0, in the value's units.
        cooldown: checks after a reduction that do not count, at least 0.
        min_lr: the least learning rate, at least 0.

    Attributes:
        best: the best value so far, or ``None``.
        wait: checks since the last improvement or reduction.
        cooldown_counter: checks that still do not count.

    Raises:
        ConfigurationError: an argument is out of range, or the mode of the name is not known.
    """

    order = 50
    state_fields: ClassVar[tuple[str, ...]] = ("best", "wait", "cooldown_counter")

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 0.0001,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        require_number("factor", factor)
        require_number("min_lr", min_lr)
        require_count("patience", patience, minimum=0)
        require_count("cooldown", cooldown, minimum=0)
        if not 0.0 < factor < 1.0:
            raise ConfigurationError(f"factor must lie in (0, 1), received {factor!r}.")
        if min_lr < 0:
            raise ConfigurationError(f"min_lr must be at least 0, received {min_lr!r}.")
        self._monitor = Monitor(monitor, mode, min_delta)
        self.factor = float(factor)
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = float(min_lr)
        self.best: float | None = None
        self.wait = 0
        self.cooldown_counter = 0

    @property
    def monitor(self) -> str:
        """The monitored name."""
        return self._monitor.name

    def identity(self) -> str:
        """The configuration, so that each of several gets its own state back."""
        return (
            f"{self.monitor} {self._monitor.mode} {self._monitor.min_delta} {self.factor} "
            f"{self.patience} {self.cooldown} {self.min_lr}"
        )

    def on_train_begin(self, logs: Logs) -> None:
        """Fail now where it can never work."""
        require_optimizer(self.handler.optimizer, self.name)
        self._monitor.check_possible(self.params, self.name)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Judge a fresh value."""
        value = self._monitor.read(logs, self.params, self.name)
        if value is None:
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
        if self._monitor.is_better(value, than=self.best):
            self.best = value
            self.wait = 0
        elif self.cooldown_counter == 0:
            self.wait += 1
            if self.wait >= self.patience and self._reduce(epoch):
                self.cooldown_counter = self.cooldown
                self.wait = 0

    def _reduce(self, epoch: int) -> bool:
        """Reduce each group that is above the least learning rate; whether any was."""
        changes = []
        for group in require_optimizer(self.handler.optimizer, self.name).param_groups:
            old = get_learning_rate(group)
            if old > self.min_lr:
                new = max(old * self.factor, self.min_lr)
                set_learning_rate(group, new)
                changes.append(f"{old:g} to {new:g}")
        if changes and self.verbose > 0:
            self.handler.logger.info(
                "epoch %d: %s reduces the learning rate from %s",
                epoch + 1,
                self.name,
                ", ".join(changes),
            )
        return bool(changes)
