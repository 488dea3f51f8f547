"""FitOptions: the arguments of one call of fit, checked."""

from __future__ import annotations

import datetime
import math
import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from fitkit.callbacks.ema import EMA
from fitkit.callbacks.progress_bar import ProgressBar
from fitkit.callbacks.timer import Timer
from fitkit.compiled_steps import require_compile_options
from fitkit.core.callback import Callback
from fitkit.core.checks import require_count, require_number
from fitkit.core.errors import ConfigurationError


@dataclass(frozen=True)
class FitOptions:
    """The arguments of one call of ``fit``, checked; ``NNHandler.fit`` describes them."""

    train_data: Any = None
    epochs: int = 1
    callbacks: tuple[Callback, ...] = ()
    validation_data: Any = None
    validation_split: float = 0.0
    validate_every: int = 1
    batch_size: int | None = None
    shuffle: bool | None = None
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    precision: str | None = None
    gradient_accumulation_steps: int = 1
    gradient_clipping_norm: float | None = None
    gradient_clipping_value: float | None = None
    ema_decay: float = 0.0
    compile: bool | dict[str, Any] = False
    seed: int | None = None
    progress_bar: bool = True
    save_on_last_epoch: bool = True
    max_steps: int | None = None
    max_time: float | str | datetime.timedelta | None = None
    fast_dev_run: bool | int = False
    overfit_batches: int | float | None = None
    resume: Any = None
    preemption_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)

    def __post_init__(self) -> None:
        require_count("epochs", self.epochs, minimum=0)
        for name in ("validate_every", "gradient_accumulation_steps"):
            require_count(name, getattr(self, name))
        for name in ("batch_size", "steps_per_epoch", "validation_steps", "max_steps"):
            require_count(name, getattr(self, name), optional=True)
        if not isinstance(self.fast_dev_run, bool):
            require_count("fast_dev_run", self.fast_dev_run, minimum=0)
        _require_share_or_count("overfit_batches", self.overfit_batches)
        for name in ("gradient_clipping_norm", "gradient_clipping_value"):
            _require_positive(name, getattr(self, name))
        require_number("ema_decay", self.ema_decay)
        require_compile_options(self.compile)
        require_number("validation_split", self.validation_split)
        if self.seed is not None:
            require_count("seed", self.seed, minimum=0)
        for number in self.preemption_signals:
            if number not in signal.valid_signals() or number == signal.SIGINT:
                raise ConfigurationError(
                    f"preemption_signals must be signals such as signal.SIGTERM or signal.SIGUSR1, "
                    f"received {number!r}."
                )
        if self.validation_split and self.validation_data is not None:
            raise ConfigurationError(
                "validation_split and validation_data were both given: pass one of them."
            )

    @property
    def compile_options(self) -> dict[str, Any] | None:
        """The options of ``torch.compile``; ``None``: nothing is compiled."""
        if isinstance(self.compile, dict):
            return self.compile
        return {} if self.compile else None

    def for_fast_dev_run(self) -> FitOptions:
        """As many batches of training and of validation as were asked for, in one epoch."""
        steps = int(self.fast_dev_run)
        limits = {"steps_per_epoch": steps, "validation_steps": steps}
        return replace(self, epochs=1, validate_every=1, **limits)  # type: ignore[arg-type]

    def extra_callbacks(self, attached: Iterable[Callback]) -> list[Callback]:
        """The callbacks that arguments stand for, as far as they are not attached already."""
        present = list(attached)
        extra: list[Callback] = []
        if self.ema_decay and not _has(present, EMA):
            extra.append(EMA(self.ema_decay))
        if self.max_time is not None:
            extra.append(Timer(self.max_time))
        if self.progress_bar and not _has(present, ProgressBar):
            extra.append(ProgressBar())
        return extra


def as_options(**arguments: Any) -> FitOptions:
    """The arguments of ``fit`` as options.

    Raises:
        ConfigurationError: ``callbacks`` is not a list of callbacks, or a value is out of range.
    """
    callbacks = arguments.pop("callbacks")
    if isinstance(callbacks, Callback):
        callbacks = (callbacks,)
    if not isinstance(callbacks, Iterable) or isinstance(callbacks, (str, bytes)):
        raise ConfigurationError(
            f"callbacks must be a list of Callback instances, received {callbacks!r}."
        )
    signals = tuple(arguments.pop("preemption_signals"))
    options = FitOptions(callbacks=tuple(callbacks), preemption_signals=signals, **arguments)
    return options.for_fast_dev_run() if options.fast_dev_run else options


def _has(callbacks: Iterable[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _require_share_or_count(name: str, value: Any) -> None:
    if value is None or (type(value) is int and value >= 1):
        return
    if type(value) is not float or not 0.0 < value <= 1.0:
        raise ConfigurationError(
            f"{name} must be a number of batches of at least 1 (an int), or a share of them above "
            f"0 and at most 1.0 (a float), received {value!r}."
        )


def _require_positive(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigurationError(f"{name} must be a number above 0 or None, received {value!r}.")
    if math.isinf(value):
        raise ConfigurationError(f"{name} must be finite; for no clipping pass None.")
