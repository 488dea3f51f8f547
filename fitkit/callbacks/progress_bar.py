"""ProgressBar: where training is, for people who watch."""

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

from fitkit.callbacks.formatting import format_epoch, format_logs, format_rate, format_seconds
from fitkit.callbacks.loader_advice import LoaderAdvice
from fitkit.callbacks.pace import Pace
from fitkit.core.callback import Callback
from fitkit.core.checks import require_number
from fitkit.core.devices import reads_pinned_memory
from fitkit.core.errors import ConfigurationError
from fitkit.core.fetch_clock import FetchClock
from fitkit.core.logs import Logs
from fitkit.core.state import Phase

_KNOWN_LENGTH = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_IN_NOTEBOOK = auto.notebook_tqdm is not terminal_tqdm


class _Bar(auto.tqdm):  # type: ignore[misc]  # tqdm has no types
    monitor_interval = 0  # no watching thread: bars here are redrawn by their owner


class ProgressBar(Callback):
    """A bar for the epoch in progress, and a line for each that is done.

    Both show samples per second of training, and the share of its time that was spent waiting for
    data; the bar the time that is left in the epoch, the line that of the epochs to come. One
    warning is given where the loader takes most of the time for long.

    It draws by time and reads metrics only when it draws, so it costs next to nothing. Where
    standard error is no terminal (a log file) only the lines of finished epochs are written. It
    shows evaluations and predictions too, where it is attached to them.

    Args:
        refresh_seconds: least time between two drawings, in seconds, at least 0.

    Raises:
        ConfigurationError: the time is negative or no number.
    """

    order = 110

    def __init__(self, refresh_seconds: float = 0.1) -> None:
        require_number("refresh_seconds", refresh_seconds)
        if refresh_seconds < 0:
            raise ConfigurationError(
                f"refresh_seconds must be at least 0, received {refresh_seconds!r}."
            )
        self.refresh_seconds = float(refresh_seconds)
        self._is_training = False
        self._epoch_bar: Any = None
        self._pass_bar: Any = None
        self._started = 0.0
        self._drawn = 0.0
        self._batches = 0
        self._clock = FetchClock()
        self._advice = LoaderAdvice(self._clock, None)
        self._pace = Pace(self._clock, 0, None)

    # ---- training -------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """A resumed run goes on inside its epoch, whose beginning is not heard again."""
        self._close()
        self._is_training = True
        if self._is_main:
            pins = reads_pinned_memory(self.handler.device)
            self._clock = self.handler.time_fetching()
            self._advice = LoaderAdvice(self._clock, self.params.get("loader"), pins=pins)
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
        self._started = time.monotonic()
        self._batches = batch
        last_epoch = self.params.get("last_epoch")
        left = None if batch or last_epoch is None else last_epoch - epoch - 1
        self._pace = Pace(self._clock, self.handler.state.samples_seen, left)
        title = format_epoch(epoch, last_epoch)
        self._epoch_bar = self._open(title, self.params.get("steps"), batch)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Draw, if it is time."""
        self._batches = batch + 1
        bar = self._epoch_bar
        if bar is not None and self._batches == bar.total:
            # leaves a clean line for what other callbacks print at the epoch's end
            bar.clear()
        elif self._is_time():
            self._advise()
            if bar is not None:
                seconds = self._drawn - self._started
                pace = self._pace.speed(self.handler.state.samples_seen, seconds)
                values = format_logs(self.handler.running_logs())
                bar.set_postfix_str(", ".join(filter(None, [*pace, values])), refresh=False)
                bar.update(self._batches - bar.n)

    def _advise(self) -> None:
        sentence = self._advice.look()
        if sentence is not None:
            if self._epoch_bar is not None:
                self._epoch_bar.clear()
            warnings.warn(sentence, stacklevel=2)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """A line with all values takes the bar's place."""
        if not self._is_main:
            return
        self._advise()
        title = format_epoch(epoch, self.params.get("last_epoch"))
        costs = self.handler.saves.describe(self.handler.state.global_step)
        line = "  ".join(part for part in (self._summary(title, logs), costs) if part)
        self._finish(self._epoch_bar, line, logs)
        self._epoch_bar = None

    def on_exception(self, error: BaseException) -> None:
        """The bar stays where it was."""
        self._close()

    def on_train_end(self, logs: Logs) -> None:
        """No bar outlives training."""
        self._close()
        self._is_training = False

    # ---- evaluation and prediction --------------------------------------------------------------

    def on_test_begin(self, logs: Logs) -> None:
        """Show a bar for this pass."""
        if not self._is_training:
            self._open_pass("Evaluate")
        elif self.handler.state.phase is Phase.TEST:
            self._open_validation(0)

    def _open_validation(self, batch: int) -> None:
        if self._epoch_bar is not None:
            self._epoch_bar.clear()
        self._pass_bar = self._open("  validation", self.params.get("validation_steps"), batch)

    def _open_pass(self, title: str) -> None:
        self._close()
        self._started = time.monotonic()
        self._batches = 0
        self._pass_bar = self._open(title, None, 0)

    def _advance_pass(self, batch: int) -> None:
        if not self._is_training:
            self._batches = batch + 1
        if self._pass_bar is not None and self._is_time():
            self._pass_bar.update(batch + 1 - self._pass_bar.n)

    def on_test_batch_end(self, batch: int, logs: Logs) -> None:
        """Draw, if it is time."""
        self._advance_pass(batch)

    def on_test_end(self, logs: Logs) -> None:
        """Outside training a line with all values takes the bar's place."""
        if self._is_training:
            self._discard_pass()
        else:
            self._finish_pass("Evaluate", logs)

    def on_predict_begin(self, logs: Logs) -> None:
        """Show a bar for this pass."""
        if not self._is_training:
            self._open_pass("Predict")

    def on_predict_batch_end(self, batch: int, logs: Logs) -> None:
        """Draw, if it is time."""
        self._advance_pass(batch)

    def on_predict_end(self, logs: Logs) -> None:
        """A line takes the bar's place."""
        if not self._is_training:
            self._finish_pass("Predict", logs)

    # ---- drawing --------------------------------------------------------------------------------

    @property
    def _is_main(self) -> bool:
        return bool(self.handler.world.is_main)

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._drawn < self.refresh_seconds:
            return False
        self._drawn = now
        return True

    def _open(self, title: str, total: int | None, batch: int) -> Any:
        """A bar, or ``None`` where none is shown."""
        if not self._is_main or not (_IN_NOTEBOOK or sys.stderr.isatty()):
            return None
        self._drawn = time.monotonic()
        return _Bar(
            desc=title,
            total=total,
            initial=batch,
            unit=" batches",
            file=sys.stderr,
            dynamic_ncols=True,
            leave=True,
            mininterval=0,
            miniters=1,
            bar_format=None if total is None else _KNOWN_LENGTH,
            position=None if self._epoch_bar is None else abs(self._epoch_bar.pos),
        )

    def _summary(self, title: str, logs: Mapping[str, float]) -> str:
        seconds = time.monotonic() - self._started
        batches = f"{self._batches} batch{'' if self._batches == 1 else 'es'}"
        if self._is_training:
            pace = [*self._pace.speed(self.handler.state.samples_seen), *self._pace.left(seconds)]
        else:
            has_rate = seconds > 0 and self._batches
            pace = [f"{format_rate(self._batches / seconds)} batches/s"] if has_rate else []
        told = f" ({', '.join(pace)})" if pace else ""
        parts = [f"{title}:", f"{batches} in {format_seconds(seconds)}{told}", format_logs(logs)]
        return "  ".join(part for part in parts if part)

    def _finish(self, bar: Any, line: str, logs: Mapping[str, float]) -> None:
        """Put a line in the bar's place; a terminal would cut a bar at its width."""
        if bar is not None and _IN_NOTEBOOK:
            bar.set_postfix_str(format_logs(logs), refresh=False)
            bar.update(self._batches - bar.n)
            bar.close()
            return
        if bar is not None:
            bar.leave = False
            bar.close()
        terminal_tqdm.write(line, file=sys.stderr)

    def _finish_pass(self, title: str, logs: Mapping[str, float]) -> None:
        if self._is_main:
            self._finish(self._pass_bar, self._summary(title, logs), logs)
        self._pass_bar = None

    def _discard_pass(self) -> None:
        if self._pass_bar is not None:
            self._pass_bar.leave = False
            self._pass_bar.close()
            self._pass_bar = None

    def _close(self) -> None:
        self._discard_pass()
        if self._epoch_bar is not None:
            self._epoch_bar.update(self._batches - self._epoch_bar.n)
            self._epoch_bar.close()
            self._epoch_bar = None
