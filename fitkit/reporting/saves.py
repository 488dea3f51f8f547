"""When a run saved what, and what has become of the files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitkit.reporting.configuration import as_mapping
from fitkit.reporting.folder import Checkpoint

Save = dict[str, Any]
Row = dict[str, Any]


def noted_in(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an ``HTMLReport`` of the run had noted in its state."""
    return next((told for told in told_by_callbacks(state) if {"saves", "facts"} <= set(told)), {})


def all_saves(noted: Any, files: Sequence[Save]) -> list[Save]:
    """The saves that were noted and those whose files are here, each once, in their order."""
    known: dict[tuple[Any, str], Save] = {}
    for one in [*(noted if isinstance(noted, (list, tuple)) else ()), *files]:
        save = as_mapping(one)
        epoch, step, name = save.get("epoch"), save.get("step"), save.get("name")
        is_placed = isinstance(epoch, (int, float)) and math.isfinite(epoch) and as_count(step)
        if is_placed and isinstance(name, str):
            is_best = save.get("is_best") is True
            known.setdefault(
                (step, Path(name).name),
                {"name": name, "epoch": epoch, "step": step, "is_best": is_best},
            )
    found = sorted(known.values(), key=lambda save: int(save["step"]))
    return [{**one, "text": f"saved {one['name']}, step {one['step']:,}"} for one in found]


def as_count(value: Any) -> int | None:
    """``value`` if it is a whole number."""
    return value if type(value) is int else None


def save_of(one: Checkpoint) -> Save:
    """What a file tells of the moment at which it was saved."""
    found = one.metadata
    if found is None:
        return {}
    return {"name": one.name, "epoch": found.epoch, "step": found.global_step, "is_best": False}


def rows_of_files(
    checkpoints: Sequence[Checkpoint], state: Mapping[str, Any], newest: Checkpoint | None
) -> list[Row]:
    """What is told of each file; ``state`` is that of the newest, which knows best and last."""
    best, last = _best_names(state), _last_names(state)
    return [_row(one, best, last, is_newest=one is newest) for one in checkpoints]


def rows_of_saves(saves: Sequence[Save], state: Mapping[str, Any], folder: Path) -> list[Row]:
    """What is told of each file that a run under way has written and not let go again."""
    best, last = _best_names(state), _last_names(state)
    rows = []
    for name, save in {one["name"]: one for one in saves}.items():
        is_here, is_last = _exists(folder / name), _is(name, last)
        if not (is_here or is_last):
            continue
        marks = {"best": _is(name, best), "last": is_last}
        rows.append(
            {
                **save,
                "size": None,  # two files of the same content may differ in it
                "condition": "saved" if is_here else "being written",
                "problem": None,
                "marks": [mark for mark, is_so in marks.items() if is_so],
            }
        )
    return rows


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _row(one: Checkpoint, best: Sequence[str], last: Sequence[str], *, is_newest: bool) -> Row:
    condition = "whole" if one.is_verified else "not verified"
    if one.problem is not None:
        condition = "damaged"
    elif one.metadata is None:
        condition += ", weights only"
    marks = {"best": _is(one.name, best), "last": _is(one.name, last), "newest": is_newest}
    return {
        "name": one.name,
        "epoch": None if one.metadata is None else one.metadata.epoch,
        "step": None if one.metadata is None else one.metadata.global_step,
        "size": one.size_bytes,
        "condition": condition,
        "problem": one.problem,
        "marks": [name for name, is_so in marks.items() if is_so],
    }


def _best_names(state: Mapping[str, Any]) -> list[str]:
    """The files that savers remember as best, relative to a folder of theirs."""
    paths = [told.get("best_path") for told in told_by_callbacks(state)]
    return [path for path in paths if isinstance(path, str)]


def _last_names(state: Mapping[str, Any]) -> list[str]:
    """The files that were written last of all, relative to a folder of their savers."""
    last = [(told.get("last_step"), told.get("last_path")) for told in told_by_callbacks(state)]
    known = [(step, path) for step, path in last if type(step) is int and isinstance(path, str)]
    newest = max((step for step, _ in known), default=None)
    return [path for step, path in known if step == newest]


def told_by_callbacks(state: Mapping[str, Any]) -> list[Mapping[Any, Any]]:
    """The state of each callback."""
    entries = as_mapping(state.get("callback_states")).values()
    return [as_mapping(as_mapping(entry).get("state")) for entry in entries]


def _is(name: str, remembered: Sequence[str]) -> bool:
    return any(name == path or name.endswith(f"/{path}") for path in remembered)
