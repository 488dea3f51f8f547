"""A trial: a handler trains for the sake of what is seen, and is as it was afterwards."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.data.spec import DataSpec, require_rereadable
from fitkit.fitting import run_fit
from fitkit.options import FitOptions, as_options
from fitkit.unchanged import unchanged
from fitkit.unfinished import Unfinished

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler

# What of ``fit`` decides how a step is computed.
OPEN = (
    "precision",
    "gradient_accumulation_steps",
    "gradient_clipping_norm",
    "gradient_clipping_value",
    "ema_decay",
    "compile",
)


def trial_options(given: Mapping[str, Any], **own: Any) -> FitOptions:
    """The arguments of the fits of a trial.

    Args:
        given: by the user; those in ``OPEN`` make sense.
        **own: what the trial sets.

    Raises:
        ConfigurationError: an argument is not among them, or out of range.
    """
    for name in given:
        if name not in OPEN:
            known = {field.name for field in fields(FitOptions)}
            why = "the trial sets it itself" if name in known else "fit has no such argument"
            raise ConfigurationError(
                f"{name} cannot be passed, as {why}: of the arguments of fit it takes "
                f"{listed(OPEN)}." + did_you_mean(name, OPEN)
            )
    always = {"callbacks": (), "preemption_signals": (signal.SIGTERM,), "progress_bar": False}
    return as_options(**{**always, **given, **own})


@contextmanager
def trial(handler: NNHandler, data: DataSpec, what: str) -> Iterator[None]:
    """Inside ``with`` a bare handler: no callbacks, metrics, schedule or validation.

    Args:
        handler: what is tried.
        data: what it trains on.
        what: the verb, for error sentences.

    Raises:
        ConfigurationError: a fit is under way, or the data can be read only once.
    """
    if handler.unfinished.run is not None:
        raise ConfigurationError(
            f"{what} was called while a fit of the same handler is under way: call it before or "
            f"after that one."
        )
    require_rereadable(data, what)
    with unchanged(handler, [data]):
        for callback in handler.callbacks:
            if callback is not handler.history:
                handler.callbacks.remove(callback)
        parts = handler.parts
        parts.train_data, parts.validation_data = data, None
        parts.scheduler, parts.metrics = None, {}
        yield


def run_trial(handler: NNHandler, options: FitOptions) -> None:
    """Train inside ``trial``, each time as if it were the first call.

    Raises:
        KeyboardInterrupt: after Ctrl-C, to which a ``fit`` answers with its history.
    """
    handler.unfinished, handler.callbacks.departed = Unfinished(), []
    run_fit(handler, options)
    if handler.history.interrupted:
        raise KeyboardInterrupt
