"""``fitkit ls``: the checkpoints of a folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from fitkit.checkpointing.catalogue import Entry, Run, catalogue, runs_of
from fitkit.cli.group import main
from fitkit.cli.printing import (
    age_text,
    json_option,
    number_text,
    painted,
    print_json,
    size_text,
    table,
)


@main.command(
    examples=[
        "ls runs/digits",
        "ls runs --verify --score val_accuracy",
        "ls runs --json | jq -r '.[] | select(.is_last) | .path'",
    ]
)
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option("--verify", is_flag=True, help="Check the checksums of all tensors as well.")
@click.option("--score", metavar="NAME", help="Which logged value to show.")
@json_option
def ls(folder: Path, verify: bool, score: str | None, as_json: bool) -> None:
    """List the checkpoints below FOLDER.

    The furthest in its run comes first. "last" marks the furthest in its run, "best" what a saver
    of that run calls its best, "=" a further name of the file above. Damaged files are named with
    the reason; exit code 0 says only that the folder could be listed: see verify.
    """
    entries = catalogue(folder, verify=verify)
    runs, _ = runs_of(entries)
    rows = _rows(entries, runs, folder)
    if as_json:
        print_json([_as_json(row) for row in rows])
    elif rows:
        _print(rows, score or _usual_score(entries))
    else:
        click.echo(f"There are no checkpoints below {folder}.")


@dataclass(frozen=True)
class Row:
    """A file as it is listed."""

    entry: Entry
    name: str
    run: int | None
    is_best: bool
    is_last: bool


def _rows(entries: list[Entry], runs: list[Run], folder: Path) -> list[Row]:
    """Run by run and by place in it, names of one file together; then what has no place."""
    runs_by_path = {one.path: number for number, run in enumerate(runs) for one in run.entries}
    rows = []
    for one in entries:
        run = runs_by_path.get(one.path)
        is_best = any(one.file_id in other.best for other in runs)
        is_last = run is not None and one.place == runs[run].last.place
        rows.append(Row(one, one.path.relative_to(folder).as_posix(), run, is_best, is_last))

    def key(row: Row) -> tuple[Any, ...]:
        run = len(runs) if row.run is None else row.run
        return run, [-n for n in row.entry.place], row.entry.file_id, row.name

    return sorted(rows, key=key)


def _usual_score(entries: list[Entry]) -> str:
    names = {name for one in entries if one.metadata for name in one.metadata.metrics}
    return "val_loss" if "val_loss" in names else "loss"


def _as_json(row: Row) -> dict[str, Any]:
    entry, found = row.entry, row.entry.metadata
    return {
        "path": entry.path,
        "name": row.name,
        "kind": entry.kind,
        "problem": entry.problem,
        "size_bytes": entry.size_bytes,
        "modified": datetime.fromtimestamp(entry.modified, timezone.utc).isoformat(),
        "file_id": f"{entry.file_id[0]}:{entry.file_id[1]}",
        "run": row.run,
        "epoch": found and found.epoch,
        "batch": found and found.batch,
        "global_step": found and found.global_step,
        "scores": found and found.metrics,
        "is_best": row.is_best,
        "is_last": row.is_last,
    }


def _print(rows: list[Row], score: str) -> None:
    cells: list[tuple[str, ...]] = [("name", "epoch", "step", score, "size", "age", "")]
    for number, row in enumerate(rows):
        entry = row.entry
        is_again = number > 0 and entry.file_id == rows[number - 1].entry.file_id
        marks = {entry.kind: entry.kind != "checkpoint", "best": row.is_best, "last": row.is_last}
        cells.append(
            (
                row.name,
                *_place(entry, score),
                "=" if is_again else size_text(entry.size_bytes),
                age_text(time.time() - entry.modified),
                " ".join(mark for mark, is_so in marks.items() if is_so),
            )
        )
    head, *lines = table(cells, right=(1, 2, 3, 4, 5))
    click.echo(head)
    for number, (line, row) in enumerate(zip(lines, rows, strict=True)):
        if number and row.run != rows[number - 1].run:
            click.echo()
        click.echo(painted(line, fg="red") if row.entry.kind == "damaged" else line)
    for row in rows:
        if row.entry.problem is not None:
            click.echo(row.entry.problem, err=True)


def _place(entry: Entry, score: str) -> tuple[str, str, str]:
    found = entry.metadata
    if found is None:
        return "", "", ""
    epoch = f"{found.epoch}+{found.batch}" if found.batch else str(found.epoch)
    return epoch, str(found.global_step), number_text(found.metrics.get(score))
