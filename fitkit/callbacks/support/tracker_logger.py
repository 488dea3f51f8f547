"""TrackerLogger: base class of the loggers that write to an experiment tracker."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fitkit.callbacks.support.hyperparameters import flatten, hyperparameters
from fitkit.callbacks.support.learning_rate import current_value
from fitkit.callbacks.support.logged_steps import LoggedSteps
from fitkit.core.argument_checks import require_count, require_number
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError, Preempted, missing_package
from fitkit.core.logs import Logs, as_float
from fitkit.runtime.rng import IsolatedStreams, fresh_seed

_MOST_PENDING = 100  # rows; they are part of every checkpoint


# global step; seconds since 1970; values by name
StepRow = tuple[int, float, dict[str, Any]]


class TrackerLogger(BuiltinCallback):
    """Writes hyperparameters, values per batch and per epoch, and checkpoints to a tracker.

    The step of every value is ``state.global_step``, the number of training batches so far. Values
    of an epoch keep their names (``loss``, ``val_loss``, ``lr``) and come with ``epoch`` (from 0).
    Values of a batch are named ``batch/loss`` and so on, with ``batch/lr``; they are those of all
    ranks, and stay on the device until they are written. With several parameter groups the learning
    rates are ``lr_0``, ``lr_1`` and so on.

    The run in the tracker is part of the checkpoint, so a resumed training continues it: rows that
    were not written yet are in the checkpoint, and rows that were written after the checkpoint,
    whose batches are trained again, are not written twice. A second ``fit`` of the same handler
    continues the run; any other ``fit`` starts a new one. Only rank 0 writes: when
    ``refresh_seconds`` have passed, when 100 rows are pending, and at the end of an epoch.

    Nested ``parameters`` get names with dots, and replace hyperparameters of the same name.

    Attributes:
        run_id: identifies the run in the tracker; ``None`` before a run has begun.
        pending: rows that are not written yet.
        unsafe: rows that are written, but would be lost if the tracker was killed now.
        written_step: the step of the last row that was written.
        rates: the learning rates of the last batch.
    """

    needs_all_ranks = False
    order = 100
    spans_fits = True
    writes_files = True
    has_fixed_state_types = True
    state_fields = ("run_id", "pending", "unsafe", "written_step", "rates")

    def __init__(
        self,
        *,
        parameters: Mapping[str, Any] | None = None,
        every_n_batches: int | None = 50,
        log_checkpoints: bool | str = False,
        refresh_seconds: float = 5.0,
    ) -> None:
        require_count("every_n_batches", every_n_batches, optional=True)
        require_number("refresh_seconds", refresh_seconds, minimum=0)
        if not (isinstance(log_checkpoints, bool) or log_checkpoints == "best"):
            raise ConfigurationError(
                f"log_checkpoints must be False, True or 'best', received {log_checkpoints!r}."
            )
        if not isinstance(parameters, Mapping | None):
            raise ConfigurationError(
                f"parameters must be a mapping of names to values, received {parameters!r}."
            )
        self.parameters = flatten(parameters or {})
        self.every_n_batches = every_n_batches
        self.log_checkpoints = log_checkpoints
        self.refresh_seconds = float(refresh_seconds)
        self.run_id: str | None = None
        self.pending: tuple[StepRow, ...] = ()
        self.unsafe: tuple[StepRow, ...] = ()
        self.written_step = 0
        self.rates: tuple[Any, ...] = ()
        self._is_open = False
        self._status = "finished"
        self._last_write = 0.0
        self._logged_steps = LoggedSteps({}, "")

    @property
    def batch_logs_interval(self) -> int:  # type: ignore[override]
        """As ``every_n_batches``."""
        return self.every_n_batches or 0

    # ---- implemented for each tracker -----------------------------------------------------------

    @abstractmethod
    def open_run(self, run_id: str | None) -> str:
        """Start a run, or continue the one of that id; returns the id."""

    @abstractmethod
    def write_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Write the hyperparameters of a new run: numbers, strings, bools and ``None``."""

    @abstractmethod
    def write_rows(self, rows: Iterable[StepRow]) -> None:
        """Write floats by step, in ascending order and each step once."""

    @abstractmethod
    def close_run(self, status: str) -> None:
        """End the run as ``"finished"``, ``"killed"`` or ``"failed"``; it can be continued."""

    def rows_after(self, step: int) -> Mapping[int, Mapping[str, float]]:
        """The values of later steps that the opened run holds and cannot delete."""
        return {}

    def durable_step(self) -> float:
        """The last step whose rows survive a kill of this process and of those it started."""
        return math.inf

    def upload_file(self, path: Path) -> None:
        """Upload a checkpoint."""

    # ---- hooks ----------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """Start a run, or continue the one of the checkpoint."""
        if not self.handler.world.is_main:
            return
        self._logged_steps, self._status = LoggedSteps({}, ""), "finished"
        self._last_write = time.monotonic()
        with IsolatedStreams(
            fresh_seed()
        ):  # trackers draw names of runs from the random streams of training
            self._open()

    def _open(self) -> None:
        is_new = self.run_id is None
        self.run_id = self.open_run(self.run_id)
        self._is_open = True
        if is_new:
            known = hyperparameters(self.handler, self.params)
            self.write_parameters({**known, **self.parameters})
            return
        durable = self.unsafe[0][0] - 1 if self.unsafe else self.written_step
        owner = f"{self.name}: the run {self.run_id!r}"
        self._logged_steps = LoggedSteps(self.rows_after(durable), owner)
        self.pending, self.unsafe = (*self.unsafe, *self.pending), ()

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Note the learning rates of this batch."""
        if self._is_open and self.handler.optimizer is not None:
            groups = self.handler.optimizer.param_groups
            self.rates = tuple(current_value(group["lr"]) for group in groups)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Add the values of every n-th batch, without reading them from the device."""
        step = self.handler.state.global_step
        if not self._is_open or self.every_n_batches is None or step % self.every_n_batches:
            return
        values = {f"batch/{name}": logs.raw(name) for name in logs}
        rates = {f"batch/{name}": rate for name, rate in self._named_rates().items()}
        self._add(step, {**values, **rates})

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Add the values of the epoch, and write all pending rows."""
        if self._is_open:
            rates = self._named_rates() if len(self.rates) > 1 else {}
            self._add(self.handler.state.global_step, {**rates, **logs, "epoch": epoch})
            self._write_pending()

    def on_checkpoint_saved(self, path: str, logs: Logs) -> None:
        """Upload the checkpoint, as ``log_checkpoints`` says."""
        if not self._is_open or not self.log_checkpoints or not Path(path).is_file():
            return
        if self.log_checkpoints is True or self._is_best(Path(path)):
            with IsolatedStreams(fresh_seed()):
                self.upload_file(Path(path))

    def on_exception(self, error: BaseException) -> None:
        """Note how training ended."""
        is_killed = isinstance(error, (KeyboardInterrupt, Preempted))
        self._status = "killed" if is_killed else "failed"

    def on_train_end(self, logs: Logs) -> None:
        """Write all pending rows, and close the run."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._write_pending()
        finally:
            with IsolatedStreams(fresh_seed()):
                self.close_run(self._status)
        self.unsafe = ()

    # ---- rows -----------------------------------------------------------------------------------

    def _named_rates(self) -> dict[str, Any]:
        if len(self.rates) == 1:
            return {"lr": self.rates[0]}
        return {f"lr_{index}": rate for index, rate in enumerate(self.rates)}

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        """Add values to the row of their step; earlier rows are complete and may be written."""
        row: dict[str, Any] = {}
        if self.pending and self.pending[-1][0] == step:
            row = self.pending[-1][2]
            self.pending = self.pending[:-1]
        elif self._is_write_due():
            self._write_pending()
        self.pending = (*self.pending, (step, time.time(), {**row, **values}))

    def _is_write_due(self) -> bool:
        elapsed = time.monotonic() - self._last_write
        return elapsed >= self.refresh_seconds or len(self.pending) >= _MOST_PENDING

    def _write_pending(self) -> None:
        self._last_write = time.monotonic()
        if not self.pending:
            return
        rows = tuple(
            (step, seconds, {name: as_float(name, value) for name, value in values.items()})
            for step, seconds, values in self.pending  # values on an accelerator are waited for
        )
        new = [(step, at, self._logged_steps.new_values(step, values)) for step, at, values in rows]
        with IsolatedStreams(fresh_seed()):
            self.write_rows([row for row in new if row[2]])
            durable = self.durable_step()
        self.unsafe = tuple(row for row in (*self.unsafe, *rows) if row[0] > durable)
        self.written_step = rows[-1][0]
        self.pending = ()

    def _is_best(self, path: Path) -> bool:
        savers = (saver for saver in self.handler.callbacks if getattr(saver, "best_path", None))
        return any((saver.folder / saver.best_path).resolve() == path.resolve() for saver in savers)


def require_package(user: str, module: str, *packages: str) -> None:
    """Raise ``ConfigurationError`` with the command to install if ``module`` is not installed."""
    if find_spec(module) is None:
        raise missing_package(user, *packages)
