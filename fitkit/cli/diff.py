"""``fitkit diff``: what two files hold differently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from fitkit.checkpointing import checkpoint
from fitkit.checkpointing.comparing import MISSING, Difference, compare
from fitkit.checkpointing.loading import read_weights
from fitkit.cli.group import NO, main
from fitkit.cli.printing import count_text, dtype_text, json_option, print_json, shape_text, to_json

_LONGEST = 60


@main.command(
    examples=[
        "diff runs/a/last.pth runs/b/last.pth",
        "diff a.pth b.pth --ignore rng --ignore 'callback_states/*/state'",
        "diff checkpoint.pth weights.pth --weights && echo the same weights",
    ],
    no="they differ",
)
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--ignore",
    multiple=True,
    metavar="KEY",
    help="A path to leave out, with all below it; * and ? stand for any text. Repeatable.",
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
    """Say what differs between two files.

    They are compared leaf by leaf, bit for bit. A leaf is named by the keys that lead to it, such
    as history/history/loss/3. With --weights the averaged weights are compared where a file has
    them.
    """
    if weights:
        sides: list[Any] = [read_weights(path) for path in (first, second)]
    else:
        sides = [checkpoint.read(path, mmap=True) for path in (first, second)]
    found = compare(sides[0], sides[1], ignore)
    if as_json:
        documents = [_as_json(one) for one in found]
        print_json({"equal": not documents, "differences": documents})
        ctx.exit(NO if documents else 0)
    number = 0
    for one in found:
        click.echo(_line(one))
        number += 1
    total = count_text(number, "place")
    click.echo(f"They differ in {total}." if number else "They are equal.")
    ctx.exit(NO if number else 0)


def _line(one: Difference) -> str:
    if one.second is MISSING:
        return f"{one.path}: only in A: {_shown(one.first)}"
    if one.first is MISSING:
        return f"{one.path}: only in B: {_shown(one.second)}"
    if one.num_different is not None:
        elements = f"{one.num_different:,} of {count_text(one.first.numel(), 'element')}"
        return f"{one.path}: in {elements}, by at most {one.largest:.5g}"
    return f"{one.path}: {_shown(one.first)} | {_shown(one.second)}"


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"<{shape_text(value.shape)} {dtype_text(value)}>"
    if isinstance(value, Mapping):
        return f"<{count_text(len(value), 'key')}>"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _as_json(one: Difference) -> dict[str, Any]:
    sides = {"first": one.first, "second": one.second}
    found: dict[str, Any] = {"path": one.path}
    found |= {name: to_json(value) for name, value in sides.items() if value is not MISSING}
    if one.num_different is not None:
        found |= {"num_different": one.num_different, "largest": one.largest}
    return found
