"""Tracker: what the loggers that write to an experiment tracker share."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from fitkit.callbacks.known_rows import KnownRows
from fitkit.callbacks.learning_rate import value_now
from fitkit.callbacks.run_parameters import flat, run_parameters
from fitkit.core.callback import Callback
from fitkit.core.checks import require_count, require_number
from fitkit.core.errors import ConfigurationError, Preempted
from fitkit.core.logs import Logs, as_float
from fitkit.runtime.rng import streams_apart

_MOST_PENDING = 100  # rows; a checkpoint holds them


# training batches over the whole run; seconds since 1970; values by name
Row = tuple[int, float, dict[str, Any]]


class Tracker(Callback):
    """Writes parameters, values by batch and by epoch, and checkpoints to an experiment tracker.

    The step of every value is ``state.global_step``, the training batches so far. The values of an
    epoch keep their names (``loss``, ``val_loss``, ``lr``), and ``epoch`` (from 0) is with them;
    those of a batch are called ``batch/loss`` and so on, with ``batch/lr``. Where there are several
    parameter groups, their learning rates are ``lr_0``, ``lr_1`` and so on. Values of a batch are
    those of the main process; they stay on the device until the next time to write.

    The tracker's run is part of the checkpoint, so a resumed training goes on in it: what was not
    written yet is in the checkpoint too, and what was written after the checkpoint was made, which
    is trained again, is not written twice. A second ``fit`` of the same handler also goes on in it;
    any other ``fit`` begins a new run. Only the main process writes.

    Args:
        parameters: what describes the run besides what fitkit knows; of two values of one name this
            one counts. Nested mappings get names with dots.
        every_n_batches: write the values of every n-th batch, at least 1; ``None``: of none.
        log_checkpoints: which checkpoints to upload when they are saved: ``False``: none;
            ``"best"``: those that are the best by a ``ModelCheckpoint``'s monitored value;
            ``True``: all.
        refresh_seconds: least time between two writings, at least 0; the end of an epoch always
            writes.

    Attributes:
        run_id: names the tracker's run; ``None`` before a run has begun.
        pending: rows that were not written yet.
        unsafe: rows that were written, but that would be lost if the tracker were killed now.
        written_step: the step of the last row that was written.
        rates: the learning rates of the last batch.

    Raises:
        ConfigurationError: an argument cannot be used, or the tracker's package is not installed.
    """

    order = 100
    spans_fits = True
    writes_files = True
    state_fields: ClassVar[tuple[str, ...]] = (
        "run_id",
        "pending",
        "unsafe",
        "written_step",
        "rates",
    )

    def __init__(
        self,
        *,
        parameters: Mapping[str, Any] | None = None,
        every_n_batches: int | None = 50,
        log_checkpoints: bool | str = False,
        refresh_seconds: float = 5.0,
    ) -> None:
        require_count("every_n_batches", every_n_batches, optional=True)
        require_number("refresh_seconds", refresh_seconds)
        if refresh_seconds < 0:
            raise ConfigurationError(
                f"refresh_seconds must be at least 0, received {refresh_seconds!r}."
            )
        if not (isinstance(log_checkpoints, bool) or log_checkpoints == "best"):
            raise ConfigurationError(
                f"log_checkpoints must be False, True or 'best', received {log_checkpoints!r}."
            )
        if not isinstance(parameters, Mapping | None):
            raise ConfigurationError(
                f"parameters must be a mapping of names to values, received {parameters!r}."
            )
        self.parameters = flat(parameters or {})
        self.every_n_batches = every_n_batches
        self.log_checkpoints = log_checkpoints
        self.refresh_seconds = float(refresh_seconds)
        self.run_id: str | None = None
        self.pending: tuple[Row, ...] = ()
        self.unsafe: tuple[Row, ...] = ()
        self.written_step = 0
        self.rates: tuple[Any, ...] = ()
        self._is_open = False
        self._status = "finished"
        self._written_at = 0.0
        self._known = KnownRows({}, "")

    # ---- what each tracker does in its own way --------------------------------------------------

    @abstractmethod
    def open_run(self, run_id: str | None) -> str:
        """Begin a run, or go on in that one.

        Returns:
            what names the run.
        """

    @abstractmethod
    def write_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Describe the run, which has just begun, by numbers, strings, bools and ``None``."""

    @abstractmethod
    def write_rows(self, rows: Iterable[Row]) -> None:
        """Write floats by step, in ascending order; no step comes twice."""

    @abstractmethod
    def close_run(self, status: str) -> None:
        """End the run as ``"finished"``, ``"killed"`` or ``"failed"``; another may go on in it."""

    def rows_beyond(self, step: int) -> Mapping[int, Mapping[str, float]]:
        """What the run that was opened has of later steps, and cannot take back."""
        return {}

    def safe_step(self) -> float:
        """Up to which step written rows outlive this process, and those that it started."""
        return math.inf

    def write_file(self, path: Path) -> None:
        """Upload a file."""

    # ---- hooks ----------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """Begin a run, or go on in the one that the checkpoint names."""
        if not self.handler.world.is_main:
            return
        self._known, self._status = KnownRows({}, ""), "finished"
        self._written_at = time.monotonic()
        with streams_apart():
            self._open()

    def _open(self) -> None:
        is_new = self.run_id is None
        self.run_id = self.open_run(self.run_id)
        self._is_open = True
        if is_new:
            self.write_parameters({**run_parameters(self.handler, self.params), **self.parameters})
            return
        safe = self.unsafe[0][0] - 1 if self.unsafe else self.written_step
        self._known = KnownRows(self.rows_beyond(safe), f"{self.name}: the run {self.run_id!r}")
        self.pending, self.unsafe = (*self.unsafe, *self.pending), ()

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Remember what this batch is trained with."""
        if self._is_open and self.handler.optimizer is not None:
            groups = self.handler.optimizer.param_groups
            self.rates = tuple(value_now(group["lr"]) for group in groups)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Keep the values of a batch whose turn it is, without reading them."""
        step = self.handler.state.global_step
        if not self._is_open or self.every_n_batches is None or step % self.every_n_batches:
            return
        values = {f"batch/{name}": logs.raw(name) for name in logs}
        rates = {f"batch/{name}": rate for name, rate in self._named_rates().items()}
        self._keep(step, {**values, **rates})

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the epoch's values, and what was kept."""
        if self._is_open:
            rates = self._named_rates() if len(self.rates) > 1 else {}
            self._keep(self.handler.state.global_step, {**rates, **logs, "epoch": epoch})
            self._write_pending()

    def on_checkpoint_saved(self, path: str, logs: Logs) -> None:
        """Upload it, if it is one of those to upload."""
        if not self._is_open or not self.log_checkpoints or not Path(path).is_file():
            return
        if self.log_checkpoints is True or self._is_best(Path(path)):
            with streams_apart():
                self.write_file(Path(path))

    def on_exception(self, error: BaseException) -> None:
        """Remember how training ended."""
        was_told = isinstance(error, (KeyboardInterrupt, Preempted))
        self._status = "killed" if was_told else "failed"

    def on_train_end(self, logs: Logs) -> None:
        """Write what is left, and close the run."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._write_pending()
        finally:
            with streams_apart():
                self.close_run(self._status)
        self.unsafe = ()

    # ---- rows -----------------------------------------------------------------------------------

    def _named_rates(self) -> dict[str, Any]:
        if len(self.rates) == 1:
            return {"lr": self.rates[0]}
        return {f"lr_{index}": rate for index, rate in enumerate(self.rates)}

    def _keep(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values; rows of earlier steps, which are whole now, are written if it is time."""
        same: dict[str, Any] = {}
        if self.pending and self.pending[-1][0] == step:
            same = self.pending[-1][2]
            self.pending = self.pending[:-1]
        elif self._is_time():
            self._write_pending()
        self.pending = (*self.pending, (step, time.time(), {**same, **values}))

    def _is_time(self) -> bool:
        waited = time.monotonic() - self._written_at
        return waited >= self.refresh_seconds or len(self.pending) >= _MOST_PENDING

    def _write_pending(self) -> None:
        self._written_at = time.monotonic()
        if not self.pending:
            return
        rows = tuple((step, seconds, _read(values)) for step, seconds, values in self.pending)
        new = [(step, seconds, self._known.without(step, values)) for step, seconds, values in rows]
        with streams_apart():
            self.write_rows([row for row in new if row[2]])
            safe = self.safe_step()
        self.unsafe = tuple(row for row in (*self.unsafe, *rows) if row[0] > safe)
        self.written_step = rows[-1][0]
        self.pending = ()

    def _is_best(self, path: Path) -> bool:
        savers = (one for one in self.handler.callbacks if getattr(one, "best_path", None))
        return any((one.folder / one.best_path).resolve() == path.resolve() for one in savers)


def _read(values: Mapping[str, Any]) -> dict[str, float]:
    """Values as floats; what is still on an accelerator is waited for."""
    return {name: as_float(name, value) for name, value in values.items()}
