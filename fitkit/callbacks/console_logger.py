"""ConsoleLogger: one line per epoch in the handler's log."""

from __future__ import annotations

import sys

from fitkit.callbacks.formatting import format_epoch, format_logs
from fitkit.core.callback import Callback
from fitkit.core.logs import Logs


class ConsoleLogger(Callback):
    """Writes the values of each epoch as one line, through ``handler.logger`` at level INFO.

    Where nobody listens to that logger (no ``logger_mode`` and the program has not configured
    ``logging``), the line goes to standard error, so that it is not lost.
    """

    order = 100

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the line."""
        if not self.handler.world.is_main:
            return
        line = f"{format_epoch(epoch, self.params.get('last_epoch'))}: {format_logs(logs)}"
        costs = self.handler.saves.describe(self.handler.state.global_step)
        line = f"{line}  {costs}" if costs else line
        if self.handler.logger.hasHandlers():
            self.handler.logger.info(line)
        else:
            sys.stderr.write(f"{line}\n")
