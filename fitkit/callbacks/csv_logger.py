"""CSVLogger: the values of each epoch as a row of a CSV file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from typing import Any

from fitkit.callbacks.row_logger import Row, RowLogger
from fitkit.core.errors import ConfigurationError


class CSVLogger(RowLogger):
    """Writes ``epoch`` (from 0) and the values of each epoch as a row of a CSV file.

    Numbers are written so that reading them gives the same number. What an epoch did not log is an
    empty cell; NaN is ``nan``. What resumes and new columns do to the file, ``RowLogger`` says.

    Args:
        filename: the file; its folder is made when the file is.
        separator: one character between the cells.
        append: keep what a file of that name holds at the beginning of a run.

    Raises:
        ConfigurationError: an argument cannot be used; when training begins, if an existing file
            has other columns.
    """

    def __init__(
        self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False
    ) -> None:
        super().__init__(filename, append)
        if not isinstance(separator, str) or len(separator) != 1 or separator in '"\r\n':
            raise ConfigurationError(
                f"separator must be one character such as ',' or ';', received {separator!r}."
            )
        self.separator = separator

    def render_header(self, columns: Sequence[str]) -> str:
        """The names."""
        return self._line(columns)

    def render_row(self, columns: Sequence[str], row: Row) -> str:
        """The values in the order of the columns."""
        return self._line([_cell(row.get(name, "")) for name in columns])

    def parse(self, text: str) -> tuple[list[str], list[Row]]:
        """Cells stay strings, so that they are written again as they are."""
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=self.separator))
        columns = lines[0] if lines else []
        return columns, [dict(zip(columns, cells, strict=False)) for cells in lines[1:] if cells]

    def _line(self, cells: Sequence[str]) -> str:
        line = io.StringIO(newline="")
        csv.writer(line, delimiter=self.separator, lineterminator="\n").writerow(cells)
        return line.getvalue()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
