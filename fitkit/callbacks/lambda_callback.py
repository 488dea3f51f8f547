"""LambdaCallback: functions as hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError, did_you_mean, listed
from fitkit.core.event import Event


class LambdaCallback(BuiltinCallback):
    """Calls functions at events of the run, without a class of your own.

    Args:
        **hooks: functions by the name of a hook, with the hook's arguments; return values are
            ignored.

    Raises:
        ConfigurationError: a name is no hook, or a value no function.

    >>> losses = []
    >>> callback = LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]))
    """

    needs_all_ranks = False
    may_log = True
    batch_logs_interval = 1

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        known = [event.value for event in Event]
        for name, function in hooks.items():
            if name not in known:
                raise ConfigurationError(
                    f"LambdaCallback has no hook {name!r}; the hooks are {listed(known)}."
                    + did_you_mean(name, known)
                )
            if not callable(function):
                raise ConfigurationError(
                    f"LambdaCallback({name}=...) must be a function, received {function!r}."
                )
            setattr(self, name, function)
