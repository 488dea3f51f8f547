"""What verbs print with: sizes, tables, one JSON document."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from fitkit.checkpointing.skeleton import dtype_name
from fitkit.core.errors import SaveError, listed

json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document instead of text."
)

force_option = click.option("--force", is_flag=True, help="Write over files that are there.")

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size_text(size: float) -> str:
    """A number of bytes for people.

    >>> size_text(512), size_text(20937), size_text(3 << 30)
    ('512 B', '20.4 KiB', '3.0 GiB')
    """
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def number_text(value: Any) -> str:
    """A logged value for people; ``-`` where there is none.

    >>> number_text(0.75615777), number_text(3), number_text(None)
    ('0.75616', '3', '-')
    """
    return f"{value:.5g}" if isinstance(value, float) else "-" if value is None else str(value)


def age_text(seconds: float) -> str:
    """A time span for people, in its largest unit.

    >>> age_text(59.4), age_text(7200), age_text(200000)
    ('59 s', '2 h', '2 d')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def count_text(number: int, noun: str, plural: str = "s") -> str:
    """A number of things.

    >>> count_text(1, "tensor"), count_text(12000, "batch", "es")
    ('1 tensor', '12,000 batches')
    """
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def shape_text(shape: Sequence[int]) -> str:
    """The shape of a tensor.

    >>> shape_text((4, 3)), shape_text(())
    ('4 x 3', 'scalar')
    """
    return " x ".join(map(str, shape)) or "scalar"


def table(rows: Iterable[Sequence[str]], right: Iterable[int] = (), indent: int = 0) -> list[str]:
    """Rows as lines with aligned columns.

    Args:
        rows: of equal lengths.
        right: columns that are aligned at the right.
        indent: spaces before each line.

    >>> table([("a", "10"), ("bcd", "9")], right=[1])
    ['a    10', 'bcd   9']
    """
    rows, right = [tuple(row) for row in rows], set(right)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " " * indent
        + "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def painted(text: str, **style: Any) -> str:
    """The text in a style, unless ``NO_COLOR`` is set; ``click.echo`` strips it for files."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **style)


def require_free(paths: Iterable[Path], force: bool) -> None:
    """Fail if something would be written over a file.

    Raises:
        SaveError: a file is there, and nobody said ``--force``.
    """
    taken = [str(path) for path in paths if path.exists()]
    if taken and not force:
        raise SaveError(f"there is {listed(taken)} already: pass --force to write over it.")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json_text(value))


def json_text(value: Any) -> str:
    """One JSON document that every reader takes: a number that is not finite is null.

    >>> json_text(float("inf"))
    'null'
    """
    return json.dumps(to_json(value), indent=2, allow_nan=False)


def to_json(value: Any) -> Any:
    """``value`` in what JSON has; a tensor by its shape and type.

    >>> to_json({1: (math.nan, Path("a"))})
    {'1': [None, 'a']}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": dtype_text(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    return str(value)


def dtype_text(tensor: Tensor) -> str:
    """The type of a tensor's values: ``float32``."""
    return dtype_name(tensor.dtype)
