"""ProgressBar: a tqdm bar for the current epoch and a line for each finished one."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

from tqdm.std import TqdmWarning
from tqdm.std import tqdm as terminal_tqdm

with warnings.catch_warnings():
    # a notebook without ipywidgets gets the lines of finished epochs
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm import auto

from fitkit.callbacks.support.data_bottleneck import DataBottleneck
from fitkit.callbacks.support.epoch_throughput import EpochThroughput
from fitkit.core.argument_checks import require_number
from fitkit.core.callback import BuiltinCallback
from fitkit.core.data_timer import DataTimer
from fitkit.core.device_capabilities import has_async_copies
from fitkit.core.formatting import format_epoch, format_logs, format_rate, format_seconds
from fitkit.core.logs import Logs
from fitkit.core.state import Phase

_KNOWN_LENGTH = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_IN_NOTEBOOK = auto.notebook_tqdm is not terminal_tqdm


class _Bar(auto.tqdm):  # type: ignore[misc]  # tqdm has no types
    monitor_interval = 0  # no monitor thread: the callback redraws its bars itself


class ProgressBar(BuiltinCallback):
    """Shows a bar for the current epoch, and a line for each finished one.

    Both show samples per second of training and the share of its time spent waiting for data. The
    bar also shows the time left in the epoch, the line the time left for the remaining epochs. If
    data loading takes most of the time, one warning says how to make it faster. The bar is redrawn
    by time and reads metrics only then. If standard error is not a terminal (a log file), only the
    lines are written. Attached to ``evaluate`` or ``predict``, it shows their progress too.

    Args:
        refresh_seconds: least time between two redraws, in seconds, at least 0.

    Raises:
        ConfigurationError: ``refresh_seconds`` is negative or not a number.
    """

    needs_all_ranks = False
    order = 110

    def __init__(self, refresh_seconds: float = 0.1) -> None:
        require_number("refresh_seconds", refresh_seconds, minimum=0)
        self.refresh_seconds = float(refresh_seconds)
        self._is_training = False
        self._epoch_bar: Any = None
        self._pass_bar: Any = None
        self._start_time = 0.0
        self._last_draw = 0.0
        self._num_batches = 0
        self._timer = DataTimer()
        self._bottleneck = DataBottleneck(self._timer, None)
        self._throughput = EpochThroughput(self._timer, 0, None)

    # ---- training -------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """Show the bars of a run that is resumed inside an epoch, without ``on_epoch_begin``."""
        self._close()
        self._is_training = True
        if self._is_main:
            self._timer = self.handler.session.time_data_loading()
            helps, loader = has_async_copies(self.handler.device), self.params.get("loader")
            self._bottleneck = DataBottleneck(self._timer, loader, pinning_helps=helps)
        state = self.handler.state
        if state.phase is Phase.TRAIN:
            self._open_epoch(state.epoch, state.batch)
        elif state.phase is not Phase.BEGIN:
            self._open_epoch(state.epoch, self.params.get("steps") or 0)
        if state.phase is Phase.TEST:
            self._open_validation(state.batch)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Show an empty bar."""
        self._open_epoch(epoch, 0)

    def _open_epoch(self, epoch: int, batch: int) -> None:
        self._close()
        self._start_time = time.monotonic()
        self._num_batches = batch
        last_epoch = self.params.get("last_epoch")
        left = None if batch or last_epoch is None else last_epoch - epoch - 1
        self._throughput = EpochThroughput(self._timer, self.handler.state.samples_seen, left)
        title = format_epoch(epoch, last_epoch)
        self._epoch_bar = self._open(title, self.params.get("steps"), batch)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Redraw if it is time."""
        self._num_batches = batch + 1
        bar = self._epoch_bar
        if bar is not None and self._num_batches == bar.total:
            # leaves a clean line for what other callbacks print at the end of the epoch
            bar.clear()
        elif self._is_redraw_due():
            self._warn_of_bottleneck()
            if bar is not None:
                seconds = self._last_draw - self._start_time
                speed = self._throughput.speed(self.handler.state.samples_seen, seconds)
                values = format_logs(self.handler.running_logs())
                bar.set_postfix_str(", ".join(filter(None, [*speed, values])), refresh=False)
                bar.update(self._num_batches - bar.n)

    def _warn_of_bottleneck(self) -> None:
        message = self._bottleneck.check()
        if message is not None:
            if self._epoch_bar is not None:
                self._epoch_bar.clear()
            warnings.warn(message, stacklevel=2)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Replace the bar by a line with all values."""
        if not self._is_main:
            return
        self._warn_of_bottleneck()
        title = format_epoch(epoch, self.params.get("last_epoch"))
        saving = self.handler.saves.describe(self.handler.state.global_step)
        self._replace_by_line(self._epoch_bar, title, logs, saving)
        self._epoch_bar = None

    def on_exception(self, error: BaseException) -> None:
        """Leave the bar as it is."""
        self._close()

    def on_train_end(self, logs: Logs) -> None:
        """Close the bars."""
        self._close()
        self._is_training = False

    # ---- evaluation and prediction --------------------------------------------------------------

    def on_test_begin(self, logs: Logs) -> None:
        """Show a bar for this pass."""
        if not self._is_training:
            self._open_pass(self._evaluation_title())
        elif self.handler.state.phase is Phase.TEST:
            self._open_validation(0)

    def on_predict_begin(self, logs: Logs) -> None:
        """Show a bar for this pass."""
        if not self._is_training:
            self._open_pass("Predict")

    def _open_validation(self, batch: int) -> None:
        if self._epoch_bar is not None:
            self._epoch_bar.clear()
        name = self.handler.state.evaluation_set
        steps = self.params.get("validation_sets", {}).get(
            name, self.params.get("validation_steps")
        )
        self._pass_bar = self._open(f"  validation {name}".rstrip(), steps, batch)

    def _evaluation_title(self) -> str:
        return f"Evaluate {self.handler.state.evaluation_set}".rstrip()

    def _open_pass(self, title: str) -> None:
        self._close()
        self._start_time = time.monotonic()
        self._num_batches = 0
        self._pass_bar = self._open(title, None, 0)

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        """Redraw if it is time."""
        if not self._is_training:
            self._num_batches = batch + 1
        if self._pass_bar is not None and self._is_redraw_due():
            self._pass_bar.update(batch + 1 - self._pass_bar.n)

    def on_predict_batch_end(self, batch: int, logs: Logs) -> None:
        """Redraw if it is time."""
        self.on_test_batch_end(batch, logs)

    def on_test_end(self, logs: Logs) -> None:
        """Outside of training, replace the bar by a line with all values."""
        if self._is_training:
            self._discard_pass()
        else:
            self._finish_pass(self._evaluation_title(), logs)

    def on_predict_end(self, logs: Logs) -> None:
        """Replace the bar by a line."""
        if not self._is_training:
            self._finish_pass("Predict", logs)

    # ---- drawing --------------------------------------------------------------------------------

    @property
    def _is_main(self) -> bool:
        return bool(self.handler.world.is_main)

    def _is_redraw_due(self) -> bool:
        now = time.monotonic()
        if now - self._last_draw < self.refresh_seconds:
            return False
        self._last_draw = now
        return True

    def _open(self, title: str, total: int | None, batch: int) -> Any:
        """A bar; ``None`` on other ranks and where standard error is not a terminal."""
        if not self._is_main or not (_IN_NOTEBOOK or sys.stderr.isatty()):
            return None
        self._last_draw = time.monotonic()
        return _Bar(
            desc=title,
            total=total,
            initial=batch,
            unit=" batches",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0,
            miniters=1,
            bar_format=None if total is None else _KNOWN_LENGTH,
            position=None if self._epoch_bar is None else abs(self._epoch_bar.pos),
        )

    def _replace_by_line(
        self, bar: Any, title: str, logs: Mapping[str, float], saving: str = ""
    ) -> None:
        """Close the bar and print a line; in a notebook the bar stays, with the values."""
        if bar is not None and _IN_NOTEBOOK:
            bar.set_postfix_str(format_logs(logs), refresh=False)
            bar.update(self._num_batches - bar.n)
            bar.close()
            return
        if bar is not None:
            bar.leave = False
            bar.close()
        parts = [f"{title}:", self._duration(), format_logs(logs), saving]
        terminal_tqdm.write("  ".join(filter(None, parts)), file=sys.stderr)

    def _duration(self) -> str:
        seconds, number = time.monotonic() - self._start_time, self._num_batches
        if self._is_training:
            speed = self._throughput.speed(self.handler.state.samples_seen)
            speed += self._throughput.time_left(seconds)
        else:
            speed = [f"{format_rate(number / seconds)} batches/s"] if seconds > 0 and number else []
        in_brackets = f" ({', '.join(speed)})" if speed else ""
        batches = f"{number} batch{'' if number == 1 else 'es'}"
        return f"{batches} in {format_seconds(seconds)}{in_brackets}"

    def _finish_pass(self, title: str, logs: Mapping[str, float]) -> None:
        if self._is_main:
            self._replace_by_line(self._pass_bar, title, logs)
        self._pass_bar = None

    def _discard_pass(self) -> None:
        if self._pass_bar is not None:
            self._pass_bar.leave = False
            self._pass_bar.close()
            self._pass_bar = None

    def _close(self) -> None:
        self._discard_pass()
        if self._epoch_bar is not None:
            self._epoch_bar.update(self._num_batches - self._epoch_bar.n)
            self._epoch_bar.close()
            self._epoch_bar = None
