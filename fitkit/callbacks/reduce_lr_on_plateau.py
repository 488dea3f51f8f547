"""ReduceLROnPlateau: reduces the learning rate when a monitored value has stopped improving."""

from __future__ import annotations

from fitkit.callbacks.support.learning_rate import (
    require_optimizer,
    scale_schedule,
    set_learning_rate,
)
from fitkit.core.argument_checks import require_count, require_number
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs
from fitkit.core.monitor import Monitor


class ReduceLROnPlateau(BuiltinCallback):
    """Multiplies the learning rate by ``factor`` when a monitored value has stopped improving.

    Every parameter group is reduced from its own learning rate, and a scheduler goes on from there.
    A check is an epoch that logs a new value.

    Args:
        monitor: a name in the epoch logs.
        factor: in ``(0, 1)``; the new learning rate is the old one times ``factor``.
        patience: checks without improvement after which the learning rate is reduced, at least 0;
            0 and 1 reduce at the first one.
        verbose: above 0: log each reduction.
        mode: ``"min"``, ``"max"``, or ``"auto"`` by the name.
        min_delta: least difference to the best value that counts as an improvement, at least 0, in
            the units of the value.
        cooldown: checks after a reduction that do not count, at least 0.
        min_lr: the lowest learning rate, at least 0.
        strict: ``False``: wait for a value that only some epochs log; ``True`` waits where an
            earlier epoch has logged it or a callback of yours may, else raises ``MonitorError``.
        name: key of the state in a checkpoint, to tell several callbacks of one class apart.

    Attributes:
        best: the best value so far, or ``None``.
        wait: checks since the last improvement or reduction.
        cooldown_counter: checks that still do not count.

    Raises:
        ConfigurationError: an argument is out of range, or the mode of the name is not known.

    >>> callback = ReduceLROnPlateau("val_loss", factor=0.5, patience=3, min_lr=1e-5)
    """

    has_fixed_state_types = True
    order = 50
    state_fields = ("best", "wait", "cooldown_counter")
    optional_numbers = ("best",)

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
        *,
        strict: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        require_number("factor", factor)
        require_number("min_lr", min_lr, minimum=0)
        require_count("patience", patience, minimum=0)
        require_count("cooldown", cooldown, minimum=0)
        if not 0.0 < factor < 1.0:
            raise ConfigurationError(f"factor must lie in (0, 1), received {factor!r}.")
        self._monitor = Monitor(monitor, mode, min_delta, strict=strict)
        self.monitor = monitor
        self.strict = strict
        self.mode = self._monitor.mode
        self.min_delta = self._monitor.min_delta
        self.factor = float(factor)
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = float(min_lr)
        self.best: float | None = None
        self.wait = 0
        self.cooldown_counter = 0

    def identity(self) -> str:
        """What is monitored, and whether lower or higher is better."""
        return f"{self.monitor} {self.mode}"

    def on_train_begin(self, logs: Logs) -> None:
        """Raise an error if there is no optimizer, or if this ``fit`` cannot log the value."""
        require_optimizer(self)
        self._monitor.check_possible(self.params, self.name)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Check a new value."""
        value = self._monitor.read(logs, self.params, self.name, self.handler)
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
        """Reduce the groups above the lowest learning rate; returns whether there were any."""
        changes, factors = [], []
        groups = self.handler.optimizer.param_groups
        for group in groups:
            old = float(group["lr"])
            if old > self.min_lr:
                new = max(old * self.factor, self.min_lr)
                set_learning_rate(group, new)
                changes.append(f"{old:g} to {new:g}")
                factors.append(new / old)
            else:
                factors.append(1.0)
        if changes:
            scale_schedule(self.handler.scheduler, groups, factors)
        if changes and self.verbose > 0:
            self.handler.logger.info(
                "epoch %d: %s reduces the learning rate from %s",
                epoch + 1,
                self.name,
                ", ".join(changes),
            )
        return bool(changes)
