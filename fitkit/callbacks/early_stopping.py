"""EarlyStopping: stops training when a monitored value has stopped improving."""

from __future__ import annotations

import math
from typing import Any

from fitkit.core.argument_checks import require_count, require_number
from fitkit.core.callback import BuiltinCallback
from fitkit.core.formatting import format_value
from fitkit.core.logs import Logs
from fitkit.core.monitor import Monitor


class EarlyStopping(BuiltinCallback):
    """Stops training when a monitored value has not improved for ``patience`` checks.

    A check is an epoch that logs a new value: with ``validate_every=5`` it is every fifth epoch.

    Args:
        monitor: a name in the epoch logs.
        min_delta: least difference to the best value that counts as an improvement, at least 0, in
            the units of the value.
        patience: checks without improvement after which training stops, at least 0; 0 and 1 stop
            at the first one.
        mode: ``"min"``, ``"max"``, or ``"auto"`` by the name.
        baseline: an improvement resets ``wait`` only if it is better than this value.
        restore_best_weights: when training ends, also by an error, load the weights of the best
            value (with EMA, the averaged ones). After an interrupt (Ctrl-C, an error)
            ``handler.save`` writes the trained weights, so that the run can be resumed.
        start_from_epoch: the first epoch (from 0) that is checked.
        stopping_threshold: stop as soon as the value is better than this.
        divergence_threshold: stop as soon as the value is worse than this.
        check_finite: stop as soon as the value is NaN or infinite, in any epoch.
        strict: ``False``: wait for a value that only some epochs log; ``True`` waits where an
            earlier epoch has logged it or a callback of yours may, else raises ``MonitorError``.
        name: key of the state in a checkpoint, to tell several callbacks of one class apart.

    Attributes:
        best: the best value so far, or ``None``.
        best_epoch: its epoch, from 0, or ``None``.
        wait: checks since the last improvement.
        stopped_epoch: the epoch (from 0) in which this callback stopped training, or ``None``.
        best_weights: the weights of the best value if they are to be restored, or ``None``.

    Raises:
        ConfigurationError: an argument is out of range, or the mode of the name is not known.

    >>> callback = EarlyStopping("val_accuracy", patience=3, restore_best_weights=True)
    """

    has_fixed_state_types = True
    order = 50
    state_fields = ("best", "best_epoch", "wait", "stopped_epoch", "best_weights")
    optional_numbers = ("best", "best_epoch", "stopped_epoch")

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
        *,
        strict: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        require_count("patience", patience, minimum=0)
        require_count("start_from_epoch", start_from_epoch, minimum=0)
        self._monitor = Monitor(monitor, mode, min_delta, strict=strict)
        self._without_delta = Monitor(monitor, self._monitor.mode)
        self.monitor = monitor
        self.strict = strict
        self.mode = self._monitor.mode
        self.min_delta = self._monitor.min_delta
        self.patience = patience
        self.baseline = baseline
        self.restore_best_weights = bool(restore_best_weights)
        self.start_from_epoch = start_from_epoch
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.check_finite = bool(check_finite)
        for name in ("baseline", "stopping_threshold", "divergence_threshold"):
            if getattr(self, name) is not None:
                require_number(name, getattr(self, name))
        self._is_interrupted = False
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.wait = 0
        self.stopped_epoch: int | None = None
        self.best_weights: dict[str, Any] | None = None

    def identity(self) -> str:
        """What is monitored, and whether lower or higher is better."""
        return f"{self.monitor} {self.mode}"

    def on_train_begin(self, logs: Logs) -> None:
        """Raise ``MonitorError`` if the value cannot be logged in this ``fit``."""
        self._is_interrupted = False
        self._monitor.check_possible(self.params, self.name)
        if not self.handler.state.stopping:  # a resume with more patience has withdrawn the stop
            self.stopped_epoch = None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Check a new value."""
        value = self._monitor.read(logs, self.params, self.name, self.handler)
        if value is None:
            return
        if self.check_finite and not math.isfinite(value):
            self._stop(epoch, f"{self.monitor!r} is {value}", non_finite=True)
        elif epoch >= self.start_from_epoch:
            self._check(epoch, value)

    def _check(self, epoch: int, value: float) -> None:
        is_improvement = self._monitor.is_better(value, than=self.best)
        self.wait += 1
        if is_improvement:
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self.best_weights = self.handler.weights.evaluated()
            if self.baseline is None or self._monitor.is_better(value, than=self.baseline):
                self.wait = 0
        crossed = self._crossed_threshold(value)
        if crossed is not None:
            self._stop(epoch, crossed)
        elif not is_improvement and self.wait >= self.patience:
            self._stop(epoch, self._no_improvement())

    def _crossed_threshold(self, value: float) -> str | None:
        reached, diverged = self.stopping_threshold, self.divergence_threshold
        current = f"{self.monitor!r} is {format_value(value)}"
        if reached is not None and self._without_delta.is_better(value, than=reached):
            return f"{current}, better than the stopping threshold {reached:g}"
        if diverged is not None and self._without_delta.is_better(diverged, than=value):
            return f"{current}, worse than the divergence threshold {diverged:g}"
        return None

    def _no_improvement(self) -> str:
        checks = f"{self.wait} check{'' if self.wait == 1 else 's'}"
        if self.best is None or self.best_epoch is None:
            return f"{self.monitor!r} was not a finite number in {checks}"
        goal = f"{format_value(self.best)} (epoch {self.best_epoch + 1})"
        if self.baseline is not None and not self._monitor.is_better(self.best, than=self.baseline):
            goal = f"the baseline {self.baseline:g}"
        return f"{self.monitor!r} did not improve on {goal} in {checks}"

    def _stop(self, epoch: int, reason: str, *, non_finite: bool = False) -> None:
        self.stopped_epoch = epoch
        self.handler.state.stop(f"{self.name}: {reason}", non_finite=non_finite)

    def on_exception(self, error: BaseException) -> None:
        """Remember that training was interrupted."""
        self._is_interrupted = True

    def on_train_end(self, logs: Logs) -> None:
        """Restore the best weights; checkpoints of an interrupted run keep the trained ones."""
        if self.restore_best_weights and self.best_weights is not None:
            self.handler.weights.restore(self.best_weights, keep_trained=self._is_interrupted)
