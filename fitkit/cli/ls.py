"""``fitkit ls``: the checkpoints of a folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from fitkit.checkpointing.catalog.scan import CheckpointFile, RunFiles, group_runs, scan_folder
from fitkit.cli.command_group import main
from fitkit.cli.printing import (
    colored,
    echo,
    format_number,
    json_option,
    print_json,
    show_progress,
    table,
)
from fitkit.core.formatting import format_age, format_bytes


@main.command(
    examples=[
        "ls runs/digits",
        "ls runs --verify --score val_accuracy",
        "ls runs --json | jq -r '.[] | select(.is_last) | .path'",
    ]
)
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--verify", is_flag=True, help="Also verify the checksums of all tensors.")
@click.option("--score", metavar="NAME", help="The logged value to show.")
@json_option
def ls(folder: Path, verify: bool, score: str | None, as_json: bool) -> None:
    """List the checkpoints below FOLDER.

    The checkpoint furthest in its run comes first and is marked "last". "best" marks the file that
    a saver of that run recorded as its best, "=" a further name of the file above. For damaged
    files the reason is shown; the exit code is 0 nevertheless: see verify.
    """
    entries = scan_folder(folder, verify=verify, show_progress=show_progress)
    runs, _ = group_runs(entries)
    rows = _rows(entries, runs, folder)
    if as_json:
        print_json([_as_json(row) for row in rows])
    elif rows:
        _print(rows, score or _default_score(entries))
    else:
        echo(f"There are no checkpoints below {folder}.")


@dataclass(frozen=True)
class ListedFile:
    """A file in the list."""

    entry: CheckpointFile
    name: str
    run: int | None
    is_best: bool
    is_last: bool


def _rows(entries: list[CheckpointFile], runs: list[RunFiles], folder: Path) -> list[ListedFile]:
    """Sorted by run and by position in it, names of one file together; then files without one."""
    runs_by_path = {file.path: number for number, run in enumerate(runs) for file in run.files}
    best = {file_id for run in runs for file_id in run.best}
    rows = []
    for file in entries:
        run = runs_by_path.get(file.path)
        is_last = run is not None and file.position == runs[run].last.position
        rows.append(
            ListedFile(
                file,
                file.path.relative_to(folder).as_posix(),
                run,
                is_best=file.file_id in best,
                is_last=is_last,
            )
        )
    last = len(runs)  # files of no run come after all runs
    return sorted(
        rows,
        key=lambda row: (
            last if row.run is None else row.run,
            [-number for number in row.entry.position],
            row.entry.file_id,
            row.name,
        ),
    )


def _default_score(entries: list[CheckpointFile]) -> str:
    names = {name for file in entries if file.metadata for name in file.metadata.metrics}
    return "val_loss" if "val_loss" in names else "loss"


def _as_json(row: ListedFile) -> dict[str, Any]:
    entry, metadata = row.entry, row.entry.metadata
    return {
        "path": entry.path,
        "name": row.name,
        "kind": entry.kind,
        "problem": entry.problem,
        "size_bytes": entry.size_bytes,
        "modified": datetime.fromtimestamp(entry.modified, timezone.utc).isoformat(),
        "file_id": f"{entry.file_id[0]}:{entry.file_id[1]}",
        "run": row.run,
        "epoch": metadata and metadata.epoch,
        "batch": metadata and metadata.batch,
        "global_step": metadata and metadata.global_step,
        "scores": metadata and metadata.metrics,
        "is_best": row.is_best,
        "is_last": row.is_last,
    }


def _print(rows: list[ListedFile], score: str) -> None:
    cells: list[tuple[str, ...]] = [("name", "epoch", "step", score, "size", "age", "")]
    for number, row in enumerate(rows):
        entry = row.entry
        is_same_file = number > 0 and entry.file_id == rows[number - 1].entry.file_id
        marks = {entry.kind: entry.kind != "checkpoint", "best": row.is_best, "last": row.is_last}
        cells.append(
            (
                row.name,
                *_position(entry, score),
                "=" if is_same_file else format_bytes(entry.size_bytes),
                format_age(time.time() - entry.modified),
                " ".join(mark for mark, is_so in marks.items() if is_so),
            )
        )
    head, *lines = table(cells, right=(1, 2, 3, 4, 5))
    echo(head)
    for number, (line, row) in enumerate(zip(lines, rows, strict=True)):
        if number and row.run != rows[number - 1].run:
            echo("")
        is_damaged = row.entry.kind == "damaged"
        echo("" if is_damaged else line, start=colored(line, "red") if is_damaged else "")
    for row in rows:
        if row.entry.problem is not None:
            echo(row.entry.problem, err=True)


def _position(entry: CheckpointFile, score: str) -> tuple[str, str, str]:
    metadata = entry.metadata
    if metadata is None:
        return "", "", ""
    epoch = f"{metadata.epoch}+{metadata.batch}" if metadata.batch else str(metadata.epoch)
    return epoch, str(metadata.global_step), format_number(metadata.metrics.get(score))
