"""HTMLReport: an HTML page with curves and checkpoints, updated during training."""

from __future__ import annotations

import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage import atomic_write
from fitkit.core.argument_checks import require_count, require_number, require_path
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import Preempted, SaveError
from fitkit.core.logs import Logs
from fitkit.reporting.gather import gather_live
from fitkit.reporting.live_run import live_state, run_facts
from fitkit.reporting.page import render

_MOST_SAVES = 500


class HTMLReport(BuiltinCallback):
    """Writes an HTML page with curves, checkpoints, configuration and a timeline of the run.

    The page is one file that needs no network. During training it reloads itself, unless a chart
    is being used. Rank 0 replaces it atomically; if that fails, it warns and training continues.

    Args:
        path: the file, such as ``"runs/report.html"``; its folder is created with it.
        every_n_epochs: write the page every n epochs, at least 1; it is also written at the
            beginning and end of training.
        refresh_seconds: least time between two writes, and between two reloads in the browser, at
            least 0; with 0 the page is always written, and reloads every second.
        name: key of the state in a checkpoint, to tell several callbacks of one class apart.

    Attributes:
        saves: the last 500 checkpoints of the run: when, which, and whether it was the best.
        seen: for each saver the last step and best value that are in ``saves``.
        facts: the arguments of ``fit`` and the machine, as of the last epoch.

    Raises:
        ConfigurationError: an argument cannot be used.

    >>> callback = HTMLReport("runs/report.html", every_n_epochs=5)
    """

    needs_all_ranks = False
    has_fixed_state_types = True
    order = 110
    spans_fits = True
    writes_files = True
    state_fields = ("saves", "seen", "facts")

    def __init__(
        self,
        path: str | os.PathLike[str] = "report.html",
        every_n_epochs: int = 1,
        refresh_seconds: float = 5.0,
        *,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        require_path("path", path)
        require_count("every_n_epochs", every_n_epochs)
        require_number("refresh_seconds", refresh_seconds, minimum=0)
        self.path = Path(path)
        self.every_n_epochs = every_n_epochs
        self.refresh_seconds = refresh_seconds
        self.saves: list[dict[str, Any]] = []
        self.seen: dict[str, list[Any]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self._savers: list[tuple[str, Saver]] = []
        self._last_write = -math.inf
        self._end_reason: str | None = None

    def identity(self) -> str:
        """The file's name without its folder, which may be moved, unless it has a name."""
        return self.identity_of_file(self.path.name)

    # ---- hooks ----------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """Write the page, so that it can be opened at once."""
        callbacks = self.handler.callbacks
        savers = [saver for saver in callbacks if isinstance(saver, Saver) and saver.state_dict()]
        savers.sort(key=lambda saver: (saver.name, saver.identity()))  # whatever the order given
        self._savers = [(callbacks.key_of(saver), saver) for saver in savers]
        self._end_reason = None
        self._write(running=True)

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Record the saves since the batch before."""
        self._record_saves()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the page if it is due."""
        self._record_saves()
        self.facts = run_facts(self.handler, self.params)
        is_due = time.monotonic() - self._last_write >= self.refresh_seconds
        if is_due and (epoch + 1) % self.every_n_epochs == 0:
            self._write(running=True)

    def on_exception(self, error: BaseException) -> None:
        """Note how training ended."""
        self._end_reason = f"ended by {type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            self._end_reason = "interrupted"
        elif isinstance(error, Preempted):
            self._end_reason = f"ended by signal {error.signal_number}; it can be resumed"

    def on_train_end(self, logs: Logs) -> None:
        """Write the page a last time."""
        self._record_saves()
        self._write(running=False)
        self._savers = []

    # ---- the page -------------------------------------------------------------------------------

    def _record_saves(self) -> None:
        for key, saver in self._savers:
            last_step, last_best = self.seen.get(key, [-1, None])
            if saver.last_path is None or saver.last_step == last_step:
                continue
            state, steps = self.handler.state, self.params.get("steps")
            best = getattr(saver, "best", None)
            name = os.path.relpath(saver.folder / saver.last_path, self.path.parent)
            save = {
                "name": Path(name).as_posix(),
                "epoch": state.epoch + (state.batch / steps if steps else 0),
                "step": saver.last_step,
                "is_best": best != last_best
                and getattr(saver, "best_path", None) == saver.last_path,
            }
            self.seen = {**self.seen, key: [saver.last_step, best]}
            self.saves = [*self.saves, save][-_MOST_SAVES:]

    def _write(self, *, running: bool) -> None:
        if not self.handler.world.is_main:
            return
        status = {
            "running": running,
            "text": self._end_reason or self.handler.state.stop_reason,
            "last_epoch": self.params.get("last_epoch"),
            "reload_seconds": max(self.refresh_seconds, 1.0) if running else None,
        }
        recorded = {"saves": self.saves, "facts": run_facts(self.handler, self.params)}
        page = render(gather_live(live_state(self.handler), recorded, self.path, status))
        try:
            atomic_write.replace(self.path, lambda file: file.write(page.encode("utf-8")))
        except SaveError as error:
            warnings.warn(f"the report was not written: {error}", RuntimeWarning, stacklevel=2)
        self._last_write = time.monotonic()
