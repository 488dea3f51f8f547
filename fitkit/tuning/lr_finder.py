"""The learning-rate range test: train with a growing rate, and find where the loss falls most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitkit.callbacks.support.plots import plot_lr_sweep
from fitkit.core.argument_checks import require_count, require_number
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError
from fitkit.core.html import curve, table
from fitkit.core.logs import Logs
from fitkit.handler.base_handler import BaseHandler
from fitkit.training.build_run import training_specs
from fitkit.tuning.trial import run_trial, trial, trial_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIN_POINTS = 5


@dataclass(frozen=True)
class LearningRateSweep:
    """The result of a learning-rate range test.

    Attributes:
        lrs: the learning rate of each batch, growing.
        losses: the loss of each batch.
        smoothed: their running mean, from which the others follow.
        suggestion: the rate at which the smoothed loss fell most per decade; ``None`` if it never
            fell. A schedule that lowers the rate later can begin a few times higher.
        diverged: whether the test ended because the loss had grown too far.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    diverged: bool

    def __repr__(self) -> str:
        if self.suggestion is None:
            best = "no suggestion: the loss never fell"
        else:
            best = f"suggestion={self.suggestion:.2e}"
        ends = f"{self.lrs[0]:.1e} to {self.lrs[-1]:.1e}" if self.lrs else "none"
        end = ", diverged" if self.diverged else ""
        return f"LearningRateSweep({len(self.lrs)} rates, {ends}{end}; {best})"

    def _repr_html_(self) -> str:
        """The curve over the logarithm of the rate, for a notebook."""
        return table([[repr(self)], [curve({"loss": self.losses, "smoothed": self.smoothed})]])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Plot the losses over the rates, and mark the suggestion.

        Args:
            path: also write the figure there; the suffix decides the format.

        Returns:
            the figure; no window shows it.

        Raises:
            ConfigurationError: matplotlib is not installed.
        """
        return plot_lr_sweep(self.lrs, self.losses, self.smoothed, self.suggestion, path)


class _Sweep(BuiltinCallback):
    """Sets the rate of each batch and records its loss, until the loss has grown too far."""

    batch_logs_interval = 1

    def __init__(self, lrs: list[float], smoothing: float, divergence: float) -> None:
        self._lrs = lrs
        self._smoothing, self._divergence = smoothing, divergence
        self._mean = 0.0
        self._relative: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.diverged = False

    def on_train_begin(self, logs: Logs) -> None:
        rates = [float(group["lr"]) for group in self.handler.optimizer.param_groups]
        # groups keep their rates relative to the first one's
        self._relative = [rate / rates[0] if rates[0] else 1.0 for rate in rates]

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        # the ranks stop together, which may be a few batches after the last rate
        lr = self._lrs[min(len(self.losses), len(self._lrs) - 1)]
        groups = self.handler.optimizer.param_groups
        for group, relative in zip(groups, self._relative, strict=True):
            group["lr"] = lr * relative

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if "loss" not in logs:  # the batch was skipped, or had no weight
            return
        loss = float(logs["loss"])
        self.losses.append(loss)
        self._mean = self._smoothing * self._mean + (1.0 - self._smoothing) * loss
        smoothed = self._mean / (1.0 - self._smoothing ** len(self.losses))
        self.smoothed.append(smoothed)
        best = min(self.smoothed)
        limit = best + (self._divergence - 1.0) * abs(best)
        if not math.isfinite(loss) or (len(self.losses) > 1 and smoothed > limit):
            self.diverged = True
            self.handler.state.stop("the loss has diverged, as a range test makes it")


def find_learning_rate(
    handler: BaseHandler,
    train_data: Any,
    min_lr: float,
    max_lr: float,
    num_steps: int,
    batch_size: int | None,
    smoothing: float,
    divergence: float,
    options: Mapping[str, Any],
) -> LearningRateSweep:
    """Train with growing rates; ``NNHandler.find_learning_rate`` describes the arguments."""
    _require_arguments(min_lr, max_lr, num_steps, smoothing, divergence)
    growth = math.log(max_lr / min_lr) / (num_steps - 1)
    lrs = [float(min_lr * math.exp(growth * step)) for step in range(num_steps)]
    sweep = _Sweep(lrs, smoothing, divergence)
    settings = {"epochs": num_steps, "max_steps": num_steps, "callbacks": [sweep]}
    fit_options = trial_options(options, train_data=train_data, batch_size=batch_size, **settings)
    handler.parts.require_trainable()
    if handler.optimizer is None:
        raise ConfigurationError("no optimizer is set: call handler.set_optimizer(...) before.")
    data, _ = training_specs(handler, fit_options)
    with trial(handler, data, "find_learning_rate"):
        run_trial(handler, fit_options)
    losses, smoothed = tuple(sweep.losses), tuple(sweep.smoothed)
    lrs = lrs[: len(losses)]
    suggestion = steepest(lrs, sweep.smoothed)
    return LearningRateSweep(tuple(lrs), losses, smoothed, suggestion, sweep.diverged)


def _require_arguments(
    min_lr: Any, max_lr: Any, num_steps: Any, smoothing: Any, divergence: Any
) -> None:
    require_number("min_lr", min_lr)
    require_number("max_lr", max_lr)
    require_count("num_steps", num_steps, minimum=_MIN_POINTS)
    if not 0 < min_lr < max_lr:
        raise ConfigurationError(
            f"a range test needs 0 < min_lr < max_lr, received {min_lr!r} and {max_lr!r}."
        )
    require_number("smoothing", smoothing)
    require_number("divergence", divergence)
    if not 0 <= smoothing < 1 or divergence <= 1:
        raise ConfigurationError(
            f"smoothing must lie in [0, 1) and divergence be above 1, received {smoothing!r} and "
            f"{divergence!r}."
        )


def steepest(lrs: list[float], losses: list[float]) -> float | None:
    """The rate at which the loss falls most per decade, before its minimum.

    The first tenth is left out: the running mean of few batches is too noisy.

    >>> steepest([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.9, 1.0, 0.9, 3.0])
    0.01
    """
    finite = [value for value in losses if math.isfinite(value)]
    if len(finite) < _MIN_POINTS or len(finite) < len(losses) - 1:
        return None
    lowest = finite.index(min(finite))
    slopes = {
        (finite[i] - finite[i - 1]) / math.log(lrs[i] / lrs[i - 1]): lrs[i]
        for i in range(max(len(finite) // 10, 1), lowest + 1)
    }
    falling = [slope for slope in slopes if slope < 0]
    return slopes[min(falling)] if falling else None
