"""ConsoleLogger: one line per epoch in the handler's log."""

from __future__ import annotations

import sys

from fitkit.core.callback import BuiltinCallback
from fitkit.core.formatting import format_epoch, format_logs
from fitkit.core.logs import Logs


class ConsoleLogger(BuiltinCallback):
    """Logs the values of each epoch as one line, through ``handler.logger`` at level INFO.

    If that logger has no handlers (no ``logger_mode``, and the program has not configured
    ``logging``), the line goes to standard error.
    """

    needs_all_ranks = False
    order = 100

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Log the line."""
        if not self.handler.world.is_main:
            return
        line = f"{format_epoch(epoch, self.params.get('last_epoch'))}: {format_logs(logs)}"
        saving = self.handler.saves.describe(self.handler.state.global_step)
        line = f"{line}  {saving}" if saving else line
        if self.handler.logger.hasHandlers():
            self.handler.logger.info(line)
        else:
            sys.stderr.write(f"{line}\n")
