"""EpochFileLogger: base class of the loggers that write one row per epoch to a text file."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitkit.checkpointing.storage import atomic_write
from fitkit.core.argument_checks import require_path
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import ConfigurationError, listed
from fitkit.core.logs import Logs

EpochRow = Mapping[str, Any]


class EpochFileLogger(BuiltinCallback):
    """Writes the values of each epoch as one row of a text file.

    Only rank 0 writes. A row is in the file at the end of its epoch. The rows are part of the
    checkpoint, so a resumed run first restores the file: rows of epochs that are trained again are
    cut off, and a file that is missing or too short is written again. A second ``fit`` of the same
    handler continues the file. When a name is logged for the first time, it becomes a column, and
    the whole file is rewritten.

    Attributes:
        text: the content of the file; ``None`` before a run has begun.
    """

    order = 100
    spans_fits = True
    writes_files = True
    has_fixed_state_types = True
    state_fields = ("text",)

    def __init__(self, filename: str | os.PathLike[str], append: bool = False) -> None:
        require_path("filename", filename)
        self.path = Path(filename)
        self.append = bool(append)
        self.text: str | None = None

    def identity(self) -> str:
        """The file's name without its folder, which may be moved."""
        return self.path.name

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
        existing = self._read()
        if self.text is None:
            self.text = self._text_to_append_to(existing) if self.append and existing else ""
        elif existing is not None and existing != self.text:
            self._require_same_run(existing)
        if existing != self.text:
            self._write_file(self.text)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the row of the epoch."""
        if not self.handler.world.is_main:
            return
        text = self.text or ""
        columns = self._columns(text)
        row = {**logs, "epoch": epoch}
        new = [name for name in ("epoch", *logs) if name not in columns]
        if new and columns:
            rows, columns = [*self.parse(text)[1], row], [*columns, *new]
            lines = [self.render_row(columns, row) for row in rows]
            self.text = self.render_header(columns) + "".join(lines)
            self._write_file(self.text)
        else:
            header = self.render_header(new) if new else ""
            line = header + self.render_row(columns or new, row)
            self.text = text + line
            with self.path.open("ab") as file:
                file.write(line.encode("utf-8"))

    def _write_file(self, text: str) -> None:
        atomic_write.replace(self.path, lambda file: file.write(text.encode("utf-8")))

    def _columns(self, text: str) -> list[str]:
        first, newline, _ = text.partition("\n")
        return self.parse(first + newline)[0] if first else []

    # ---- an existing file -----------------------------------------------------------------------

    def _read(self) -> str | None:
        try:
            return self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def _existing_columns(self, existing: str) -> list[str]:
        try:
            return self._columns(existing)
        except ValueError:
            return []

    def _text_to_append_to(self, existing: str) -> str:
        """The existing text, if it has the columns of this run."""
        columns = self._existing_columns(existing)
        measured = ["loss", *self.params.get("metrics", ())]
        expected = ["epoch", *measured]
        if self.params.get("validation"):
            expected += [f"val_{name}" for name in measured]
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
