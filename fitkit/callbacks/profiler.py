"""Profiler: records where the time of a few training batches goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.profiler
from torch.profiler import ProfilerAction

from fitkit.core.argument_checks import require_count
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs
from fitkit.core.state import Phase

_SUFFIXES = (".json", ".json.gz")


class Profiler(BuiltinCallback):
    """Records some training batches with ``torch.profiler``, once per call of ``fit``.

    From the first batch of ``epoch`` on, ``wait`` batches are skipped, ``warmup`` are recorded and
    discarded, and ``active`` are recorded, or as many as are left in the epoch; data loading
    between them is recorded too. Then the trace is written, for ``chrome://tracing`` or
    https://ui.perfetto.dev, and the profiler is removed. Only rank 0 records.

    A resume continues the count: if a run ends among the active batches, the rest is recorded.

    Args:
        path: the trace, ``.json`` or ``.json.gz``; the folder is created.
        wait: batches to skip, at least 0.
        warmup: batches to record and discard, at least 0; the first is slower than others.
        active: batches to record, at least 1. They are held in memory, some megabytes each for a
            large model.
        epoch: the epoch to begin in, from 0, counted over the whole run.
        rows: ops in ``table``; 0: no table.
        record_shapes: separate ops by the shapes of their inputs.
        profile_memory: record allocations.
        with_stack: record where in the source each op was called; slow.
        verbose: above 0: also log the table.

    Raises:
        ConfigurationError: an argument is out of range.

    >>> callback = Profiler("runs/trace.json.gz", wait=5, active=10)
    """

    needs_all_ranks = False
    has_fixed_state_types = True
    writes_files = True
    state_fields = ("num_batches",)

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
        counts = {"wait": wait, "warmup": warmup, "active": active, "epoch": epoch, "rows": rows}
        for name, count in counts.items():
            require_count(name, count, minimum=1 if name == "active" else 0)
        self.path = Path(path)
        if not self.path.name.endswith(_SUFFIXES):
            raise ConfigurationError(
                f"path must end with .json or .json.gz, received {str(path)!r}."
            )
        self.wait, self.warmup, self.active = wait, warmup, active
        self.epoch = epoch
        self.rows = rows
        self.verbose = verbose
        self._options: dict[str, Any] = {
            "record_shapes": record_shapes,
            "profile_memory": profile_memory,
            "with_stack": with_stack,
        }
        self.num_batches = 0
        self._table = ""
        self._profile: Any = None
        self._first_kept = 0

    @property
    def table(self) -> str:
        """The most expensive ops as text; empty before they were recorded."""
        return self._table

    @property
    def _first_active(self) -> int:
        return self.wait + self.warmup

    @property
    def _end(self) -> int:
        return self._first_active + self.active

    def on_train_begin(self, logs: Logs) -> None:
        """Start also after a resume inside an epoch, without ``on_epoch_begin``."""
        if self.handler.state.phase is Phase.TRAIN:
            self._start_if_due(self.handler.state.epoch)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Start the profiler if it is due with the first batch."""
        self._start_if_due(epoch)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Count the batch, and start or stop the profiler if that is due."""
        epoch = self.handler.state.epoch
        if self.num_batches >= self._end or epoch < self.epoch:
            return
        self.num_batches += 1
        if self.num_batches == self._end:
            self._stop()
        elif self._profile is not None:
            self._profile.step()
        else:
            self._start_if_due(epoch)

    def on_test_begin(self, logs: Logs) -> None:
        """Stop before validation, whose batches would fill the memory."""
        if self.handler.state.phase is Phase.TEST:
            self._end_of_epoch()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Stop, with the batches that were recorded."""
        self._end_of_epoch()

    def on_train_end(self, logs: Logs) -> None:
        """Write what was recorded, also after an error."""
        self._stop()

    def _end_of_epoch(self) -> None:
        if self._first_active < self.num_batches:
            self.num_batches = self._end
        self._stop()

    def _start_if_due(self, epoch: int) -> None:
        done = self.num_batches
        is_due = epoch >= self.epoch and self.wait <= done < self._end
        if self._profile is not None or not is_due or not self.handler.world.is_main:
            return
        warmup = max(self._first_active - done, 0)
        self._first_kept = max(self._first_active, done)
        profile = torch.profiler.profile(
            schedule=lambda step: ProfilerAction.WARMUP if step < warmup else ProfilerAction.RECORD,
            acc_events=True,  # there is one cycle; torch 2.11 warns that each clears its events
            **self._options,
        )
        profile.start()
        self._profile = profile  # one that did not start must not be stopped

    def _stop(self) -> None:
        profile, self._profile = self._profile, None
        if profile is None:
            return
        profile.stop()
        if self.num_batches > self._first_kept:
            self._write(profile)

    def _write(self, profile: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}")
        profile.export_chrome_trace(str(unfinished))
        unfinished.replace(self.path)
        if self.rows:
            averages = profile.key_averages(group_by_input_shape=self._options["record_shapes"])
            where = "cpu" if self.handler.device.type == "cpu" else "device"
            self._table = averages.table(sort_by=f"self_{where}_time_total", row_limit=self.rows)
        if self.verbose > 0:
            self.handler.logger.info("the trace is in %s\n%s", self.path, self._table)
