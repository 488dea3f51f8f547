"""HTMLReport: a page that shows the run while it is under way."""

from __future__ import annotations

import math
import os
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

from fitkit.checkpointing import files
from fitkit.checkpointing.saver import Saver
from fitkit.core.callback import Callback
from fitkit.core.checks import require_count, require_number
from fitkit.core.errors import ConfigurationError, Preempted, SaveError
from fitkit.core.logs import Logs
from fitkit.reporting.gather import gather_live
from fitkit.reporting.live import facts, outline
from fitkit.reporting.page import render

_MOST_SAVES = 500


class HTMLReport(Callback):
    """Writes a page with curves, checkpoints, configuration and a time line, as the run goes.

    The page is one file that needs no network. While the run is under way it loads itself anew,
    unless it is being looked at closely. Each writing replaces it as a whole, on the main process;
    one that fails is a warning, and training goes on.

    Args:
        path: the file, such as ``"runs/report.html"``; its folder is made when it is written.
        every_n_epochs: how many epochs lie between two writings, at least 1; the beginning and the
            end of training always write.
        refresh_seconds: the least time between two writings, and how often the page loads itself;
            at least 0. 0 writes every time, and the page loads itself each second.

    Attributes:
        saves: the last 500 checkpoints that savers of the run wrote: when, which, and whether it
            was the best.
        seen: for each saver what was last noted of it.
        facts: the arguments of ``fit`` and the machine, of the last epoch that was trained.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    order = 110
    spans_fits = True
    writes_files = True
    state_fields: ClassVar[tuple[str, ...]] = ("saves", "seen", "facts")

    def __init__(
        self,
        path: str | os.PathLike[str] = "report.html",
        every_n_epochs: int = 1,
        refresh_seconds: float = 5.0,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)) or not str(path):
            raise ConfigurationError(f"path must be the file to write, received {path!r}.")
        require_count("every_n_epochs", every_n_epochs)
        require_number("refresh_seconds", refresh_seconds)
        if not (refresh_seconds >= 0 and math.isfinite(refresh_seconds)):
            raise ConfigurationError(
                f"refresh_seconds must be at least 0 and finite, received {refresh_seconds!r}."
            )
        self.path = Path(path)
        self.every_n_epochs = every_n_epochs
        self.refresh_seconds = refresh_seconds
        self.saves: list[dict[str, Any]] = []
        self.seen: dict[str, list[Any]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self._savers: list[tuple[str, Saver]] = []
        self._written_at = -math.inf
        self._how_it_ended: str | None = None

    def identity(self) -> str:
        """The file's name; its folder may be moved."""
        return self.path.name

    # ---- hooks ----------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """Write the page, so that it can be opened at once."""
        callbacks = self.handler.callbacks
        savers = [one for one in callbacks if isinstance(one, Saver) and one.state_dict()]
        savers.sort(key=lambda one: (one.name, one.identity()))  # whatever the order of the list
        self._savers = [(callbacks.key_of(saver), saver) for saver in savers]
        self._how_it_ended = None
        self._write(running=True)

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Note what was saved since the batch before."""
        self._note_saves()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the page if it is due."""
        self._note_saves()
        self.facts = facts(self.handler, self.params)
        is_due = time.monotonic() - self._written_at >= self.refresh_seconds
        if is_due and (epoch + 1) % self.every_n_epochs == 0:
            self._write(running=True)

    def on_exception(self, error: BaseException) -> None:
        """Remember how training ended."""
        self._how_it_ended = f"ended by {type(error).__name__}: {error}"
        if isinstance(error, KeyboardInterrupt):
            self._how_it_ended = "interrupted"
        elif isinstance(error, Preempted):
            self._how_it_ended = f"ended by signal {error.signal_number}; it can be resumed"

    def on_train_end(self, logs: Logs) -> None:
        """Write the page as it stays."""
        self._note_saves()
        self._write(running=False)
        self._savers = []

    # ---- the page -------------------------------------------------------------------------------

    def _note_saves(self) -> None:
        for key, saver in self._savers:
            if saver.last_path is None or self.seen.get(key, [-1])[0] == saver.last_step:
                continue
            score = getattr(saver, "best", None)
            is_new = self.seen.get(key, [-1, None])[1] != score
            is_best = is_new and getattr(saver, "best_path", None) == saver.last_path
            self.seen = {**self.seen, key: [saver.last_step, score]}
            self.saves = [*self.saves, self._save(saver, is_best=is_best)][-_MOST_SAVES:]

    def _save(self, saver: Saver, *, is_best: bool) -> dict[str, Any]:
        name = os.path.relpath(saver.folder / str(saver.last_path), self.path.parent)
        state, steps = self.handler.state, self.params.get("steps")
        return {
            "name": Path(name).as_posix(),
            "epoch": state.epoch + (state.batch / steps if steps else 0),
            "step": saver.last_step,
            "is_best": is_best,
        }

    def _write(self, *, running: bool) -> None:
        if not self.handler.world.is_main:
            return
        status = {
            "running": running,
            "text": self._how_it_ended or self.handler.state.stop_reason,
            "last_epoch": self.params.get("last_epoch"),
            "reload_seconds": max(self.refresh_seconds, 1.0) if running else None,
        }
        noted = {"saves": self.saves, "facts": facts(self.handler, self.params)}
        page = render(gather_live(outline(self.handler), noted, self.path, status))
        try:
            files.replace(self.path, lambda file: file.write(page.encode("utf-8")))
        except SaveError as error:
            warnings.warn(f"the report was not written: {error}", RuntimeWarning, stacklevel=2)
        self._written_at = time.monotonic()
