"""``fitkit prune``: deletes old checkpoints by retention rules."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing.catalog.pruning import plan_pruning
from fitkit.checkpointing.catalog.scan import scan_folder
from fitkit.checkpointing.savers.retention import Retention
from fitkit.cli.command_group import CommandFailed, main
from fitkit.cli.printing import echo, format_count, json_option, print_json, show_progress
from fitkit.core.formatting import format_bytes

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
@click.option("--monitor", metavar="NAME", help="The logged value that defines the best.")
@click.option(
    "--mode",
    type=click.Choice(["auto", "min", "max"]),
    default="auto",
    show_default=True,
    help="Whether a lower or a higher value is better; auto: by the name.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
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

    Each run is pruned separately, by position in the run, not by file times. The valid checkpoint
    furthest in a run is always kept, and so are the files that its savers recorded as their best.
    Files with only weights, damaged files and files of other programs are never touched.
    """
    if keep_last is None and keep_best is None and keep_every is None:
        raise click.UsageError("Pass what to keep: --keep-last, --keep-best or --keep-every.")
    retention = Retention(keep_last, keep_best, monitor, mode, keep_every)
    plan = plan_pruning(scan_folder(folder, verify=True, show_progress=show_progress), retention)
    freed = plan.freed_bytes
    problems = [] if dry_run else plan.remove()
    if as_json:
        print_json(
            {
                "removed": [file.path for file in plan.obsolete],
                "kept": [file.path for file in plan.kept],
                "untouched": [{"path": file.path, "why": why} for file, why in plan.untouched],
                "freed_bytes": freed,
                "dry_run": dry_run,
                "problems": problems,
            }
        )
    else:
        verb = "would remove" if dry_run else "removed"
        for file in plan.obsolete:
            echo(f"{verb} {file.path}")
        for file, why in plan.untouched:
            echo(f"left alone {file.path}: {why}")
        number = format_count(len(plan.obsolete), "file")
        echo(f"{verb} {number} ({format_bytes(freed)}), kept {len(plan.kept)}")
    if problems:
        raise CommandFailed(" ".join(problems))
