"""JSONLinesLogger: the values of each epoch as a line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from fitkit.callbacks.row_logger import Row, RowLogger


class JSONLinesLogger(RowLogger):
    """Writes ``epoch`` (from 0) and the values of each epoch as one JSON object per line.

    Numbers are written so that reading them gives the same number. What an epoch did not log is
    ``null``. JSON has no numbers for what is not finite: they are the strings ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"``, which ``float`` understands. What resumes and new names do
    to the file, ``RowLogger`` says.

    Args:
        filename: the file; its folder is made when the file is.
        append: keep what a file of that name holds at the beginning of a run.

    Raises:
        ConfigurationError: an argument cannot be used; when training begins, if an existing file
            has other names.
    """

    def render_header(self, columns: Sequence[str]) -> str:
        """Nothing: each line has the names."""
        return ""

    def render_row(self, columns: Sequence[str], row: Row) -> str:
        """One object."""
        return json.dumps({name: _plain(row.get(name)) for name in columns}) + "\n"

    def parse(self, text: str) -> tuple[list[str], list[Row]]:
        """The names are those of the first line."""
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is not an object")
        return list(rows[0]) if rows else [], rows


def _plain(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
