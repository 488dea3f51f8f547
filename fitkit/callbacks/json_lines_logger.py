"""JSONLinesLogger: the values of each epoch as a line of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from fitkit.callbacks.support.epoch_file_logger import EpochFileLogger, EpochRow


class JSONLinesLogger(EpochFileLogger):
    """Writes ``epoch`` (from 0) and the values of each epoch as one JSON object per line.

    Numbers keep all their digits. A value that an epoch did not log is ``null``; NaN and
    infinities, which JSON lacks, are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``. See
    ``EpochFileLogger`` for what a resume and new names do to the file.

    Args:
        filename: the file; its folder is created with it.
        append: at the beginning of a run, keep the content of an existing file.
        on_error: ``"raise"`` or ``"warn"`` when a row cannot be written, as in ``EpochFileLogger``.
        name: key of the state in a checkpoint, to tell several callbacks of one class apart.

    Raises:
        ConfigurationError: an argument cannot be used; when training begins, if an existing file
            has other names.

    >>> callback = JSONLinesLogger("runs/log.jsonl")
    """

    def render_header(self, columns: Sequence[str]) -> str:
        """Nothing: each line has the names."""
        return ""

    def render_row(self, columns: Sequence[str], row: EpochRow) -> str:
        """The values as one object."""
        return json.dumps({name: _to_json(row.get(name)) for name in columns}) + "\n"

    def parse(self, text: str) -> tuple[list[str], list[EpochRow]]:
        """The columns are the names in the first line."""
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is not an object")
        return list(rows[0]) if rows else [], rows


def _to_json(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
