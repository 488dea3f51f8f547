"""``fitkit convert``: a checkpoint as a single file or as a sharded checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing.storage import single_or_sharded
from fitkit.cli.command_group import main
from fitkit.cli.printing import echo, force_option, json_option, print_json, require_free


@main.command(
    examples=["convert runs/best.pth one-file.pth", "convert one-file.pth shared.pth --sharded"]
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--sharded",
    is_flag=True,
    help="Write the tensors to a folder next to TARGET, from which each rank reads its part.",
)
@force_option
@json_option
def convert(source: Path, target: Path, sharded: bool, force: bool, as_json: bool) -> None:
    """Write a checkpoint as a single file or sharded.

    SOURCE may have either form; it is not changed.
    """
    require_free([target], force)
    single_or_sharded.convert(source, target, sharded=sharded)
    if as_json:
        print_json({"written": target, "size_bytes": single_or_sharded.size_bytes(target)})
    else:
        echo(f"wrote {target}")
