"""EMA: evaluate, predict and save an exponential moving average of the weights."""

from __future__ import annotations

from fitkit.core.callback import Callback
from fitkit.core.logs import Logs
from fitkit.runtime.averaging import require_decay


class EMA(Callback):
    """Keeps an exponential moving average of the weights and buffers.

    It moves once per optimizer step. Evaluation and prediction use it, and weights that are saved
    or kept as best are it; training goes on with the model's own weights. The average belongs to
    the handler (``handler.ema``) and stays after ``fit``.

    Args:
        decay: in ``(0, 1)``; 0.999 remembers about the last thousand optimizer steps.

    References:
        Polyak and Juditsky 1992, doi:10.1137/0330046.
    """

    def __init__(self, decay: float = 0.999) -> None:
        require_decay(decay)
        self.decay = float(decay)

    def on_train_begin(self, logs: Logs) -> None:
        """Begin to average, or go on with the handler's average."""
        self.handler.start_averaging(self.decay)

    def on_optimizer_step_end(self, step: int, logs: Logs) -> None:
        """Move the average."""
        self.handler.ema.update(self.handler.module)
