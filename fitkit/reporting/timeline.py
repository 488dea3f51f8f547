"""The timeline of a report: what callbacks did in which epoch.

Marks are placed by the number of finished epochs, from 1. Nothing is guessed: checks of early
stopping that, computed again from the curves, do not end in the saved state are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from fitkit.core.monitor import Monitor
from fitkit.reporting.checkpoint_state import (
    as_count,
    callback_entries,
    learning_rates,
    progress_of,
)
from fitkit.reporting.configuration import as_text
from fitkit.reporting.curve_data import Curves

Lane = dict[str, Any]
Mark = dict[str, Any]

_MOST_CHANGES = 40  # more changes of the learning rate are a schedule, which its curve shows


def lanes(
    state: Mapping[str, Any], curves: Curves, saves: Sequence[Mapping[str, Any]]
) -> list[Lane]:
    """One lane per kind of event, each with its marks.

    Args:
        state: the state by the keys of a checkpoint.
        curves: the curves of the run.
        saves: ``epoch``, ``text`` and ``is_best`` of each save.
    """
    saved = [
        _mark(save["epoch"], save["text"], "best" if save["is_best"] else "plain") for save in saves
    ]
    rows = [("Checkpoints", saved), ("Learning rate", _rate_changes(state, curves))]
    for key, callback_state, config in callback_entries(state):
        if {"best", "best_epoch", "wait", "stopped_epoch"} <= set(callback_state):
            marks = _early_stopping(callback_state, config, progress_of(state), curves)
            rows.append((key, marks))
    return [{"label": label, "marks": marks} for label, marks in rows if marks]


def _mark(epoch: float, text: str, kind: str) -> Mark:
    return {"epoch": epoch, "text": text, "kind": kind}


def _rate_changes(state: Mapping[str, Any], curves: Curves) -> list[Mark]:
    """The epochs whose learning rate differs from that of the epoch before."""
    rates = [(epoch, rate) for epoch, rate in _column(curves, "lr") if math.isfinite(rate)]
    now = learning_rates(state.get("optimizer_state_dict"))
    if rates and now and curves.epochs[-1] + 1 == progress_of(state).get("epoch"):
        rates.append((rates[-1][0] + 1, now[0]))
    changes = [
        _mark(
            epoch + 1,
            f"learning rate {before:.4g} → {rate:.4g}, from epoch {epoch + 1} on",
            "plain",
        )
        for (_, before), (epoch, rate) in pairwise(rates)
        if not math.isclose(before, rate, rel_tol=1e-9)
    ]
    return changes if len(changes) <= _MOST_CHANGES else []


def _column(curves: Curves, name: str) -> list[tuple[int, float]]:
    return list(zip(curves.epochs, curves.columns.get(name, ()), strict=False))


def _early_stopping(
    saved: Mapping[str, Any], config: Mapping[Any, Any], progress: Mapping[Any, Any], curves: Curves
) -> list[Mark]:
    """Each check of the last call of ``fit``; if they are not known, only the best and the stop."""
    marks = _replay(saved, config, as_count(progress.get("first_epoch")) or 0, curves)
    best_epoch, stopped_epoch = saved["best_epoch"], saved["stopped_epoch"]
    if not marks and isinstance(best_epoch, int):
        marks = [_mark(best_epoch + 1, f"best {as_text(saved['best'])}", "best")]
    if isinstance(stopped_epoch, int):
        reason = progress.get("stop_reason") or "it stopped training"
        marks = [mark for mark in marks if mark["epoch"] != stopped_epoch + 1]
        marks.append(_mark(stopped_epoch + 1, str(reason), "stop"))
    return marks


def _replay(
    saved: Mapping[str, Any], config: Mapping[Any, Any], first_epoch: int, curves: Curves
) -> list[Mark]:
    """The checks, computed from the curve; none if they do not end in the saved state."""
    try:
        monitor = Monitor(config["monitor"], config["mode"], config["min_delta"])
        patience, baseline = int(config["patience"]), config["baseline"]
        first_epoch = max(first_epoch, int(config["start_from_epoch"]))
    except (KeyError, TypeError, ValueError):  # another callback, or fitkit 0.2
        return []
    marks: list[Mark] = []
    best, best_epoch, wait = None, None, 0
    for epoch, value in _column(curves, monitor.name):
        if epoch < first_epoch or not math.isfinite(value):
            continue
        is_better = monitor.is_better(value, than=best)
        wait += 1
        if is_better:
            best, best_epoch = value, epoch
            if baseline is None or monitor.is_better(value, than=baseline):
                wait = 0
            mark = _mark(epoch + 1, f"best {monitor.name} {value:.5g}", "best")
        else:
            mark = _mark(epoch + 1, f"waited {wait} of {patience}", "wait")
        marks.append({**mark, "share": min(wait / max(patience, 1), 1)})
    agrees = [best, best_epoch, wait] == [saved["best"], saved["best_epoch"], saved["wait"]]
    return marks if agrees else []
