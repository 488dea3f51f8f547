"""ModelCheckpoint: save the best, save periodically, save the latest."""

from __future__ import annotations

import math
import time
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fitkit.checkpointing import naming
from fitkit.checkpointing.retention import Retention, decide
from fitkit.checkpointing.save_job import SaveRequest
from fitkit.checkpointing.saver import Saver
from fitkit.core.checks import require_number
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs
from fitkit.core.monitor import Monitor


class ModelCheckpoint(Saver):
    """Saves the handler, or only its weights, when a trigger says so.

    Args:
        filepath: path with placeholders: ``epoch`` and ``batch`` (from 1), ``global_step``, and
            everything logged, such as ``{val_loss:.4f}``. Folders are made when a file is written.
        monitor: the logged value that decides what is best; default with ``save_best_only``:
            ``"val_loss"``.
        save_best_only: save only when the monitored value is strictly better than the best so far.
        save_weights_only: write a state dict of the model, with the weights that were scored (the
            averaged ones under EMA), instead of the whole handler.
        mode: ``"min"``, ``"max"``, or ``"auto"`` (by the name).
        save_freq: ``"epoch"``, or a number of training batches, counted over all epochs.
        initial_value_threshold: nothing is written until the monitored value is strictly better.
        max_to_keep: keep this many files: the best by ``monitor``, or without it the last.
        every_n_seconds: also save when so much wall time has passed since the last save.
        retention: which files are kept, by rules that combine; instead of ``max_to_keep``.
        on_error: ``"raise"``: a save that fails ends training; ``"warn"``: training goes on.
        background: write behind training, which waits only for a copy of the state in memory. A
            newer save takes the place of one that still waits for its turn, unless that was better
            or is kept for good. ``fit`` returns when all are done.
        max_overhead: save as often as this share of wall time, in ``(0, 1)``, allows, and at the
            end of training. What a save costs is measured, both waiting for it and being slower
            beside it. Takes the place of ``save_freq`` and ``every_n_seconds``.
        verbose: 1 logs each decision.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    state_fields: ClassVar[tuple[str, ...]] = (
        *Saver.state_fields,
        "best",
        "best_path",
        "is_due",
    )
    planned_fields: ClassVar[tuple[str, ...]] = (*Saver.planned_fields, "best", "best_path")

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
    ) -> None:
        super().__init__(on_error=on_error, background=background, max_overhead=max_overhead)
        self.filepath = _checked_path(filepath)
        self.monitor = "val_loss" if save_best_only and monitor is None else monitor
        self.save_best_only = save_best_only
        self.saves_weights_only = save_weights_only
        self.save_freq = _checked_frequency(save_freq)
        self.initial_value_threshold = initial_value_threshold
        self.max_to_keep = max_to_keep
        self.max_overhead = max_overhead
        self.every_n_seconds = every_n_seconds
        self.verbose = verbose
        self._judge = None if self.monitor is None else Monitor(self.monitor, mode)
        self._check(mode)
        self.retention = decide(retention, max_to_keep, self.monitor, mode)
        self.best = initial_value_threshold
        self.best_path: str | None = None
        self.is_due = False  # a batch trigger waits for a value that validation has yet to bring
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
            if self._judge is None:
                raise ConfigurationError("initial_value_threshold needs monitor=.")
        if self._judge is None and mode not in ("auto", "min", "max"):
            raise ConfigurationError(f"mode must be 'auto', 'min' or 'max', received {mode!r}.")

    @property
    def folder(self) -> Path:
        """The part of the path's folder that has no placeholder."""
        return Path(self.filepath.split("{")[0] + "x").parent

    @property
    def folders(self) -> list[Path]:
        """``folder``, and those below it that hold files of this saver."""
        fixed = self.filepath.split("{")[0].rpartition("/")[:2]
        return naming.folders_below(self.folder, self.filepath[len("".join(fixed)) :])

    def identity(self) -> str:
        """The file's name and what decides about it."""
        return f"{Path(self.filepath).name} {self.monitor} {self.save_freq}"

    # ---- triggers -------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """The monitored name must be one that this fit can bring."""
        self._saved_at = time.monotonic()
        self.begin_measuring()
        if self._judge is not None:
            self._judge.check_possible(self.params, self.name)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Triggers by batches and by seconds."""
        step = self.handler.state.global_step
        if isinstance(self.save_freq, int) and step % self.save_freq == 0:
            self.is_due = True
            self.handler.saves.meet()
        elif self.handler.saves.is_invited:
            self.handler.saves.meet()
        if self.every_n_seconds is not None:
            self.is_due = self.is_due or time.monotonic() - self._saved_at >= self.every_n_seconds
        if self._cadence is not None:
            self._cadence.count_batch(self.handler.saves)
            self.is_due = self.is_due or self.fits_into_overhead()
        if self.is_due and not self.handler.state.stopped_non_finite:
            self.handler.saves.wish()
            if self.handler.saves.is_meeting:
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
        return self._judge is not None and (
            self.save_best_only
            or self.max_to_keep is not None
            or self.initial_value_threshold is not None
        )

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """The trigger by epochs, and batch triggers that wait for a value of validation."""
        self.handler.saves.meet()
        if self.handler.state.stopped_non_finite:
            return
        score = None
        if self._judge is not None:
            score = self._judge.read(logs, self.params, self.name)
        due = self.is_due or (self.save_freq == "epoch" and self._cadence is None)
        if self._cadence is not None:
            self._cadence.pause()
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
        self.ask(path, score=score, logs=logs, epochs_done=epochs_done)

    def _is_worth_it(self, score: float | None) -> bool:
        judge = self._judge
        if judge is None or score is None or not math.isfinite(score):
            return False
        threshold = self.initial_value_threshold
        if threshold is not None and not judge.is_better(score, threshold):
            return False
        if self.save_best_only:
            return judge.is_better(score, self.best)
        if self.max_to_keep is None or len(self.kept) < self.max_to_keep:
            return True
        worst = max(self.kept, key=lambda entry: judge.sort_key(entry[1]))
        return judge.is_better(score, worst[1])

    def _file_for(self, counters: dict[str, Any], logs: Mapping[str, float]) -> Path:
        step = self.handler.state.global_step
        suffix = f"_epoch{counters['epoch']}"
        if self.save_freq != "epoch":
            suffix += f"_step{step}"
        values: Mapping[str, Any] = ChainMap({**counters, "global_step": step}, logs)  # type: ignore[arg-type]
        return Path(naming.format_name(self.filepath, values, suffix))

    def plan(self, request: SaveRequest) -> None:
        """Become what this saver is once the file is there; a better value is the new best."""
        super().plan(request)
        score, judge = request.score, self._judge
        if judge is not None and score is not None and judge.is_better(score, self.best):
            self.best, self.best_path = score, self._relative(request.path)


def _checked_path(filepath: Any) -> str:
    if not isinstance(filepath, (str, Path)) or not str(filepath):
        raise ConfigurationError(
            f"filepath must be a path such as 'runs/{{epoch:03d}}.pth', received {filepath!r}."
        )
    naming.placeholders(str(filepath))
    return str(filepath)


def _checked_frequency(save_freq: Any) -> str | int:
    whole = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
    if save_freq == "epoch" or whole:
        checked: str | int = save_freq
        return checked
    raise ConfigurationError(
        f"save_freq must be 'epoch' or a number of batches from 1, received {save_freq!r}."
    )
