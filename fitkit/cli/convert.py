"""``fitkit convert``: one file, or a file with its tensors in shards."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing import checkpoint
from fitkit.cli.group import main
from fitkit.cli.printing import force_option, json_option, print_json, require_free


@main.command(
    examples=["convert runs/best.pth one-file.pth", "convert one-file.pth shared.pth --sharded"]
)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--sharded",
    is_flag=True,
    help="Put the tensors into a folder beside TARGET, for several processes to read their part.",
)
@force_option
@json_option
def convert(source: Path, target: Path, sharded: bool, force: bool, as_json: bool) -> None:
    """Write a checkpoint in one file, or sharded.

    SOURCE stays as it is; it may have either form.
    """
    require_free([target], force)
    checkpoint.convert(source, target, sharded=sharded)
    if as_json:
        print_json({"written": target, "size_bytes": checkpoint.size_bytes(target)})
    else:
        click.echo(f"wrote {target}")
