"""Tables and curves as HTML for notebooks; text is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Any

_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd")
_MAX_POINTS = 400  # a curve is a few hundred pixels wide


class Html(str):
    """Text that is already HTML and is not escaped."""

    __slots__ = ()


def table(rows: Iterable[Sequence[Any]], header: Sequence[Any] = ()) -> Html:
    """A table; cells are escaped unless they are ``Html``.

    >>> table([["a<b"]])
    '<table><tr><td style="text-align:left">a&lt;b</td></tr></table>'
    """
    head = f"<tr>{''.join(_cell('th', cell) for cell in header)}</tr>" if header else ""
    body = "".join(f"<tr>{''.join(_cell('td', cell) for cell in row)}</tr>" for row in rows)
    return Html(f"<table>{head}{body}</table>")


def _cell(kind: str, value: Any) -> str:
    inner = value if isinstance(value, Html) else escape(str(value))
    return f'<{kind} style="text-align:left">{inner}</{kind}>'


def curve(lines: Mapping[str, Sequence[float]], width: int = 220, height: int = 44) -> Html:
    """Named lines over a common scale as inline SVG; values that are not finite are left out."""
    points = {name: _finite(values) for name, values in lines.items()}
    ys = [y for line in points.values() for _, y in line]
    if not ys:
        return Html("")
    low, high = min(ys), max(ys)
    last = max(max(len(values) for values in lines.values()) - 1, 1)
    span = (high - low) or 1.0
    drawn = ""
    for (name, line), color in zip(points.items(), cycle(_COLORS), strict=False):
        if line:
            xs = [3 + x / last * (width - 6) for x, _ in line]
            ys = [height - 3 - (y - low) / span * (height - 6) for _, y in line]
            drawn += _line(name, list(zip(xs, ys, strict=True)), color)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return Html(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{drawn}</svg>')


def _finite(values: Sequence[float]) -> list[tuple[int, float]]:
    step = math.ceil(len(values) / _MAX_POINTS) or 1
    chosen = {*range(0, len(values), step), len(values) - 1} if values else set()
    return [(x, values[x]) for x in sorted(chosen) if math.isfinite(values[x])]


def _line(name: str, points: Sequence[tuple[float, float]], color: str) -> str:
    title = f"<title>{escape(name)}</title>"
    if len(points) == 1:
        ((x, y),) = points
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{color}">{title}</circle>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = f'fill="none" stroke="{color}" stroke-width="1.5"'
    return f'<polyline points="{path}" {style}>{title}</polyline>'
