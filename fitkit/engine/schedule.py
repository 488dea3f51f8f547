"""Schedule: when a learning-rate scheduler steps, and with what."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fitkit.core.errors import ConfigurationError, MonitorError, did_you_mean, listed

INTERVALS = ("epoch", "step")


class Schedule:
    """A scheduler with its interval.

    Args:
        scheduler: the scheduler, or ``None`` for none.
        interval: ``"epoch"`` or ``"step"`` (optimizer steps).
        monitor: what a plateau scheduler watches; ``None``: ``val_loss`` where there is validation,
            else ``loss``.
        has_validation: whether this call validates.

    Raises:
        MonitorError: it watches a value of validation, which there is not.
    """

    def __init__(
        self,
        scheduler: LRScheduler | None,
        *,
        interval: str,
        monitor: str | None,
        has_validation: bool,
    ) -> None:
        self._scheduler = scheduler
        self._is_plateau = isinstance(scheduler, ReduceLROnPlateau)
        self._each_step = interval == "step"
        self._monitor = monitor or ("val_loss" if has_validation else "loss")
        self._has_stepped = False
        self._waits = self._monitor.startswith("val_")
        if self._is_plateau and self._waits and not has_validation:
            raise MonitorError(
                f"the scheduler monitors {self._monitor!r}, but this fit has no validation: pass "
                f"validation_data= or validation_split=, call set_val_loader, or set the scheduler "
                f"with another monitor=."
            )

    def after_optimizer_step(self) -> None:
        """Step a scheduler that counts optimizer steps."""
        if self._scheduler is not None and self._each_step:
            self._step(self._scheduler)

    def after_epoch(self, logs: Mapping[str, Any]) -> None:
        """Step a scheduler that counts epochs; the plateau kind only with a fresh value.

        Raises:
            MonitorError: the monitored value is not logged and cannot come later.
        """
        if self._scheduler is None or self._each_step:
            return
        if not self._is_plateau:
            self._step(self._scheduler)
        elif self._monitor in logs:
            self._step(self._scheduler, logs[self._monitor])
        elif not self._waits or any(name.startswith("val_") for name in logs):
            raise MonitorError(
                f"the scheduler monitors {self._monitor!r}, which is not logged; logged are "
                f"{listed(logs)}. Pass monitor= to set_scheduler."
                + did_you_mean(self._monitor, logs)
            )

    def _step(self, scheduler: Any, *value: float) -> None:
        if self._has_stepped:
            scheduler.step(*value)
            return
        with warnings.catch_warnings():
            # torch warns if this process has not stepped the optimizer yet; after a resume at the
            # end of an epoch, or if a loss scaler skipped every step, that is as it should be
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler")
            scheduler.step(*value)
        self._has_stepped = True


def check_interval(scheduler_class: type[Any], interval: str, monitor: str | None) -> None:
    """Fail on an interval or monitor that the scheduler cannot have.

    Raises:
        ConfigurationError: it cannot.
    """
    plateau = issubclass(scheduler_class, ReduceLROnPlateau)
    if interval not in INTERVALS:
        raise ConfigurationError(
            f"interval must be one of {listed(INTERVALS)}, received {interval!r}."
        )
    if plateau and interval == "step":
        raise ConfigurationError(
            "ReduceLROnPlateau needs a value that epochs bring: use interval='epoch'."
        )
    if monitor is not None and not plateau:
        raise ConfigurationError(
            f"monitor= is for ReduceLROnPlateau, {scheduler_class.__name__} takes none: leave it "
            f"out."
        )
