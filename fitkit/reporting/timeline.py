"""What the callbacks of a run did and when, as far as their states and the curves tell it.

Everything is placed by the number of epochs done, from 1; nothing is guessed: where a replay of the
curves does not end in the state that was saved, it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fitkit.core.errors import ConfigurationError
from fitkit.core.monitor import Monitor
from fitkit.reporting.configuration import as_mapping, by_name, learning_rates, shown
from fitkit.reporting.curves import Curves

Lane = dict[str, Any]

_MOST_CHANGES = 40  # more changes of the learning rate are a schedule; its curve shows them
_CONFIGURATION_OF_EARLY_STOPPING = 9  # words behind the monitored name in its identity


def lanes(
    state: Mapping[str, Any], curves: Curves, saves: Sequence[Mapping[str, Any]]
) -> list[Lane]:
    """One lane per kind of event, each with its marks.

    Args:
        state: by the keys of a checkpoint.
        curves: the curves of the run.
        saves: ``epoch``, ``text`` and ``is_best`` of each save.
    """
    found = [
        {"label": "Checkpoints", "marks": [_mark(one["epoch"], one["text"], one) for one in saves]},
        {"label": "Learning rate", "marks": _rate_changes(state, curves)},
    ]
    for key, entry in by_name(as_mapping(state.get("callback_states"))):
        told = as_mapping(as_mapping(entry).get("state"))
        if {"best", "best_epoch", "wait", "stopped_epoch"} <= set(told):
            found.append({"label": key, "marks": _early_stopping(entry, state, curves)})
    return [lane for lane in found if lane["marks"]]


def _mark(epoch: float, text: str, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    kind = "best" if more and more.get("is_best") else "plain"
    return {"epoch": epoch, "text": text, "kind": kind}


# ---- the learning rate --------------------------------------------------------------------------


def _rate_changes(state: Mapping[str, Any], curves: Curves) -> list[dict[str, Any]]:
    """Where the learning rate of an epoch differs from that of the epoch before."""
    rates = [(epoch, rate) for epoch, rate in _column(curves, "lr") if math.isfinite(rate)]
    now = learning_rates(state.get("optimizer_state_dict"))
    if rates and now and curves.epochs[-1] + 1 == _epochs_done(state):
        rates.append((rates[-1][0] + 1, now[0]))
    changes = [
        _mark(epoch + 1, f"learning rate {before:.4g} → {rate:.4g}, from epoch {epoch + 1} on")
        for (_, before), (epoch, rate) in pairwise(rates)
        if not math.isclose(before, rate, rel_tol=1e-9)
    ]
    return changes if len(changes) <= _MOST_CHANGES else []


def _column(curves: Curves, name: str) -> list[tuple[int, float]]:
    return list(zip(curves.epochs, curves.columns.get(name, ()), strict=False))


def _epochs_done(state: Mapping[str, Any]) -> Any:
    return _progress(state).get("epoch")


def _progress(state: Mapping[str, Any]) -> Mapping[Any, Any]:
    return as_mapping(as_mapping(state.get("progress")).get("state"))


# ---- early stopping -----------------------------------------------------------------------------


def _early_stopping(
    entry: Mapping[str, Any], state: Mapping[str, Any], curves: Curves
) -> list[dict[str, Any]]:
    """Each check of this call of ``fit``; where they cannot be told, only the best and the stop."""
    told = entry["state"]
    marks = _replayed(entry, _progress(state).get("first_epoch", 0), curves)
    if not marks and isinstance(told["best_epoch"], int):
        marks = [
            {"epoch": told["best_epoch"] + 1, "text": f"best {shown(told['best'])}", "kind": "best"}
        ]
    if isinstance(told["stopped_epoch"], int):
        reason = _progress(state).get("stop_reason") or "it stopped training"
        epoch = told["stopped_epoch"] + 1
        marks = [mark for mark in marks if mark["epoch"] != epoch]
        marks.append({"epoch": epoch, "text": str(reason), "kind": "stop"})
    return marks


def _replayed(entry: Mapping[str, Any], first_epoch: Any, curves: Curves) -> list[dict[str, Any]]:
    """The checks again, from the curve; nothing if they do not end in the state that was saved."""
    words = str(entry.get("identity")).rsplit(" ", _CONFIGURATION_OF_EARLY_STOPPING)
    told = entry["state"]
    try:
        name, mode, min_delta, patience, baseline, start = words[:6]
        judge = Monitor(name, mode, float(min_delta))
        goal = None if baseline == "None" else float(baseline)
        checked = range(max(int(first_epoch), int(start)), 1 << 62)
        height = max(int(patience), 1)
    except (ConfigurationError, ValueError, TypeError):
        return []
    marks: list[dict[str, Any]] = []
    best, best_epoch, wait = None, None, 0
    for epoch, value in _column(curves, name):
        if epoch not in checked or not math.isfinite(value):
            continue
        is_better = judge.is_better(value, than=best)
        wait += 1
        if is_better:
            best, best_epoch = value, epoch
            if goal is None or judge.is_better(value, than=goal):
                wait = 0
        text = f"best {name} {value:.5g}" if is_better else f"waited {wait} of {patience}"
        kind = "best" if is_better else "wait"
        marks.append(
            {"epoch": epoch + 1, "text": text, "kind": kind, "share": min(wait / height, 1)}
        )
    agrees = [best, best_epoch, wait] == [told["best"], told["best_epoch"], told["wait"]]
    return marks if agrees else []
