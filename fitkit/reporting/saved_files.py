"""The saves of a run: when each happened, and the state of its file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitkit.checkpointing.catalog.scan import CheckpointFile
from fitkit.reporting.checkpoint_state import as_count, as_mapping, callback_entries

Save = dict[str, Any]
FileRow = dict[str, Any]


def recorded_by_report(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``saves`` and ``facts`` of an ``HTMLReport`` in a checkpoint; empty without one."""
    states = (saved for _, saved, _ in callback_entries(state))
    return next((saved for saved in states if {"saves", "facts"} <= set(saved)), {})


def saves_of_files(files: Sequence[CheckpointFile], folder: Path) -> list[Save]:
    """The moments at which the checkpoints in a folder were saved."""
    return [
        {
            "name": file.path.relative_to(folder).as_posix(),
            "epoch": file.metadata.epoch,
            "step": file.metadata.global_step,
            "is_best": False,
        }
        for file in files
        if file.metadata is not None
    ]


def merge_saves(recorded: Any, of_files: Sequence[Save]) -> list[Save]:
    """The recorded saves and those of files, each once, sorted by step."""
    merged: dict[tuple[Any, str], Save] = {}
    for entry in [*(recorded if isinstance(recorded, (list, tuple)) else ()), *of_files]:
        save = as_mapping(entry)
        epoch, step, name = save.get("epoch"), save.get("step"), save.get("name")
        has_position = isinstance(epoch, (int, float)) and math.isfinite(epoch) and as_count(step)
        if has_position and isinstance(name, str):
            is_best = save.get("is_best") is True
            merged.setdefault(
                (step, Path(name).name),
                {"name": name, "epoch": epoch, "step": step, "is_best": is_best},
            )
    saves = sorted(merged.values(), key=lambda save: int(save["step"]))
    return [{**save, "text": f"saved {save['name']}, step {save['step']:,}"} for save in saves]


def rows_of_files(
    files: Sequence[CheckpointFile],
    folder: Path,
    state: Mapping[str, Any],
    newest: CheckpointFile | None,
    *,
    is_verified: bool,
) -> list[FileRow]:
    """A row for each file; ``state`` is that of the newest, which names the best and the last."""
    rows, marked = [], _marked_paths(state)
    for file in files:
        name, metadata = file.path.relative_to(folder).as_posix(), file.metadata
        condition = "valid" if is_verified else "not verified"
        if file.problem is not None:
            condition = "damaged"
        elif metadata is None:
            condition += ", weights only"
        rows.append(
            {
                "name": name,
                "epoch": metadata and metadata.epoch,
                "step": metadata and metadata.global_step,
                "size": file.size_bytes,
                "condition": condition,
                "problem": file.problem,
                "marks": _marks(name, marked) + (["newest"] if file is newest else []),
            }
        )
    return rows


def rows_of_saves(saves: Sequence[Save], state: Mapping[str, Any], folder: Path) -> list[FileRow]:
    """A row for each file of a live run that exists or is being written."""
    rows, marked = [], _marked_paths(state)
    for name, save in {save["name"]: save for save in saves}.items():
        exists, marks = _exists(folder / name), _marks(name, marked)
        if exists or "last" in marks:
            rows.append(
                {
                    **save,
                    "size": None,  # files of the same content may differ in it
                    "condition": "saved" if exists else "being written",
                    "problem": None,
                    "marks": marks,
                }
            )
    return rows


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file can have this name
        return False


def _marked_paths(state: Mapping[str, Any]) -> dict[str, list[str]]:
    """The files that callbacks call their best, and those that they saved last of all.

    The paths are relative to the folders of the callbacks.
    """
    states = [saved for _, saved, _ in callback_entries(state)]
    best = [path for saved in states if isinstance(path := saved.get("best_path"), str)]
    saves = [(as_count(saved.get("last_step")), saved.get("last_path")) for saved in states]
    known = [(step, path) for step, path in saves if step is not None and isinstance(path, str)]
    last_step = max((step for step, _ in known), default=None)
    return {"best": best, "last": [path for step, path in known if step == last_step]}


def _marks(name: str, marked: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        mark
        for mark, paths in marked.items()
        if any(f"/{name}".endswith(f"/{path}") for path in paths)
    ]
