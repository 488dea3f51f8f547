"""Shared options of the commands, and their output: numbers, tables, one JSON document."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fitkit.core.errors import SaveError, listed
from fitkit.core.formatting import dtype_name
from fitkit.core.is_tensor import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)
force_option = click.option("--force", is_flag=True, help="Overwrite existing files.")

_BRACKETS: Mapping[type, str] = {dict: "{}", list: "[]", tuple: "()"}


def format_number(value: Any) -> str:
    """A logged value; ``-`` if there is none.

    >>> format_number(0.75615777), format_number(3), format_number(None)
    ('0.75616', '3', '-')
    """
    return f"{value:.5g}" if isinstance(value, float) else "-" if value is None else str(value)


def format_count(number: int, noun: str, plural: str = "s") -> str:
    """A number of things.

    >>> format_count(1, "tensor"), format_count(12000, "batch", "es")
    ('1 tensor', '12,000 batches')
    """
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def format_shape(shape: Sequence[int]) -> str:
    """The shape of a tensor.

    >>> format_shape((4, 3)), format_shape(())
    ('4 x 3', 'scalar')
    """
    return " x ".join(map(str, shape)) or "scalar"


def format_tensor(tensor: Tensor) -> str:
    """The shape and dtype of a tensor.

    >>> import torch
    >>> format_tensor(torch.ones(4, 3))
    '<4 x 3 float32>'
    """
    return f"<{format_shape(tensor.shape)} {dtype_name(tensor.dtype)}>"


def short_repr(value: Any, max_characters: int) -> str:
    """The beginning of ``repr(value)``, without making the rest: it may be very long.

    >>> short_repr([1, [2, 3]], 20), short_repr([[0] * 1000] * 1000, 8)
    ('[1, [2, 3]]', '[[0, 0, ...')
    """
    text = ""
    for piece in _repr_pieces(value):
        text += piece
        if len(text) > max_characters:
            return f"{text[:max_characters]}..."
    return text


def _repr_pieces(value: Any) -> Iterator[str]:
    kind = type(value)
    if kind not in _BRACKETS or not value or (kind is tuple and len(value) == 1):
        yield repr(value)
        return
    yield _BRACKETS[kind][0]
    for number, item in enumerate(value):
        yield ", " if number else ""
        if kind is dict:
            yield f"{item!r}: "
        yield from _repr_pieces(value[item] if kind is dict else item)
    yield _BRACKETS[kind][1]


def table(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows as lines with aligned columns.

    Args:
        rows: cells, the same number in each row.
        right: columns that are aligned at the right.

    >>> table([("a", "10"), ("bcd", "9")], right=[1])
    ['a    10', 'bcd   9']
    """
    rows, right = [tuple(map(printable, row)) for row in rows], set(right)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def colored(text: str, color: str) -> str:
    """The text in a color, unless ``NO_COLOR`` is set; ``click.echo`` removes it for files."""
    text = printable(text)
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=color)


def printable(text: str) -> str:
    r"""``text`` with escapes for what a terminal obeys: controls, line ends, text direction.

    Names and messages come from files, which anybody may have written.

    >>> print(printable("größe" + chr(27) + "[2J"))
    größe\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def echo(*lines: str, start: str = "", err: bool = False) -> None:
    """Print each line, escaped as ``printable``; all text of the commands goes through it.

    Args:
        *lines: the lines; what looks like another one inside is escaped.
        start: the colored beginning of the first one.
        err: print to stderr.
    """
    click.echo(start + "\n".join(map(printable, lines)), err=err)


def show_progress(files: list[Path]) -> Iterable[Path]:
    """``files`` with a progress bar on a terminal, after a second, which leaves no trace."""
    if not sys.stderr.isatty():
        return files
    from tqdm import tqdm  # which output that nobody watches need not wait for

    bar: Iterable[Path] = tqdm(files, delay=1, leave=False, unit=" files")
    return bar


def require_free(paths: Iterable[Path], force: bool) -> None:
    """Raise ``SaveError`` if a file exists, unless ``--force`` was given."""
    taken = [str(path) for path in paths if path.exists()]
    if taken and not force:
        raise SaveError(f"{listed(taken)} already exists: pass --force to overwrite it.")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json_text(value))  # JSON escapes by itself


def print_written(paths: Sequence[Path], as_json: bool) -> None:
    """Print which files were written."""
    if as_json:
        print_json({"written": paths})
    else:
        echo(*(f"wrote {path}" for path in paths))


def json_text(value: Any) -> str:
    """One JSON document; a number that is not finite is null, as JSON has none.

    >>> json_text(float("inf"))
    'null'
    """
    return json.dumps(to_json(value), indent=2, allow_nan=False)


def to_json(value: Any) -> Any:
    """``value`` in the types of JSON; a tensor is its shape and dtype.

    >>> to_json({1: (math.nan, Path("a"))})
    {'1': [None, 'a']}
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_tensor(value):
        return {"shape": list(value.shape), "dtype": dtype_name(value.dtype)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    return str(value)
