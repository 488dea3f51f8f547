"""EMA: evaluate, predict and save an exponential moving average of the weights."""

from __future__ import annotations

from fitkit.core.callback import BuiltinCallback
from fitkit.core.logs import Logs
from fitkit.runtime.weight_ema import require_decay


class EMA(BuiltinCallback):
    """Keeps an exponential moving average of the weights and buffers.

    The average is updated after each optimizer step. Evaluation, prediction and saved weights use
    it, while training continues with the model's own weights. It belongs to the handler
    (``handler.ema``) and remains after ``fit``.

    Args:
        decay: in ``(0, 1)``; 0.999 averages over about the last thousand optimizer steps.

    References:
        Polyak and Juditsky 1992, doi:10.1137/0330046.

    >>> callback = EMA(decay=0.99)
    """

    def __init__(self, decay: float = 0.999) -> None:
        require_decay(decay)
        self.decay = float(decay)

    def on_train_begin(self, logs: Logs) -> None:
        """Start an average, or continue the handler's."""
        self.handler.weights.start_ema(self.decay)

    def on_optimizer_step_end(self, step: int, logs: Logs) -> None:
        """Update the average."""
        self.handler.weights.update_ema()
