"""What the processes of a run had added up inside an epoch, dealt out to those that go on."""

from __future__ import annotations

from typing import Any

import torch

from fitkit.metrics.meters import merged
from fitkit.runtime.world import World


def share_of(progress: dict[str, Any], world: World) -> dict[str, Any]:
    """The progress that this process goes on with.

    As many processes as before go on exactly where each of them was. Otherwise the main process
    takes over all sums, and a half-filled window of gradients, which are averaged in the end, goes
    to everybody as its average so far.

    Args:
        progress: as ``FitRun.progress`` gave it on the main process.
        world: its processes.

    Raises:
        CheckpointError: sums of a metric that accumulates by itself cannot be put together.
    """
    everybody = [progress, *progress.get("others", ())]
    if "meters" not in progress:
        return progress
    if len(everybody) == world.size:
        return {**progress, **everybody[world.rank]}
    meters = {}
    for name in ("train", "validation"):
        saved = [part["meters"][name] for part in everybody if name in part["meters"]]
        if saved and world.is_main:
            meters[name] = merged(saved)
    return {**progress, "meters": meters, "window": _average([p["window"] for p in everybody])}


def _average(windows: list[dict[str, Any]]) -> dict[str, Any]:
    if not windows[0]:
        return {}
    gradients = {
        name: torch.stack([window["gradients"][name] for window in windows]).mean(0)
        for name in windows[0]["gradients"]
    }
    return {**windows[0], "gradients": gradients}
