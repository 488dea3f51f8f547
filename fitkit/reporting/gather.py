"""The data of a report, gathered from the folder of a run or from a live run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fitkit.checkpointing.catalog.file_overview import last_and_best
from fitkit.core.errors import CheckpointNotFoundError
from fitkit.core.monitor import resolve_mode
from fitkit.reporting.checkpoint_state import as_count, as_mapping, callback_entries, progress_of
from fitkit.reporting.configuration import as_text, environment, sections, weights_by_module
from fitkit.reporting.curve_data import Curves, read_curves
from fitkit.reporting.run_folder import find_checkpoints, find_logs, newest_usable
from fitkit.reporting.saved_files import (
    Save,
    merge_saves,
    recorded_by_report,
    rows_of_files,
    rows_of_saves,
    saves_of_files,
)
from fitkit.reporting.timeline import lanes


def gather_folder(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """The data of a run's folder: from its newest checkpoint, the other ones, and the logs.

    Args:
        folder: the run's folder; folders in it belong to the run.
        verify: check every checkpoint's checksums, which reads the files completely.

    Raises:
        CheckpointNotFoundError: there is neither a checkpoint nor a log, or no folder.
        CheckpointError: the history in the newest checkpoint is not a table.
    """
    files, logs = find_checkpoints(folder, verify=verify), find_logs(folder)
    newest = newest_usable(files)
    if newest is None and not logs:
        problems = " ".join(file.problem for file in files if file.problem is not None)
        raise CheckpointNotFoundError(
            f"there is no checkpoint that can be used and no log of epochs in {str(folder)!r}. "
            f"{problems}".rstrip()
        )
    state: Mapping[str, Any] = {}
    curves = Curves()
    if newest is not None and newest.metadata is not None:
        state = newest.metadata.state
        curves = read_curves(state, newest.path)
    curves, notes = _with_logs(curves, logs)
    recorded = recorded_by_report(state)
    saves = merge_saves(recorded.get("saves"), saves_of_files(files, folder))
    return {
        **_common(folder.resolve().name, state, curves, recorded, saves),
        "notes": notes,
        "checkpoints": rows_of_files(files, folder, state, newest, is_verified=verify),
        "logs": sorted(logs),
    }


def gather_live(
    state: Mapping[str, Any], recorded: Mapping[str, Any], path: Path, status: Mapping[str, Any]
) -> dict[str, Any]:
    """The data of a live run.

    Args:
        state: ``live_state`` of the handler.
        recorded: what ``HTMLReport`` recorded: ``saves`` and ``facts``.
        path: the report; names of files are relative to its folder.
        status: ``running``, ``text``, ``last_epoch`` and ``reload_seconds``.
    """
    saves = merge_saves(recorded.get("saves"), [])
    # the path is not resolved, so that the page of a run that is resumed elsewhere is the same
    title = path.parent.name or path.stem
    return {
        **_common(title, state, read_curves(state, path), recorded, saves),
        "status": dict(status),
        "notes": [],
        "checkpoints": rows_of_saves(saves, state, path.parent),
        "logs": [],
    }


def _common(
    title: str,
    state: Mapping[str, Any],
    curves: Curves,
    recorded: Mapping[str, Any],
    saves: Sequence[Save],
) -> dict[str, Any]:
    facts, progress = as_mapping(recorded.get("facts")), progress_of(state)
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
    """The best of the losses and of the first two other validation values, if a mode is known."""
    others = [name for name in curves.columns if name.startswith("val_") and name != "val_loss"]
    table = last_and_best({"epoch": curves.epochs, "history": curves.columns})
    best = []
    for name in ["loss", "val_loss", *others[:2]]:
        score = table.get(name, {})
        if score.get("best") is not None:
            word = "lowest" if resolve_mode(name, "auto") == "min" else "highest"
            value = {"value": score["best"], "epoch": score["best_epoch"]}
            best.append({"name": f"{word} {name}", **value})
    return best


def _with_logs(curves: Curves, logs: Mapping[str, Curves]) -> tuple[Curves, list[str]]:
    """The curves with the values that only logs hold, and notes about those."""
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
    """Sorted numbers as ranges.

    >>> _ranges([1, 2, 3, 7])
    '1-3, 7'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _callbacks(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each callback with the short values of its state."""
    callbacks = []
    for key, saved, config in callback_entries(state):
        rows = [
            [str(name).replace("_", " "), as_text(_counted_from_one(str(name), value))]
            for name, value in saved.items()
            # not the content of a log file, nor wall times, which are outdated when they are read
            if isinstance(value, (bool, int, float, str)) and name != "text"
            if not str(name).endswith("seconds")
        ]
        given = {name: value for name, value in config.items() if value is not None}
        rows += [["configuration", as_text(given)]] if given else []
        if rows:
            callbacks.append({"title": key, "rows": rows})
    return callbacks


def _counted_from_one(name: str, value: Any) -> Any:
    """An epoch as the rest of the page counts epochs."""
    return value + 1 if name.endswith("_epoch") and type(value) is int else value
