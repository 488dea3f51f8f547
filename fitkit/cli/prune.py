"""``fitkit prune``: old checkpoints removed by the rules of retention."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing.catalogue import catalogue
from fitkit.checkpointing.pruning import plan_pruning
from fitkit.checkpointing.retention import Retention
from fitkit.cli.group import Failure, main
from fitkit.cli.printing import count_text, json_option, print_json, size_text

_COUNT = click.IntRange(min=1)


@main.command(
    examples=[
        "prune runs/digits --keep-last 2 --dry-run",
        "prune runs --keep-last 1 --keep-best 3 --monitor val_loss",
        "prune runs --keep-best 1 --monitor dice --mode max --keep-every 10",
    ]
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--keep-last", type=_COUNT, metavar="N", help="Keep the N furthest in the run.")
@click.option("--keep-best", type=_COUNT, metavar="N", help="Keep the N best by --monitor.")
@click.option("--keep-every", type=_COUNT, metavar="N", help="Keep the end of every N-th epoch.")
@click.option("--monitor", metavar="NAME", help="The logged value that decides what is best.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "min", "max"]),
    default="auto",
    show_default=True,
    help="Whether less or more of it is better; auto: known from the name.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def prune(
    folder: Path,
    keep_last: int | None,
    keep_best: int | None,
    keep_every: int | None,
    monitor: str | None,
    mode: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove the checkpoints below FOLDER that no rule keeps.

    Each run is taken by itself, by places in it, not by times of files. The furthest whole
    checkpoint of a run always stays, and so does what its savers call their best. Weights alone,
    damaged files and files of others are never touched.
    """
    if keep_last is None and keep_best is None and keep_every is None:
        raise click.UsageError("Say what to keep: --keep-last, --keep-best or --keep-every.")
    retention = Retention(keep_last, keep_best, monitor, mode, keep_every)
    plan = plan_pruning(catalogue(folder, verify=True), retention)
    freed = plan.freed_bytes
    problems = [] if dry_run else plan.remove()
    if as_json:
        print_json(
            {
                "removed": [one.path for one in plan.obsolete],
                "kept": [one.path for one in plan.kept],
                "untouched": [{"path": one.path, "why": why} for one, why in plan.untouched],
                "freed_bytes": freed,
                "dry_run": dry_run,
                "problems": problems,
            }
        )
    else:
        verb = "would remove" if dry_run else "removed"
        for one in plan.obsolete:
            click.echo(f"{verb} {one.path}")
        for one, why in plan.untouched:
            click.echo(f"left alone {one.path}: {why}")
        number = count_text(len(plan.obsolete), "file")
        click.echo(f"{verb} {number} ({size_text(freed)}), kept {len(plan.kept)}")
    if problems:
        raise Failure(" ".join(problems))
