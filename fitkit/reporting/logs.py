"""The files of CSVLogger and JSONLinesLogger, read as curves."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fitkit.reporting.curves import Curves

_SEPARATORS = ",;\t|"


def read_log(path: Path) -> Curves | None:
    """The rows of a log; ``None`` if the file is no log of epochs.

    A row that was cut off, or whose epoch is no number, is left out; a cell without a number is a
    missing value.

    Raises:
        OSError: the file cannot be read.
    """
    text = path.read_bytes().decode("utf-8", errors="replace")
    rows = _json_rows(text) if path.suffix == ".jsonl" else _csv_rows(text)
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        epoch = _number(row.get("epoch"))
        if epoch.is_integer() and epoch >= 0:
            found[int(epoch)] = {
                name: _number(value) for name, value in row.items() if name != "epoch"
            }
    names = dict.fromkeys(name for row in found.values() for name in row)
    epochs = sorted(found)
    columns = {name: [found[epoch].get(name, math.nan) for epoch in epochs] for name in names}
    return Curves(epochs, columns) if found else None


def _csv_rows(text: str) -> Iterable[Mapping[str, Any]]:
    header = text.partition("\n")[0]
    for separator in _SEPARATORS:
        names = next(csv.reader([header], delimiter=separator), [])
        if "epoch" in names:
            lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            next(lines)
            return [dict(zip(names, cells, strict=True)) for cells in lines if _fits(cells, names)]
    return []


def _fits(cells: list[str], names: list[str]) -> bool:
    return len(cells) == len(names)


def _json_rows(text: str) -> Iterable[Mapping[str, Any]]:
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _number(value: Any) -> float:
    """A cell as a number; NaN where there is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
