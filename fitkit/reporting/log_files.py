"""Reads the files of CSVLogger and JSONLinesLogger as curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fitkit.core.formatting import csv_rows
from fitkit.reporting.curve_data import Curves

_SEPARATORS = ",;\t|"


def read_log(path: Path) -> Curves | None:
    """The rows of a log; ``None`` if the file is not a log of epochs.

    Incomplete rows, and rows whose epoch is not a number, are skipped; a cell without a number is
    NaN.

    Raises:
        OSError: the file cannot be read.
    """
    text = path.read_bytes().decode("utf-8", errors="replace")
    rows: dict[int, dict[str, float]] = {}
    for row in _json_rows(text) if path.suffix == ".jsonl" else _csv_rows(text):
        epoch = _number(row.get("epoch"))
        if epoch.is_integer() and epoch >= 0:
            values = {name: _number(value) for name, value in row.items() if name != "epoch"}
            rows[int(epoch)] = values
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return Curves.from_rows(rows, names) if rows else None


def _csv_rows(text: str) -> Iterable[Mapping[str, Any]]:
    header = text.partition("\n")[0]
    for separator in _SEPARATORS:
        if any("epoch" in names for names in csv_rows(header, separator)):
            names, *lines = csv_rows(text, separator) or [[]]
            complete = (cells for cells in lines if len(cells) == len(names))
            return [dict(zip(names, cells, strict=True)) for cells in complete]
    return []


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
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
