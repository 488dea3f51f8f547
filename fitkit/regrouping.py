"""What the processes of a run had added up inside an epoch, dealt out to those that go on."""

from __future__ import annotations

from typing import Any

import torch

from fitkit.metrics.merging import emptied, merged
from fitkit.runtime.world import World


def share_of(progress: dict[str, Any], world: World, *, is_sharded: bool = False) -> dict[str, Any]:
    """The progress that this process goes on with.

    As many processes as before go on exactly where each of them was. Otherwise the main process
    takes over all sums, and a half-filled window of gradients, which are averaged in the end, goes
    to everybody as its average so far. A sharded model always has the average.

    Args:
        progress: as ``FitRun.progress`` gave it on the main process.
        world: its processes.
        is_sharded: whether they keep parts of one average window.

    Raises:
        CheckpointError: sums of a metric that accumulates by itself cannot be put together.
    """
    everybody = [progress, *progress.get("others", ())]
    if "meters" not in progress:
        return progress
    if len(everybody) == world.size and not is_sharded:
        return {**progress, **everybody[world.rank]}
    window = _average([part["window"] for part in everybody if "window" in part])
    if len(everybody) == world.size:
        return {**progress, **everybody[world.rank], "window": window}
    meters = {}
    for name in ("train", "validation"):
        saved = [part["meters"][name] for part in everybody if name in part["meters"]]
        if saved:
            meters[name] = merged(saved) if world.is_main else emptied(merged(saved))
    return {**progress, "meters": meters, "window": window}


def _average(windows: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of windows; a gradient that one of them lacks counts as zero there."""
    if not windows[0] or len(windows) == 1:
        return windows[0]
    found: dict[str, list[Any]] = {}
    for window in windows:
        for name, gradient in window["gradients"].items():
            found.setdefault(name, []).append(gradient)
    means = {name: torch.stack(parts).sum(0) / len(windows) for name, parts in found.items()}
    return {**windows[0], "gradients": means}
