"""A trial: a handler trains for a measurement, and is as it was afterwards."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.data.spec import DataSpec, require_rereadable
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.fit_session import FitSession
from fitkit.handler.preserve_state import preserve_handler_state
from fitkit.training.fit import run_fit
from fitkit.training.options import FitOptions

# Arguments of ``fit`` that decide how a step is computed.
STEP_OPTIONS = (
    "precision",
    "gradient_accumulation_steps",
    "gradient_clipping_norm",
    "gradient_clipping_value",
    "ema_decay",
    "compile",
)


def trial_options(given: Mapping[str, Any], **own: Any) -> FitOptions:
    """The arguments of ``fit`` in a trial: the user's, and those that the trial sets itself.

    Raises:
        ConfigurationError: an argument is not one of them, or out of range.
    """
    for name in given:
        if name not in STEP_OPTIONS:
            known = {field.name for field in fields(FitOptions)}
            why = "the trial sets it itself" if name in known else "fit has no such argument"
            raise ConfigurationError(
                f"{name} cannot be passed, as {why}: of the arguments of fit it takes "
                f"{listed(STEP_OPTIONS)}." + did_you_mean(name, STEP_OPTIONS)
            )
    always = {"callbacks": (), "preemption_signals": (signal.SIGTERM,), "progress_bar": False}
    return FitOptions(**{**always, **given, **own})


@contextmanager
def trial(handler: BaseHandler, data: DataSpec, verb: str) -> Iterator[None]:
    """Inside ``with`` the handler trains on ``data`` only: no callbacks, scheduler, validation.

    Raises:
        ConfigurationError: a fit is in progress, or the data can be read only once.
    """
    handler.session.require_idle(verb)
    require_rereadable(data, verb)
    with preserve_handler_state(handler, [data]):
        for callback in handler.callbacks:
            if callback is not handler.history:
                handler.callbacks.remove(callback)
        parts = handler.parts
        parts.train_data, parts.validation_data = data, {}
        parts.scheduler, parts.metrics = None, {}
        yield


def run_trial(handler: BaseHandler, options: FitOptions) -> None:
    """Train inside ``trial``, each time as in a first call of ``fit``.

    Raises:
        KeyboardInterrupt: after Ctrl-C, where ``fit`` itself returns the history.
    """
    handler.session = FitSession(handler.data_world, handler.parallel)
    handler.callbacks.detached_states = []
    run_fit(handler, options)
    if handler.history.interrupted:
        raise KeyboardInterrupt
