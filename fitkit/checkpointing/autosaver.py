"""AutoSaver: saves the whole state of the handler every n epochs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitkit.checkpointing.savers import filenames
from fitkit.checkpointing.savers.retention import Retention, resolve_retention
from fitkit.checkpointing.savers.saver import Saver
from fitkit.core.errors import ConfigurationError
from fitkit.core.logs import Logs

DEFAULT_NAME = "model_epoch{epoch:02d}"


class AutoSaver(Saver):
    """Saves the whole handler every ``save_interval`` epochs.

    Args:
        save_interval: epochs between saves, from 1; ``-1``: only after the last epoch, also if the
            run was stopped early; ``None`` or ``0``: off.
        save_path: the folder; it is created with the first file.
        save_model_name: file name with placeholders: ``epoch`` (from 1), ``global_step`` and
            everything in the epoch's logs; ``.pth`` is appended if it is missing.
        overwrite_last_saved: delete the previous file of this saver once the new one is durable.
        save_on_last_epoch: also save after the last epoch, whatever the interval.
        retention: which files are kept, as in ``Saver``; instead of ``overwrite_last_saved``.
        on_error: ``"raise"`` or ``"warn"`` when a save fails, as in ``Saver``.
        background: write behind training, which waits only until the state is copied in memory. One
            save is in flight at a time; the next one waits for it.
        max_overhead: skip saves that would cost more than this share of wall time; the last epoch
            is always saved.
        name: key of the state in a checkpoint; the state follows it if the files are renamed.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    def __init__(
        self,
        save_interval: int | None,
        save_path: str | Path = ".",
        save_model_name: str = DEFAULT_NAME,
        overwrite_last_saved: bool = False,
        save_on_last_epoch: bool = True,
        *,
        retention: Retention | None = None,
        on_error: str = "raise",
        background: bool | None = None,
        max_overhead: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            on_error=on_error, background=background, max_overhead=max_overhead, name=name
        )
        self.retention = resolve_retention(retention, 1 if overwrite_last_saved else None)
        self.save_interval = _checked_interval(save_interval)
        self.save_path = Path(save_path)
        self.save_model_name = str(save_model_name)
        self.overwrite_last_saved = overwrite_last_saved
        self.save_on_last_epoch = save_on_last_epoch
        filenames.placeholders(self.save_model_name)

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.save_path

    @property
    def template(self) -> str:
        """The name of the files, with their extension."""
        return filenames.with_extension(self.save_model_name)

    def identity(self) -> str:
        """The name of the files, unless the saver has one."""
        return self.identity_of_file(self.save_model_name)

    def on_train_begin(self, logs: Logs) -> None:
        """Start to measure what saves cost."""
        self.begin_measuring()

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Measure what saves cost."""
        self.measure_batch()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Request a save if this epoch is due."""
        self.handler.saves.sync_point()
        if self._overhead_budget is not None:
            self._overhead_budget.pause()
        last_epoch = self.params["last_epoch"]
        is_last = self.handler.state.stopping or epoch + 1 >= last_epoch
        if self.save_interval != -1 and not self.params.get("save_on_last_epoch", True):
            is_last = False
        self.save_if_due(epoch, is_last=is_last, logs=logs)

    def on_train_end(self, logs: Logs) -> None:
        """Request a save of the last epoch if the run was stopped only after the end of it."""
        self.handler.saves.sync_point()
        state = self.handler.state
        if self.save_interval == -1 and state.stopping and state.epoch > self.params["first_epoch"]:
            self.save_if_due(state.epoch - 1, is_last=True, logs=logs)

    def save_if_due(self, epoch: int, *, is_last: bool, logs: Mapping[str, float]) -> None:
        """Request a save after ``epoch`` (from 0), if the interval or the last epoch says so."""
        interval = self.save_interval
        if not interval or self.handler.state.stopped_non_finite:
            return
        due = interval > 0 and (epoch + 1) % interval == 0 and self.fits_into_overhead()
        if due or (is_last and (interval == -1 or self.save_on_last_epoch)):
            self.request_save(self.file_for(epoch, logs), logs=logs, epochs_done=epoch + 1)

    def file_for(self, epoch: int, logs: Mapping[str, float]) -> Path:
        """The file of ``epoch`` (from 0)."""
        counters = {"epoch": epoch + 1, "global_step": self.handler.state.global_step}
        values: Mapping[str, Any] = ChainMap(counters, logs)  # type: ignore[arg-type]
        name = filenames.format_name(self.save_model_name, values, f"_epoch{epoch + 1}")
        return self.save_path / filenames.with_extension(filenames.clean_name(name))


def _checked_interval(interval: Any) -> int | None:
    whole = isinstance(interval, int) and not isinstance(interval, bool) and interval >= -1
    if interval is not None and not whole:
        raise ConfigurationError(
            f"the save interval must be a number of epochs from 1, -1 (only the last epoch), or "
            f"None or 0 (off); received {interval!r}."
        )
    checked: int | None = interval
    return checked
