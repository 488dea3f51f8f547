"""Schedule: steps a learning-rate scheduler at its interval."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fitkit.core.errors import ConfigurationError, MonitorError, listed

INTERVALS = ("epoch", "step")


class Schedule:
    """Steps a scheduler, if there is one, at its interval: ``"epoch"`` or ``"step"``.

    ``monitor`` names the value for ``ReduceLROnPlateau``. ``read`` returns the value in the logs of
    an epoch, ``None`` where it is still to come, or raises ``MonitorError``.
    """

    def __init__(
        self,
        scheduler: LRScheduler | None,
        *,
        interval: str,
        monitor: str = "loss",
        read: Callable[[Mapping[str, Any]], float | None] = lambda logs: logs["loss"],
    ) -> None:
        self._scheduler = scheduler
        self._is_plateau = isinstance(scheduler, ReduceLROnPlateau)
        self._each_step = interval == "step"
        self._monitor, self._read = monitor, read
        self._has_stepped = False
        self._is_waiting = False  # for the value of the epoch that ends

    def after_optimizer_step(self) -> None:
        """Step a scheduler that counts optimizer steps."""
        if self._scheduler is not None and self._each_step:
            self._step(self._scheduler)

    def after_epoch(self, logs: Mapping[str, Any]) -> None:
        """Step a scheduler that counts epochs; ``ReduceLROnPlateau`` only if its value is logged.

        Raises:
            MonitorError: the monitored value is not logged, and cannot be expected later.
        """
        if self._scheduler is None or self._each_step:
            return
        if not self._is_plateau:
            self._step(self._scheduler)
            return
        value = self._read(logs)
        self._is_waiting = value is None
        if value is not None:
            self._step(self._scheduler, value)

    def check_hooks(self, logs: Mapping[str, Any]) -> None:
        """Raise ``MonitorError`` if a hook of ``on_epoch_end`` has logged the monitored value."""
        if self._is_waiting and self._monitor in logs:
            raise MonitorError(
                f"the scheduler monitors {self._monitor!r}, which a callback logs in on_epoch_end, "
                f"after the schedule has stepped: log it in an earlier hook such as on_test_end, "
                f"or use the callback ReduceLROnPlateau."
            )

    def _step(self, scheduler: Any, *value: float) -> None:
        if self._has_stepped:
            scheduler.step(*value)
            return
        with warnings.catch_warnings():
            # torch warns if this process has not stepped the optimizer yet, which is correct after
            # a resume at the end of an epoch, or where the loss scaler skipped every step; or if it
            # lost its counter of steps, as in a copy of a handler
            for begin in ("Detected call of .lr_scheduler", "Seems like .optimizer.step"):
                warnings.filterwarnings("ignore", begin)
            scheduler.step(*value)
        self._has_stepped = True


def warn_of_interval(scheduler: Any, interval: str, epochs: int, steps: int) -> None:
    """Warn of a schedule as long as the run by the other interval than the one it steps at.

    ``epochs`` and ``steps`` are what this ``fit`` trains: epochs, and optimizer steps.
    """
    name = next((name for name in ("total_steps", "T_max") if hasattr(scheduler, name)), None)
    own, other = (epochs, steps) if interval == "epoch" else (steps, epochs)
    if name is not None and own != other == getattr(scheduler, name):
        right = "step" if interval == "epoch" else "epoch"
        warnings.warn(
            f"{type(scheduler).__name__} has {name}={other} and steps once per {interval}, {own} "
            f"times in this fit: pass interval={right!r} to set_scheduler, or {name}={own}.",
            stacklevel=2,
        )


def require_interval(scheduler_class: type[Any], interval: str, monitor: str | None) -> None:
    """Raise ``ConfigurationError`` unless the scheduler can have this interval and monitor."""
    is_plateau = issubclass(scheduler_class, ReduceLROnPlateau)
    if interval not in INTERVALS:
        raise ConfigurationError(
            f"interval must be one of {listed(INTERVALS)}, received {interval!r}."
        )
    if is_plateau and interval == "step":
        raise ConfigurationError(
            "ReduceLROnPlateau needs a value that is logged once per epoch: pass interval='epoch'."
        )
    if monitor is not None and not is_plateau:
        raise ConfigurationError(
            f"monitor= is for ReduceLROnPlateau, {scheduler_class.__name__} takes none: leave it "
            f"out."
        )
