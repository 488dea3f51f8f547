"""Profiler: where the time of a few steps goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch.profiler
from torch.profiler import ProfilerAction

from fitkit.core.callback import Callback
from fitkit.core.checks import require_count
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs
from fitkit.core.state import Phase

_SUFFIXES = (".json", ".json.gz")


class Profiler(Callback):
    """Records some training batches with ``torch.profiler``, once per call of ``fit``.

    From the first batch of ``epoch`` on, ``wait`` batches are left alone, ``warmup`` are recorded
    and thrown away, and ``active`` are recorded, or those that are left in the epoch. What lies
    between them, such as loading, is recorded too. Then the trace is written, for
    ``chrome://tracing`` or https://ui.perfetto.dev, and the profiler is gone; what stays is one
    comparison per batch. Only the main process records.

    A resume goes on in the count: a run that is cut among the active batches records those that
    are left.

    Args:
        path: the trace, ``.json`` or ``.json.gz``; the folder is made.
        wait: batches to leave alone, at least 0.
        warmup: batches to record and throw away, at least 0; the first is slower than others.
        active: batches to record, at least 1. They are held in memory, some megabytes each for a
            large model.
        epoch: the epoch to begin in, from 0, counted over the whole run.
        rows: ops in ``table``; 0: none is made.
        record_shapes: tell ops apart by the shapes of their inputs.
        profile_memory: record allocations.
        with_stack: record where in the source each op was called; slow.
        verbose: above 0: also log the table.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    writes_files = True
    state_fields: ClassVar[tuple[str, ...]] = ("num_batches",)

    def __init__(
        self,
        path: str | Path = "trace.json",
        *,
        wait: int = 1,
        warmup: int = 1,
        active: int = 3,
        epoch: int = 0,
        rows: int = 10,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        verbose: int = 0,
    ) -> None:
        for name, count, minimum in (
            ("wait", wait, 0),
            ("warmup", warmup, 0),
            ("active", active, 1),
            ("epoch", epoch, 0),
            ("rows", rows, 0),
        ):
            require_count(name, count, minimum=minimum)
        self.path = Path(path)
        if not self.path.name.endswith(_SUFFIXES):
            raise ConfigurationError(
                f"a trace is written as .json or .json.gz, received {str(path)!r}."
            )
        self.wait, self.warmup, self.active = wait, warmup, active
        self.epoch = epoch
        self.rows = rows
        self.verbose = verbose
        self._recorded: dict[str, Any] = {
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
        }
        self.num_batches = 0
        self._table = ""
        self._profile: Any = None
        self._kept_from = 0

    def identity(self) -> str:
        """The trace."""
        return str(self.path)

    @property
    def table(self) -> str:
        """The costliest ops, to be printed; empty before they were recorded."""
        return self._table

    @property
    def _first(self) -> int:
        """Batches before the first that is kept."""
        return self.wait + self.warmup

    def on_train_begin(self, logs: Logs) -> None:
        """A resume may land inside an epoch, whose beginning is not heard again."""
        if self.handler.state.phase is Phase.TRAIN:
            self._start_if_due(self.handler.state.epoch)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Recording may begin with the first batch."""
        self._start_if_due(epoch)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Count, and begin or end where it is time."""
        if self.num_batches >= self._first + self.active:
            return
        epoch = self.handler.state.epoch
        if epoch < self.epoch:
            return
        self.num_batches += 1
        if self.num_batches == self._first + self.active:
            self._stop()
        elif self._profile is not None:
            self._profile.step()
        else:
            self._start_if_due(epoch)

    def on_test_begin(self, logs: Logs) -> None:
        """Of a long validation nothing is held in memory."""
        if self.handler.state.phase is Phase.TEST:
            self._end_pass()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """What was recorded is all there will be."""
        self._end_pass()

    def on_train_end(self, logs: Logs) -> None:
        """However training ended, what was recorded is written."""
        self._stop()

    def _end_pass(self) -> None:
        if self._first < self.num_batches < self._first + self.active:
            self.num_batches = self._first + self.active
        self._stop()

    def _start_if_due(self, epoch: int) -> None:
        done = self.num_batches
        is_due = epoch >= self.epoch and self.wait <= done < self._first + self.active
        if self._profile is not None or not is_due or not self.handler.world.is_main:
            return
        warmup = max(self._first - done, 0)
        self._kept_from = max(self._first, done)
        self._profile = torch.profiler.profile(
            schedule=lambda step: ProfilerAction.WARMUP if step < warmup else ProfilerAction.RECORD,
            **self._recorded,
        )
        self._profile.start()

    def _stop(self) -> None:
        profile, self._profile = self._profile, None
        if profile is None:
            return
        profile.stop()
        if self.num_batches > self._kept_from:
            self._write(profile)

    def _write(self, profile: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}")
        profile.export_chrome_trace(str(unfinished))
        unfinished.replace(self.path)
        if self.rows:
            averages = profile.key_averages(group_by_input_shape=self._recorded["record_shapes"])
            where = "cpu" if self.handler.device.type == "cpu" else "device"
            self._table = averages.table(sort_by=f"self_{where}_time_total", row_limit=self.rows)
        if self.verbose > 0:
            self.handler.logger.info("the trace is in %s\n%s", self.path, self._table)
