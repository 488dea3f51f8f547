"""Values, sizes and durations as text."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Mapping

_FORMULA_SIGNS = "=+-@\t\r\n"
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_value(value: float) -> str:
    """A logged value with about four digits.

    >>> format_value(0.98125), format_value(0.0001), format_value(12345.678), format_value(0)
    ('0.9812', '1.000e-04', '12345.7', '0.0000')
    """
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return f"{value:.3e}"
    return f"{value:.1f}" if size >= 1e3 else f"{value:.4f}"


def csv_cell(text: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula; ``from_csv_cell`` undoes it.

    >>> csv_cell("=cmd()"), csv_cell("loss"), csv_cell("-1.5")
    ("'=cmd()", 'loss', '-1.5')
    """
    return f"'{text}" if _is_formula(text) else text


def from_csv_cell(text: str) -> str:
    """The text of a cell that ``csv_cell`` wrote.

    >>> from_csv_cell("'=cmd()"), from_csv_cell("'s")
    ('=cmd()', "'s")
    """
    return text[1:] if text[:1] == "'" and _is_formula(text) else text


def csv_rows(text: str, separator: str = ",") -> list[list[str]]:
    r"""The cells of each line of CSV that was written with ``csv_cell``; none of other text.

    >>> csv_rows("epoch,'=cmd()\n0,1\n")
    [['epoch', '=cmd()'], ['0', '1']]
    """
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return [list(map(from_csv_cell, cells)) for cells in lines]
    except csv.Error:  # such as a cell of 128 KiB, or for Python 3.10 a zero byte
        return []


def _is_formula(text: str) -> bool:
    """Whether what follows the quotes at the beginning of ``text`` begins a formula."""
    rest = text.lstrip("'")
    if rest[:1] not in _FORMULA_SIGNS or not rest:
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def format_logs(logs: Mapping[str, float]) -> str:
    """Names and values on one line.

    >>> format_logs({"loss": 0.25, "accuracy": 0.9})
    'loss=0.2500 accuracy=0.9000'
    """
    return " ".join(f"{name}={format_value(value)}" for name, value in logs.items())


def format_epoch(epoch: int, last_epoch: int | None) -> str:
    """The title of epoch ``epoch``, which is counted from 0 in the library and from 1 in text.

    >>> format_epoch(2, 10), format_epoch(2, None)
    ('Epoch 3/10', 'Epoch 3')
    """
    return f"Epoch {epoch + 1}" + ("" if last_epoch is None else f"/{last_epoch}")


def format_bytes(num_bytes: float) -> str:
    """A size in its largest binary unit.

    >>> format_bytes(512), format_bytes(20937), format_bytes(3 << 30)
    ('512 B', '20.4 KiB', '3.0 GiB')
    """
    for unit in _BYTE_UNITS:
        if num_bytes < 1024 or unit == _BYTE_UNITS[-1]:
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration; from one minute on as a clock shows it.

    >>> format_seconds(1.25), format_seconds(3725)
    ('1.2 s', '1:02:05')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(datetime.timedelta(seconds=round(seconds)))


def format_age(seconds: float) -> str:
    """A duration in its largest unit.

    >>> format_age(59.4), format_age(7200), format_age(200000)
    ('59 s', '2 h', '2 d')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def format_rate(per_second: float) -> str:
    """A number of things per second, with three digits or more.

    >>> format_rate(0.1234), format_rate(12.34), format_rate(12345.6)
    ('0.123', '12.3', '12,346')
    """
    digits = 0 if per_second >= 100 else 1 if per_second >= 10 else 3
    return f"{per_second:,.{digits}f}"


def dtype_name(dtype: object) -> str:
    """The name of a torch type.

    >>> import torch
    >>> dtype_name(torch.float32)
    'float32'
    """
    return str(dtype).removeprefix("torch.")
