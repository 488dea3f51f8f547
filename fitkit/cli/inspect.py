"""``fitkit inspect``: a checkpoint at a glance."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing.metadata import read_metadata
from fitkit.cli.group import main
from fitkit.cli.printing import json_option, print_json, table


@main.command(examples=["inspect runs/best.pth", "inspect runs/best.pth --json | jq .progress"])
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Say what a checkpoint holds, without reading its tensors."""
    found = read_metadata(path)
    rows = {"epoch": found.epoch, "batch": found.batch, "step": found.global_step}
    if as_json:
        print_json(rows)
    else:
        click.echo("\n".join(table([(name, str(value)) for name, value in rows.items()])))
