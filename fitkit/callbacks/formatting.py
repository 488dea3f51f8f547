"""How values and times look to people."""

from __future__ import annotations

import datetime
from collections.abc import Mapping


def format_value(value: float) -> str:
    """A number with about four digits.

    >>> format_value(0.98125), format_value(0.0001), format_value(12345.678), format_value(0)
    ('0.9812', '1.000e-04', '12345.7', '0.0000')
    """
    size = abs(value)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return f"{value:.3e}"
    return f"{value:.1f}" if size >= 1e3 else f"{value:.4f}"


def format_logs(logs: Mapping[str, float]) -> str:
    """Names and values on one line.

    >>> format_logs({"loss": 0.25, "accuracy": 0.9})
    'loss=0.2500 accuracy=0.9000'
    """
    return " ".join(f"{name}={format_value(value)}" for name, value in logs.items())


def format_epoch(epoch: int, last_epoch: int | None) -> str:
    """The epoch ``epoch`` (from 0) as people count.

    >>> format_epoch(2, 10), format_epoch(2, None)
    ('Epoch 3/10', 'Epoch 3')
    """
    return f"Epoch {epoch + 1}" + ("" if last_epoch is None else f"/{last_epoch}")


def format_seconds(seconds: float) -> str:
    """A time span.

    >>> format_seconds(1.25), format_seconds(3725)
    ('1.2 s', '1:02:05')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(datetime.timedelta(seconds=round(seconds)))


def format_rate(rate: float) -> str:
    """A number of things per second, with three digits or more.

    >>> format_rate(0.1234), format_rate(12.34), format_rate(12345.6)
    ('0.123', '12.3', '12,346')
    """
    digits = 0 if rate >= 100 else 1 if rate >= 10 else 3
    return f"{rate:,.{digits}f}"
