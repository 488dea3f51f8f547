"""RowLogger: what the loggers that write one row per epoch share."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from fitkit.checkpointing import files
from fitkit.core.callback import Callback
from fitkit.core.errors import ConfigurationError, listed
from fitkit.core.logs import Logs

Row = Mapping[str, Any]


class RowLogger(Callback):
    """Writes the values of each epoch as one row of a text file.

    A row is in the file when the epoch's hooks are over. The rows are part of the checkpoint, so a
    resumed run first makes the file what it was then: rows of epochs that will be trained again are
    cut off, and a file that is missing or too short is written anew. A name that appears for the
    first time becomes a column, for which the file is rewritten as a whole.

    Only the main process writes. A second ``fit`` of the same run goes on with the file.

    Args:
        filename: the file; its folder is made when the file is.
        append: keep what a file of that name holds at the beginning of a run, instead of beginning
            it anew.

    Attributes:
        text: what the file holds; ``None`` before a run has begun.

    Raises:
        ConfigurationError: when training begins, if an existing file has other columns.
    """

    order = 100
    spans_fits = True
    writes_files = True
    state_fields: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(self, filename: str | os.PathLike[str], append: bool = False) -> None:
        if not isinstance(filename, (str, os.PathLike)) or not str(filename):
            raise ConfigurationError(
                f"filename must be the path of the file to write, received {filename!r}."
            )
        self.path = Path(filename)
        self.append = bool(append)
        self.text: str | None = None

    def identity(self) -> str:
        """The file's name; its folder may be moved."""
        return self.path.name

    # ---- the format -----------------------------------------------------------------------------

    @abstractmethod
    def render_header(self, columns: Sequence[str]) -> str:
        """What stands above the rows."""

    @abstractmethod
    def render_row(self, columns: Sequence[str], row: Row) -> str:
        """One row as a line; columns that it does not have are marked as missing."""

    @abstractmethod
    def parse(self, text: str) -> tuple[list[str], list[Row]]:
        """Columns and rows of a file, so that rendering them gives the same text.

        Raises:
            ValueError: the text is not of this format.
        """

    # ---- hooks ----------------------------------------------------------------------------------

    def on_train_begin(self, logs: Logs) -> None:
        """Make the file what it has to be at this point of the run."""
        if not self.handler.world.is_main:
            return
        found = self._read()
        if self.text is None:
            self.text = self._kept(found) if self.append and found else ""
        elif found is not None and found != self.text:
            self._require_own(found)
        if found != self.text:
            self._write_whole(self.text)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the epoch's row."""
        if not self.handler.world.is_main:
            return
        text = self.text or ""
        columns = self._columns(text)
        row = {**logs, "epoch": epoch}
        new = [name for name in ("epoch", *logs) if name not in columns]
        if new and columns:
            rows: list[Row] = [*self.parse(text)[1], row]
            self.text = self._render([*columns, *new], rows)
            self._write_whole(self.text)
        else:
            header = self.render_header(new) if new else ""
            line = header + self.render_row(columns or new, row)
            self.text = text + line
            _append(self.path, line)

    def _write_whole(self, text: str) -> None:
        files.replace(self.path, lambda file: file.write(text.encode("utf-8")))

    def _render(self, columns: Sequence[str], rows: Sequence[Row]) -> str:
        return self.render_header(columns) + "".join(self.render_row(columns, row) for row in rows)

    def _columns(self, text: str) -> list[str]:
        first, newline, _ = text.partition("\n")
        return self.parse(first + newline)[0] if first else []

    # ---- the file that is there already ---------------------------------------------------------

    def _read(self) -> str | None:
        try:
            return self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def _columns_found(self, text: str) -> list[str]:
        try:
            return self._columns(text)
        except ValueError:
            return []

    def _kept(self, found: str) -> str:
        """The existing file's text, if rows of this run fit below it."""
        columns = self._columns_found(found)
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
        return found if found.endswith("\n") else f"{found}\n"

    def _require_own(self, found: str) -> None:
        """Do not cut a file that this run did not write."""
        text = self.text or ""
        if text.startswith(found):
            return
        known, columns = self._columns(text), self._columns_found(found)
        # a later part of the run, which is trained again now, may have added columns
        if columns[: len(known)] != known:
            raise ConfigurationError(
                f"{self.name} cannot go on with {str(self.path)!r}: it has the columns "
                f"{listed(columns)}, the run's log has {listed(known)}. Move that file away, and "
                f"the log is written anew."
            )


def _append(path: Path, line: str) -> None:
    with path.open("ab") as file:
        file.write(line.encode("utf-8"))
