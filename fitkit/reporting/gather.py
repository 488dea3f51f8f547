"""Everything that a report shows, as plain data: out of a folder, or of a run under way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitkit.core.errors import CheckpointNotFoundError, MonitorError
from fitkit.core.monitor import Monitor
from fitkit.reporting import folder as contents
from fitkit.reporting.configuration import (
    as_mapping,
    by_name,
    environment,
    sections,
    shown,
    weights_by_module,
)
from fitkit.reporting.curves import Curves, curves_of
from fitkit.reporting.saves import (
    Save,
    all_saves,
    as_count,
    noted_in,
    rows_of_files,
    rows_of_saves,
    save_of,
)
from fitkit.reporting.timeline import lanes


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
    noted = noted_in(state)
    saves = all_saves(noted.get("saves"), [save_of(one) for one in checkpoints if one.metadata])
    rows = rows_of_files(checkpoints, state, newest)
    return {
        **_common(folder.resolve().name, state, whole, noted, saves),
        "notes": notes,
        "checkpoints": rows,
        "logs": sorted(logs),
    }


def gather_live(
    state: Mapping[str, Any], noted: Mapping[str, Any], path: Path, status: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run under way tells of itself.

    Args:
        state: what a checkpoint made now would hold, without what is heavy.
        noted: what ``HTMLReport`` noted: ``saves`` and ``facts``.
        path: the report, to whose folder the names of files are relative.
        status: ``running``, ``text``, ``last_epoch`` and ``reload_seconds``.
    """
    saves = all_saves(noted.get("saves"), [])
    rows = rows_of_saves(saves, state, path.parent)
    # as it was written: the page of a run that is resumed elsewhere is the same
    title = path.parent.name or path.stem
    common = _common(title, state, curves_of(state, path), noted, saves)
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
            "last_epoch": as_count(as_mapping(facts.get("fit")).get("last_epoch")),
            "reload_seconds": None,
        },
        "progress": {
            name: progress.get(name)
            for name in ("epoch", "batch", "global_step", "optimizer_steps", "samples_seen")
        },
        "epochs": [epoch + 1 for epoch in curves.epochs],
        "columns": dict(curves.columns),
        "best": _best_values(curves),
        "lanes": lanes(state, curves, saves),
        "sections": sections(state, facts) if state else [],
        "weights": weights_by_module(state),
        "callbacks": _callbacks(state),
        "environment": environment(state, facts),
    }


def _best_values(curves: Curves) -> list[dict[str, Any]]:
    """The best of the losses and of the first other values whose better side is known."""
    others = [name for name in curves.columns if name.startswith("val_") and name != "val_loss"]
    found = []
    for name in ["loss", "val_loss", *others[:2]]:
        values = zip(curves.columns.get(name, ()), curves.epochs, strict=False)
        finite = [(value, epoch + 1) for value, epoch in values if math.isfinite(value)]
        try:
            judge = Monitor(name)
        except MonitorError:
            continue
        if finite:
            value, epoch = min(finite, key=lambda pair: judge.sort_key(pair[0]))
            word = "lowest" if judge.mode == "min" else "highest"
            found.append({"name": f"{word} {name}", "value": value, "epoch": epoch})
    return found


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


def _callbacks(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each callback with the part of its state that is short enough to read."""
    found = []
    for key, entry in by_name(as_mapping(state.get("callback_states"))):
        told = as_mapping(as_mapping(entry).get("state"))
        rows = [
            [str(name).replace("_", " "), shown(_from_one(str(name), value))]
            for name, value in told.items()
            if isinstance(value, (bool, int, float, str)) and not _is_left_out(str(name))
        ]
        identity = as_mapping(entry).get("identity")
        rows += [["configuration", shown(identity)]] if identity else []
        if rows:
            found.append({"title": key, "rows": rows})
    return found


def _is_left_out(name: str) -> bool:
    """The content of a log, and wall times, which are old when they are read."""
    return name == "text" or name.endswith("seconds")


def _from_one(name: str, value: Any) -> Any:
    """An epoch as the rest of the page counts them."""
    return value + 1 if name.endswith("_epoch") and type(value) is int else value
