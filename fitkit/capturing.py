"""What a captured step needs of a handler, and which handlers have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fitkit.callbacks.ema import EMA
from fitkit.core.errors import ConfigurationError
from fitkit.core.event import Event
from fitkit.engine.capture import Capture
from fitkit.runtime.averaging import WeightAverage
from fitkit.runtime.graphs import make_graphs

if TYPE_CHECKING:
    from fitkit.nn_handler import NNHandler


def capture_of(handler: NNHandler) -> Capture:
    """What ``engine.capture`` needs besides what every step needs.

    Raises:
        ConfigurationError: steps of this handler cannot be recorded.
    """
    parts = handler.parts
    if parts.train_step is not None:
        raise ConfigurationError(
            "capture=True records what the device does, and a set_train_step function may do "
            "anything on the host besides, which a replay would leave out: leave one of them out."
        )
    if handler.world.size > 1:
        raise ConfigurationError(
            f"capture=True is for one process, and this run has {handler.world.size}: leave it out."
        )
    depends_on_epoch = parts.loss is not None and parts.loss.pass_epoch
    return Capture(
        graphs=make_graphs(handler.device),
        average=lambda: _last_act(handler),
        beyond=lambda: handler.state.epoch if depends_on_epoch else None,
        measured=bool(parts.metrics),
        tell=handler.logger.info,
    )


def _last_act(handler: NNHandler) -> WeightAverage | None:
    """The average that moves after each step, if nobody else does anything there."""
    listeners = handler.callbacks.listeners(Event.OPTIMIZER_STEP_END)
    return handler.ema if [type(one) for one in listeners] == [EMA] else None
