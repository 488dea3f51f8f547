"""FitOptions: the arguments of one call of fit, checked."""

from __future__ import annotations

import datetime
import math
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from fitkit.callbacks.ema import EMA
from fitkit.callbacks.progress_bar import ProgressBar
from fitkit.callbacks.timer import Timer
from fitkit.core.argument_checks import require_count, require_number
from fitkit.core.callback import Callback
from fitkit.core.errors import ConfigurationError
from fitkit.data.own_part import AUTO, require_split
from fitkit.data.sample_count import SampleCount, SizeOf
from fitkit.handler.torch_compile import require_compile_options


@dataclass(frozen=True)
class FitOptions:
    """The arguments of one call of ``fit``, checked; ``NNHandler.fit`` describes them.

    Raises:
        ConfigurationError: a value is out of range or of a wrong type, or two exclude each other.
    """

    train_data: Any = None
    epochs: int = 1
    callbacks: Iterable[Callback] = ()
    validation_data: Any = None
    validation_split: float = 0.0
    validate_every: int = 1
    batch_size: int | None = None
    shuffle: bool | None = None
    num_samples: SizeOf | None = None
    split: str = AUTO
    drop_last: bool | None = None
    collate_fn: Callable[[Any], Any] | None = None
    steps_per_epoch: int | None = None
    validation_steps: int | None = None
    grad: bool = False
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
    preemption_signals: Iterable[signal.Signals] = (signal.SIGTERM,)

    def __post_init__(self) -> None:
        given: Any = self.callbacks
        if not isinstance(given, (Callback, Iterable)) or isinstance(given, (str, bytes)):
            raise ConfigurationError(
                f"callbacks must be a list of Callback instances, received {given!r}."
            )
        # an iterator can be read only once, and these are read several times
        callbacks = (given,) if isinstance(given, Callback) else tuple(given)
        object.__setattr__(self, "callbacks", callbacks)
        object.__setattr__(self, "preemption_signals", tuple(self.preemption_signals))
        require_count("epochs", self.epochs, minimum=0)
        for name in ("validate_every", "gradient_accumulation_steps"):
            require_count(name, getattr(self, name))
        for name in ("batch_size", "steps_per_epoch", "validation_steps", "max_steps"):
            require_count(name, getattr(self, name), optional=True)
        _require_loader_arguments(self.drop_last, self.collate_fn)
        if not isinstance(self.fast_dev_run, bool):
            require_count("fast_dev_run", self.fast_dev_run, minimum=0)
        _require_share_or_count("overfit_batches", self.overfit_batches)
        for name in ("gradient_clipping_norm", "gradient_clipping_value"):
            _require_positive(name, getattr(self, name))
        SampleCount(self.num_samples)
        require_split(self.split)
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

    def loader_kwargs(self) -> dict[str, Any]:
        """The given arguments of the training data's ``DataLoader``."""
        given = {"drop_last": self.drop_last, "collate_fn": self.collate_fn}
        return {name: value for name, value in given.items() if value is not None}

    def for_fast_dev_run(self) -> FitOptions:
        """These options with one epoch of ``fast_dev_run`` batches."""
        steps = int(self.fast_dev_run)
        limits = {"steps_per_epoch": steps, "validation_steps": steps}
        return replace(self, epochs=1, validate_every=1, **limits)  # type: ignore[arg-type]

    def extra_callbacks(self, attached: Iterable[Callback]) -> list[Callback]:
        """Callbacks that arguments stand for, except where one of the kind is attached."""
        kinds = {kind for callback in attached for kind in type(callback).__mro__}
        extra: list[Callback] = []
        if self.ema_decay and EMA not in kinds:
            extra.append(EMA(self.ema_decay))
        if self.max_time is not None:
            extra.append(Timer(self.max_time))
        if self.progress_bar and ProgressBar not in kinds:
            extra.append(ProgressBar())
        return extra


def _require_share_or_count(name: str, value: Any) -> None:
    if value is None or (type(value) is int and value >= 1):
        return
    if type(value) is not float or not 0.0 < value <= 1.0:
        raise ConfigurationError(
            f"{name} must be a number of batches of at least 1 (an int), or a share of them above "
            f"0 and at most 1.0 (a float), received {value!r}."
        )


def _require_loader_arguments(drop_last: Any, collate_fn: Any) -> None:
    if drop_last is not None and not isinstance(drop_last, bool):
        raise ConfigurationError(f"drop_last must be True, False or None, received {drop_last!r}.")
    if collate_fn is not None and not callable(collate_fn):
        raise ConfigurationError(
            f"collate_fn must be a function that makes a batch of a list of samples, received "
            f"{collate_fn!r}."
        )


def _require_positive(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ConfigurationError(f"{name} must be a number above 0 or None, received {value!r}.")
    if math.isinf(value):
        raise ConfigurationError(
            f"{name} must be finite, received {value!r}: pass None for no clipping."
        )
