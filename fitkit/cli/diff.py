"""``fitkit diff``: the differences between two files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from fitkit.checkpointing.read_weights import read_weights
from fitkit.checkpointing.storage import single_or_sharded
from fitkit.cli.command_group import EXIT_NEGATIVE, main
from fitkit.cli.printing import (
    echo,
    format_count,
    format_tensor,
    json_option,
    print_json,
    short_repr,
    to_json,
)
from fitkit.core.tree_diff import MISSING, Difference, compare

_MOST_CHARACTERS = 60


@main.command(
    examples=[
        "diff runs/a/last.pth runs/b/last.pth",
        "diff a.pth b.pth --ignore rng --ignore 'callback_states/*/state'",
        "diff checkpoint.pth weights.pth --weights && echo the same weights",
    ],
    exit_1="the files differ",
)
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--ignore",
    multiple=True,
    metavar="KEY",
    help="A path to leave out with everything below it; * and ? match any text. Repeatable.",
)
@click.option("--weights", is_flag=True, help="Compare only the weights, of files of any kind.")
@json_option
@click.pass_context
def diff(
    ctx: click.Context,
    first: Path,
    second: Path,
    ignore: tuple[str, ...],
    weights: bool,
    as_json: bool,
) -> None:
    """Show the differences between two files.

    The files are compared leaf by leaf, bit for bit. A leaf is named by its path of keys, such as
    history/history/loss/3. With --weights, EMA weights are compared where a file has them.
    """
    if weights:
        contents: list[Any] = [read_weights(path) for path in (first, second)]
    else:
        contents = [single_or_sharded.read(path, mmap=True) for path in (first, second)]
    differences = compare(contents[0], contents[1], ignore)
    number = 0
    if as_json:
        documents = [_as_json(difference) for difference in differences]
        number = len(documents)
        print_json({"equal": not documents, "differences": documents})
    else:
        for difference in differences:  # printed one by one, as they may be many
            echo(_line(difference))
            number += 1
        places = format_count(number, "place")
        echo(f"They differ in {places}." if number else "They are equal.")
    ctx.exit(EXIT_NEGATIVE if number else 0)


def _line(difference: Difference) -> str:
    path, first, second = difference.path, difference.first, difference.second
    if second is MISSING:
        return f"{path}: only in A: {_short_text(first)}"
    if first is MISSING:
        return f"{path}: only in B: {_short_text(second)}"
    if difference.num_different is not None:
        elements = f"{difference.num_different:,} of {format_count(first.numel(), 'element')}"
        return f"{path}: in {elements}, by at most {difference.largest:.5g}"
    return f"{path}: {_short_text(first)} | {_short_text(second)}"


def _short_text(value: Any) -> str:
    if isinstance(value, Tensor):
        return format_tensor(value)
    if isinstance(value, Mapping):
        return f"<{format_count(len(value), 'key')}>"
    return short_repr(value, _MOST_CHARACTERS)


def _as_json(difference: Difference) -> dict[str, Any]:
    sides = {"first": difference.first, "second": difference.second}
    document: dict[str, Any] = {"path": difference.path}
    document |= {name: to_json(value) for name, value in sides.items() if value is not MISSING}
    if difference.num_different is not None:
        document |= {"num_different": difference.num_different, "largest": difference.largest}
    return document
