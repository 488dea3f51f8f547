"""ModelCheckpoint: saves the best, the latest, or at intervals."""

from __future__ import annotations

import math
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from fitkit.checkpointing.savers import filenames
from fitkit.checkpointing.savers.retention import Retention, resolve_retention
from fitkit.checkpointing.savers.save_request import SaveRequest
from fitkit.checkpointing.savers.saver import Saver
from fitkit.core.argument_checks import require_number
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs
from fitkit.core.monitor import Monitor


class ModelCheckpoint(Saver):
    """Saves the handler, or only its weights, at intervals or when a monitored value improves.

    Args:
        filepath: path with placeholders: ``epoch`` and ``batch`` (from 1), ``global_step``, and
            everything logged, such as ``{val_loss:.4f}``. Folders are created as needed.
        monitor: the logged value that decides what is best; default with ``save_best_only``:
            ``"val_loss"``.
        save_best_only: save only when the monitored value is strictly better than the best so far.
        save_weights_only: write a state dict of the model instead of the whole handler, with the
            weights that evaluation uses (the averaged ones under EMA).
        mode: ``"min"``, ``"max"``, or ``"auto"`` (by the name).
        save_freq: ``"epoch"``, or a number of training batches, counted over all epochs.
        initial_value_threshold: nothing is written until the monitored value is strictly better.
        max_to_keep: keep this many files: the best by ``monitor``, or without it the last.
        every_n_seconds: also save when this much wall time has passed since the last save.
        retention: rules for which files are kept; instead of ``max_to_keep``.
        on_error: ``"raise"``: a save that fails ends training; ``"warn"``: training goes on.
        background: write behind training, which waits only until the state is copied in memory. One
            save is in flight at a time; the next one waits for it. ``fit`` returns when all files
            are durable.
        max_overhead: save as often as this share of wall time, in ``(0, 1)``, allows, and at the
            end of training. The cost is measured: waiting for saves, and slower batches while one
            is written. Replaces ``save_freq`` and ``every_n_seconds``.
        verbose: 1 logs each decision.
        strict: ``False``: wait for a value that only some epochs log; ``True`` waits where an
            earlier epoch has logged it or a callback of yours may, else raises ``MonitorError``.
        name: key of the state in a checkpoint; the state follows it if the files are renamed.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    has_fixed_state_types = True
    state_fields: ClassVar[tuple[str, ...]] = (*Saver.state_fields, "best", "best_path", "is_due")
    file_fields: ClassVar[tuple[str, ...]] = (*Saver.file_fields, "best", "best_path")
    optional_numbers = ("best",)

    def __init__(
        self,
        filepath: str | Path,
        monitor: str | None = None,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
        *,
        max_to_keep: int | None = None,
        every_n_seconds: float | None = None,
        retention: Retention | None = None,
        on_error: str = "raise",
        background: bool | None = None,
        max_overhead: float | None = None,
        verbose: int = 0,
        strict: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(
            on_error=on_error, background=background, max_overhead=max_overhead, name=name
        )
        self.filepath = filenames.checked_path(filepath)
        self.monitor = "val_loss" if save_best_only and monitor is None else monitor
        self.save_best_only = save_best_only
        self.save_weights_only = self.saves_weights_only = save_weights_only
        self.save_freq = _checked_frequency(save_freq)
        self.initial_value_threshold = initial_value_threshold
        self.max_to_keep = max_to_keep
        self.every_n_seconds = every_n_seconds
        self.verbose = verbose
        self.strict = strict
        self._comparator = (
            None if self.monitor is None else Monitor(self.monitor, mode, strict=strict)
        )
        self._check(mode)
        self.retention = resolve_retention(retention, max_to_keep, self.monitor, mode)
        self.best = initial_value_threshold
        self.best_path: str | None = None
        self.is_due = False  # a batch trigger is waiting for a value of validation
        self._saved_at = 0.0

    def _check(self, mode: str) -> None:
        if self.max_overhead is not None and (
            self.save_best_only or self.save_freq != "epoch" or self.every_n_seconds is not None
        ):
            raise ConfigurationError(
                "max_overhead decides by itself when to save: leave out save_best_only, save_freq "
                "and every_n_seconds."
            )
        if self.every_n_seconds is not None:
            require_number("every_n_seconds", self.every_n_seconds)
            if self.every_n_seconds <= 0:
                raise ConfigurationError(
                    f"every_n_seconds must be above 0, received {self.every_n_seconds!r}."
                )
        if self.initial_value_threshold is not None:
            require_number("initial_value_threshold", self.initial_value_threshold)
            if self._comparator is None:
                raise ConfigurationError("initial_value_threshold needs monitor=.")
        if self._comparator is None and mode not in ("auto", "min", "max"):
            raise ConfigurationError(f"mode must be 'auto', 'min' or 'max', received {mode!r}.")

    @property
    def folder(self) -> Path:
        """The part of the path's folder that has no placeholder."""
        return Path(self.filepath.split("{")[0] + "x").parent

    @property
    def template(self) -> str:
        """The path from its first part with a placeholder on."""
        fixed = self.filepath.split("{")[0].rpartition("/")[:2]
        return self.filepath[len("".join(fixed)) :]

    @property
    def batch_logs_interval(self) -> int:  # type: ignore[override]
        """How often a save within an epoch depends on values of the batch, or is named by them."""
        named = set(filenames.placeholders(self.filepath)) - {"epoch", "batch", "global_step"}
        if not (self._must_score() or self.retention is not None or named):
            return 0
        if self.every_n_seconds is not None or self.max_overhead is not None:
            return 1
        return self.save_freq if isinstance(self.save_freq, int) else 0

    def identity(self) -> str:
        """The file's name, unless the saver has one, and what is best."""
        best = "" if self._comparator is None else f"{self.monitor} {self._comparator.mode}"
        return f"{self.identity_of_file(Path(self.filepath).name)} {best}".strip()

    # ---- triggers -------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """Check that this ``fit`` can log the monitored name."""
        self._saved_at = time.monotonic()
        self.begin_measuring()
        if self._comparator is not None:
            self._comparator.check_possible(self.params, self.name)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Request a save at intervals in batches or seconds."""
        step = self.handler.state.global_step
        if isinstance(self.save_freq, int) and step % self.save_freq == 0:
            self.is_due = True
            self.handler.saves.sync_point()
        elif self.handler.saves.is_sync_scheduled:
            self.handler.saves.sync_point()
        if self.every_n_seconds is not None:
            self.is_due = self.is_due or time.monotonic() - self._saved_at >= self.every_n_seconds
        if self._overhead_budget is not None:
            self.measure_batch()
            self.is_due = self.is_due or self.fits_into_overhead()
        if self.is_due and not self.handler.state.stopped_non_finite:
            self.handler.saves.request_sync_point()
            if self.handler.saves.is_sync_point:
                self._save_within_epoch(batch, logs)

    def _save_within_epoch(self, batch: int, logs: Logs) -> None:
        score = None
        if self._must_score():
            score = logs.get(str(self.monitor))
            if score is None:
                return  # stays due until the end of the epoch brings the value
        state = self.handler.state
        counters = {"epoch": state.epoch + 1, "batch": batch + 1}
        self._save_if_worth_it(score, counters, logs)

    def _must_score(self) -> bool:
        """Whether a save depends on the monitored value."""
        return self._comparator is not None and (
            self.save_best_only
            or self.max_to_keep is not None
            or self.initial_value_threshold is not None
        )

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Request a save by epochs, or of a batch trigger that waits for a value of validation."""
        self.handler.saves.sync_point()
        if self.handler.state.stopped_non_finite:
            return
        score = None
        if self._comparator is not None:
            score = self._comparator.read(logs, self.params, self.name, self.handler)
        due = self.is_due or (self.save_freq == "epoch" and self._overhead_budget is None)
        if self._overhead_budget is not None:
            self._overhead_budget.pause()
            due = due or self.handler.state.stopping or epoch + 1 >= self.params["last_epoch"]
        if not due or (score is None and self._must_score()):
            return
        counters = {"epoch": epoch + 1, "batch": self.params["steps"]}
        self._save_if_worth_it(score, counters, logs, epochs_done=epoch + 1)

    # ---- decisions ------------------------------------------------------------------------------

    def _save_if_worth_it(
        self,
        score: float | None,
        counters: dict[str, Any],
        logs: Mapping[str, float],
        epochs_done: int | None = None,
    ) -> None:
        self.is_due = False
        if self._must_score() and not self._is_worth_it(score):
            if self.verbose:
                self.handler.logger.info("%s: %s=%s is not saved", self.name, self.monitor, score)
            return
        self._saved_at = time.monotonic()
        path = self._file_for(counters, logs)
        self.request_save(path, score=score, logs=logs, epochs_done=epochs_done)

    def _is_worth_it(self, score: float | None) -> bool:
        comparator = self._comparator
        if comparator is None or score is None or not math.isfinite(score):
            return False
        threshold = self.initial_value_threshold
        if threshold is not None and not comparator.is_better(score, threshold):
            return False
        if self.save_best_only:
            return comparator.is_better(score, self.best)
        if self.max_to_keep is None or len(self.kept) < self.max_to_keep:
            return True
        worst = max(self.kept, key=lambda entry: comparator.sort_key(entry[1]))
        return comparator.is_better(score, worst[1])

    def _file_for(self, counters: dict[str, Any], logs: Mapping[str, float]) -> Path:
        step = self.handler.state.global_step
        suffix = f"_epoch{counters['epoch']}"
        if self.save_freq != "epoch":
            suffix += f"_step{step}"
        values: Mapping[str, Any] = ChainMap({**counters, "global_step": step}, logs)  # type: ignore[arg-type]
        return Path(filenames.format_name(self.filepath, values, suffix))

    def mark_written(self, request: SaveRequest) -> None:
        """Also remember the best value and its file, while there is one."""
        super().mark_written(request)
        name, score, comparator = self._relative(request.path), request.score, self._comparator
        if comparator is not None and score is not None and comparator.is_better(score, self.best):
            self.best, self.best_path = score, name
        elif self.best_path in self.to_delete or (self.best_path == name and score != self.best):
            self.best_path = None

    def keeps(self, path: Path) -> bool:
        """Whether this saver wrote ``path`` and retains it, or calls it its best."""
        return super().keeps(path) or self._relative(path) == self.best_path

    def forget(self, is_gone: Callable[[Path], bool]) -> None:
        """Also forget which file is the best; its value remains."""
        super().forget(is_gone)
        if self.best_path is not None and is_gone(self.folder / self.best_path):
            self.best_path = None


def _checked_frequency(save_freq: Any) -> str | int:
    whole = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
    if save_freq == "epoch" or whole:
        checked: str | int = save_freq
        return checked
    raise ConfigurationError(
        f"save_freq must be 'epoch' or a number of batches from 1, received {save_freq!r}."
    )
