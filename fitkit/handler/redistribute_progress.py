"""Redistribute what ranks accumulated inside an epoch over the ranks of a resumed run."""

from __future__ import annotations

from typing import Any

import torch

from fitkit.distributed.world import World
from fitkit.metrics.merge_for_resume import merge_meter_states, zero_meter_state


def redistribute_progress(
    progress: dict[str, Any], world: World, *, is_sharded: bool = False
) -> dict[str, Any]:
    """The progress of this rank, from the progress that rank 0 saved (``FitRun.progress``).

    As many ranks as before go on exactly where each of them was. Otherwise rank 0 takes over the
    sums of all metrics, and every rank gets the mean of the accumulation windows, whose gradients
    are averaged in the end. A sharded model always has that mean.

    Raises:
        CheckpointError: the sums of a metric that accumulates by itself cannot be merged.
    """
    if "meters" not in progress:
        return progress
    saved_ranks = [progress, *progress.get("others", ())]
    is_same_size = len(saved_ranks) == world.size
    if is_same_size and not is_sharded:
        return {**progress, **saved_ranks[world.rank]}
    window = _average([saved["window"] for saved in saved_ranks if "window" in saved])
    if is_same_size:
        return {**progress, **saved_ranks[world.rank], "window": window}
    meters = {}
    for name in dict.fromkeys(name for saved in saved_ranks for name in saved["meters"]):
        states = [saved["meters"][name] for saved in saved_ranks if name in saved["meters"]]
        if states:
            merged = merge_meter_states(states)
            meters[name] = merged if world.is_main else zero_meter_state(merged)
    return {**progress, "meters": meters, "window": window}


def _average(windows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of accumulation windows; a gradient that is missing in one counts as zero."""
    if not windows[0] or len(windows) == 1:
        return windows[0]
    gradients: dict[str, list[Any]] = {}
    for window in windows:
        for name, gradient in window["gradients"].items():
            gradients.setdefault(name, []).append(gradient)
    means = {name: torch.stack(found).sum(0) / len(windows) for name, found in gradients.items()}
    return {**windows[0], "gradients": means}
