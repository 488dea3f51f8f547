"""Everything that a report shows, as plain data: out of a folder, or of a run under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitkit.core.errors import CheckpointNotFoundError
from fitkit.reporting import folder as contents
from fitkit.reporting.configuration import (
    as_mapping,
    environment,
    sections,
    shown,
    weights_by_module,
)
from fitkit.reporting.curves import Curves, curves_of
from fitkit.reporting.folder import Checkpoint
from fitkit.reporting.timeline import lanes

Save = dict[str, Any]


def gather_folder(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """What a run's folder tells: its newest checkpoint, the others, and the logs.

    Args:
        folder: the run's folder; those below it belong to it.
        verify: check every checkpoint's checksums, which reads the files as a whole.

    Raises:
        CheckpointNotFoundError: there is neither a checkpoint nor a log, or no folder.
        CheckpointError: the history in the newest checkpoint is no table.
    """
    checkpoints = contents.find_checkpoints(folder, verify=verify)
    logs = contents.find_logs(folder)
    newest = contents.newest(checkpoints)
    if newest is None and not logs:
        problems = " ".join(one.problem for one in checkpoints if one.problem is not None)
        raise CheckpointNotFoundError(
            f"there is no checkpoint that can be used and no log of epochs in {str(folder)!r}. "
            f"{problems}".rstrip()
        )
    state = {} if newest is None or newest.metadata is None else newest.metadata.state
    curves = curves_of(state, newest.path) if newest is not None else Curves()
    whole, notes = _with_logs(curves, logs)
    noted = _noted(state)
    saves = _saves(noted.get("saves"), [_save_of(one) for one in checkpoints if one.metadata])
    best, last = _named(state, "best_path"), _named(state, "last_path")
    rows = [_row(one, best, last, is_newest=one is newest) for one in checkpoints]
    return {
        **_common(folder.resolve().name, state, whole, noted, saves),
        "notes": notes,
        "checkpoints": rows,
        "logs": sorted(logs),
    }


def gather_live(
    state: Mapping[str, Any], noted: Mapping[str, Any], folder: Path, status: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run under way tells of itself.

    Args:
        state: what a checkpoint made now would hold, without what is heavy.
        noted: what ``HTMLReport`` noted: ``saves`` and ``facts``.
        folder: the folder of the report, to which the names of files are relative.
        status: ``running``, ``text``, ``last_epoch`` and ``reload_seconds``.
    """
    saves = _saves(noted.get("saves"), [])
    best, last = _named(state, "best_path"), _named(state, "last_path")
    rows = []
    for name, save in {one["name"]: one for one in saves}.items():
        path = folder / name
        marks = [*(["best"] if _is(name, best) else []), *(["last"] if _is(name, last) else [])]
        size = path.stat().st_size if path.is_file() else None
        condition = "saved" if size is not None else "not there"
        rows.append({**save, "size": size, "condition": condition, "problem": None, "marks": marks})
    common = _common(folder.resolve().name, state, curves_of(state, folder), noted, saves)
    return {**common, "status": dict(status), "notes": [], "checkpoints": rows, "logs": []}


def _common(
    title: str,
    state: Mapping[str, Any],
    curves: Curves,
    noted: Mapping[str, Any],
    saves: Sequence[Save],
) -> dict[str, Any]:
    facts = as_mapping(noted.get("facts"))
    progress = as_mapping(as_mapping(state.get("progress")).get("state"))
    return {
        "title": title,
        "status": {
            "running": False,
            "text": progress.get("stop_reason"),
            "last_epoch": as_mapping(facts.get("fit")).get("last_epoch"),
            "reload_seconds": None,
        },
        "progress": {
            name: progress.get(name)
            for name in ("epoch", "batch", "global_step", "optimizer_steps", "samples_seen")
        },
        "epochs": [epoch + 1 for epoch in curves.epochs],
        "columns": dict(curves.columns),
        "lanes": lanes(state, curves, saves),
        "sections": sections(state, facts) if state else [],
        "weights": weights_by_module(state),
        "callbacks": _callbacks(state),
        "environment": environment(state, facts),
    }


def _with_logs(curves: Curves, logs: Mapping[str, Curves]) -> tuple[Curves, list[str]]:
    """The curves with what only the logs know, and sentences that say so."""
    notes = []
    for name, log in logs.items():
        new = [epoch + 1 for epoch in log.epochs if epoch not in set(curves.epochs)]
        if new and curves.epochs:
            notes.append(f"epochs {_ranges(new)} are from {name}; no checkpoint here holds them")
        elif new:
            notes.append(f"the curves are from {name}; no checkpoint here holds them")
        curves = curves.joined(log)
    return curves, notes


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers, neighbours together.

    >>> _ranges([1, 2, 3, 7])
    '1-3, 7'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


# ---- checkpoints --------------------------------------------------------------------------------


def _noted(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an ``HTMLReport`` of the run had noted in its state."""
    for entry in as_mapping(state.get("callback_states")).values():
        told = as_mapping(as_mapping(entry).get("state"))
        if {"saves", "facts"} <= set(told):
            return told
    return {}


def _saves(noted: Any, files: Sequence[Save]) -> list[Save]:
    """The saves that were noted and those whose files are here, each once, in their order."""
    known: dict[tuple[Any, str], Save] = {}
    for one in [*(noted if isinstance(noted, (list, tuple)) else ()), *files]:
        save = as_mapping(one)
        epoch, step, name = save.get("epoch"), save.get("step"), save.get("name")
        if isinstance(epoch, (int, float)) and isinstance(step, int) and isinstance(name, str):
            known.setdefault((step, Path(name).name), dict(save))
    found = sorted(known.values(), key=lambda save: int(save["step"]))
    return [{**one, "text": f"saved {one['name']}, step {one['step']:,}"} for one in found]


def _save_of(one: Checkpoint) -> Save:
    found = one.metadata
    if found is None:
        return {}
    return {"name": one.name, "epoch": found.epoch, "step": found.global_step, "is_best": False}


def _row(
    one: Checkpoint, best: Sequence[str], last: Sequence[str], *, is_newest: bool
) -> dict[str, Any]:
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


def _named(state: Mapping[str, Any], field: str) -> list[str]:
    """The files that savers remember under ``field``, relative to a folder of theirs."""
    states = as_mapping(state.get("callback_states")).values()
    paths = [as_mapping(as_mapping(entry).get("state")).get(field) for entry in states]
    return [path for path in paths if isinstance(path, str)]


def _is(name: str, remembered: Sequence[str]) -> bool:
    return any(name == path or name.endswith(f"/{path}") for path in remembered)


# ---- callbacks ----------------------------------------------------------------------------------


def _callbacks(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each callback with the part of its state that is short enough to read."""
    found = []
    for key, entry in as_mapping(state.get("callback_states")).items():
        told = as_mapping(as_mapping(entry).get("state"))
        rows = [
            [str(name), shown(value)]
            for name, value in told.items()
            if value is None or isinstance(value, (bool, int, float, str)) and name != "text"
        ]
        if rows:
            found.append({"title": str(key), "rows": rows})
    return found
