"""CSVLogger: the values of each epoch as a row of a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from typing import Any

from fitkit.callbacks.support.epoch_file_logger import EpochFileLogger, EpochRow
from fitkit.core.errors import ConfigurationError
from fitkit.core.formatting import csv_cell, csv_rows


class CSVLogger(EpochFileLogger):
    """Writes ``epoch`` (from 0) and the values of each epoch as a row of a CSV file.

    Numbers keep all their digits. A value that an epoch did not log is an empty cell; NaN is
    ``nan``. A name that a spreadsheet would take for a formula gets a ``'`` before it. See
    ``EpochFileLogger`` for what a resume and new columns do to the file.

    Args:
        filename: the file; its folder is created with it.
        separator: one character between the cells.
        append: at the beginning of a run, keep the content of an existing file.
        on_error: ``"raise"`` or ``"warn"`` when a row cannot be written, as in ``EpochFileLogger``.
        name: key of the state in a checkpoint, to tell several callbacks of one class apart.

    Raises:
        ConfigurationError: an argument cannot be used; when training begins, if an existing file
            has other columns.

    >>> callback = CSVLogger("runs/log.csv", separator=";")
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        separator: str = ",",
        append: bool = False,
        *,
        on_error: str = "raise",
        name: str | None = None,
    ) -> None:
        super().__init__(filename, append, on_error=on_error, name=name)
        if not isinstance(separator, str) or len(separator) != 1 or separator in '"\r\n':
            raise ConfigurationError(
                f"separator must be one character such as ',' or ';', received {separator!r}."
            )
        self.separator = separator

    def render_header(self, columns: Sequence[str]) -> str:
        """The names of the columns."""
        return self._line(columns)

    def render_row(self, columns: Sequence[str], row: EpochRow) -> str:
        """The values in the order of the columns."""
        return self._line([_cell(row.get(name, "")) for name in columns])

    def parse(self, text: str) -> tuple[list[str], list[EpochRow]]:
        """Cells stay strings, so that they are written back unchanged."""
        columns, *rows = csv_rows(text, self.separator) or [[]]
        return columns, [dict(zip(columns, cells, strict=False)) for cells in rows if cells]

    def _line(self, cells: Sequence[str]) -> str:
        line = io.StringIO(newline="")
        writer = csv.writer(line, delimiter=self.separator, lineterminator="\n")
        writer.writerow(map(csv_cell, cells))
        return line.getvalue()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
