"""EpochFileLogger: base class of the loggers that write one row per epoch to a text file."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitkit.callbacks.support.append_mark import AppendMark
from fitkit.callbacks.support.log_file import LogFile
from fitkit.checkpointing.savers.saver import Saver
from fitkit.core.argument_checks import require_path
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError, listed
from fitkit.core.logs import Logs
from fitkit.core.validation_sets import logged_names, sets_of

EpochRow = Mapping[str, Any]


class EpochFileLogger(BuiltinCallback):
    """Writes the values of each epoch as one row of a text file.

    Only rank 0 writes. A row is in the file at the end of its epoch. The rows are part of the
    checkpoint, so a resumed run first restores the file: rows of epochs that are trained again are
    cut off, and a file that is missing or too short is written again. A second ``fit`` of the same
    handler continues the file. When a name is logged for the first time, it becomes a column, and
    the whole file is rewritten. A file that is moved away or emptied while the run goes on is begun
    anew with the next row.

    Args:
        filename: the file; its folder is created with it.
        append: at the beginning of a run, keep the content of an existing file. A run that was
            killed before its first checkpoint and is started again with ``resume=`` first takes
            back the rows that it had appended.
        on_error: ``"raise"``: a row that cannot be written ends training with a ``SaveError``;
            ``"warn"``: it is a warning, said once, and the row is written with the next one that
            can be. In both cases no part of a row stays in the file.
        name: key of the state in a checkpoint, to tell several callbacks of one class apart.

    Attributes:
        text: the content of the file; ``None`` before a run has begun.
    """

    needs_all_ranks = False
    order = 100
    spans_fits = True
    writes_files = True
    has_fixed_state_types = True
    state_fields = ("text",)

    def __init__(
        self,
        filename: str | os.PathLike[str],
        append: bool = False,
        *,
        on_error: str = "raise",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        require_path("filename", filename)
        self.path = Path(filename)
        self.append = bool(append)
        self.on_error = on_error
        self.text: str | None = None
        self._file = LogFile(self.path, on_error)
        self._mark = AppendMark(self.path)
        self._was_interrupted = False

    def identity(self) -> str:
        """The file's name without its folder, which may be moved, unless the logger has a name."""
        return self.identity_of_file(self.path.name)

    # ---- the format -----------------------------------------------------------------------------

    @abstractmethod
    def render_header(self, columns: Sequence[str]) -> str:
        """The text above the rows."""

    @abstractmethod
    def render_row(self, columns: Sequence[str], row: EpochRow) -> str:
        """One row as a line; columns that it does not have are marked as missing."""

    @abstractmethod
    def parse(self, text: str) -> tuple[list[str], list[EpochRow]]:
        """Columns and rows of a file; rendering them gives the same text.

        Raises:
            ValueError: the text is not of this format.
        """

    # ---- hooks ----------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """Create the file, or restore it to the state of the checkpoint."""
        if not self.handler.world.is_main:
            return
        self._file.has_warned = self._was_interrupted = False
        is_fresh, existing = self.text is None, self._file.read()
        if self.text is None:
            self.text = self._text_to_append_to(existing) if self.append else ""
        elif existing is not None and existing != self.text:
            self._require_same_run(existing)
        if self.append and is_fresh:
            self._set_mark(self.text)
        elif is_fresh or self.params.get("resumed"):
            self._remove_mark()
        if existing != self.text:
            self._file.replace(self.text)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the row of the epoch."""
        if not self.handler.world.is_main:
            return
        text, is_gone = self.text or "", not self._file.is_behind and self._file.is_gone()
        known = self._columns(text)
        new = [name for name in ("epoch", *logs) if name not in known]
        columns, row = [*known, *new], {**logs, "epoch": epoch}
        line = self.render_row(columns, row)
        if is_gone or new:
            rows = [] if is_gone else self.parse(text)[1]
            lines = [self.render_row(columns, earlier) for earlier in rows]
            text = self.render_header(columns) + "".join(lines)
        self.text = text + line
        if is_gone and self._mark.is_set:
            self._set_mark("")
        if is_gone or new or self._file.is_behind:
            self._file.replace(self.text)
        else:
            self._file.append(line)

    def on_checkpoint_saved(self, path: str, logs: Logs) -> None:
        """From now on a restart finds the text in a checkpoint, unless it has weights only."""
        if self._mark.is_set:
            stats = self.handler.saves.stats
            if stats.saved_at > stats.began:
                self._remove_mark()

    def on_exception(self, error: BaseException) -> None:
        """Note that the run may be started again."""
        self._was_interrupted = True

    def on_train_end(self, logs: Logs) -> None:
        """Write the rows that could not be written so far."""
        if self._file.is_behind and self._file.warns:
            self._file.replace(self.text or "")
        if self._mark.is_set and not self._was_interrupted:
            self._remove_mark()

    def _columns(self, text: str) -> list[str]:
        first, newline, _ = text.partition("\n")
        return self.parse(first + newline)[0] if first else []

    # ---- an existing file -----------------------------------------------------------------------

    def _existing_columns(self, existing: str) -> list[str]:
        try:
            return self._columns(existing)
        except ValueError:
            return []

    def _text_to_append_to(self, existing: str | None) -> str:
        """The existing text, if it has the columns of this run."""
        existing = self._without_killed_run(existing or "")
        if not existing:
            return ""
        columns = self._existing_columns(existing)
        measured = ["loss", *self.params.get("metrics", ())]
        expected = ["epoch", *measured]
        expected += logged_names(sets_of(self.params), measured)
        if set(expected) - set(columns):
            raise ConfigurationError(
                f"{self.name} cannot append to {str(self.path)!r}: it has the columns "
                f"{listed(columns)}, this run writes {listed(expected)}. Choose another file, or "
                f"pass append=False to overwrite it."
            )
        return existing if existing.endswith("\n") else f"{existing}\n"

    def _require_same_run(self, existing: str) -> None:
        """Refuse to overwrite a file that this run did not write."""
        text = self.text or ""
        if text.startswith(existing):
            return
        expected, columns = self._columns(text), self._existing_columns(existing)
        # epochs after the checkpoint, which are trained again, may have added columns
        if columns[: len(expected)] != expected:
            raise ConfigurationError(
                f"{self.name} cannot continue {str(self.path)!r}: it has the columns "
                f"{listed(columns)}, the log of this run has {listed(expected)}. Move that file "
                f"away, and the log is written again."
            )

    # ---- the mark -------------------------------------------------------------------------------

    def _set_mark(self, text: str) -> None:
        with self._file.errors_handled():
            self._mark.set(text, self._save_folders())

    def _remove_mark(self) -> None:
        with self._file.errors_handled():
            self._mark.remove()

    def _save_folders(self) -> list[Path]:
        return [saver.folder for saver in self.handler.callbacks if isinstance(saver, Saver)]

    def _without_killed_run(self, existing: str) -> str:
        """The existing text as it was before a run began that is now started again."""
        mark = self._mark.read(self._save_folders()) if self.params.get("resume") else None
        return existing if mark is None or not self._begins_with(existing, mark) else mark

    def _begins_with(self, text: str, begin: str) -> bool:
        """Whether ``text`` is ``begin`` with more rows, and perhaps with more columns."""
        if text.startswith(begin):
            return True
        try:
            (columns, rows), (first_columns, first_rows) = self.parse(text), self.parse(begin)
        except ValueError:
            return False
        first = [self.render_row(first_columns, row) for row in rows[: len(first_rows)]]
        has_columns = columns[: len(first_columns)] == first_columns
        return has_columns and first == [self.render_row(first_columns, r) for r in first_rows]
