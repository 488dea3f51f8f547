"""What a run has at hand only while ``fit`` is under way, kept in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fitkit.core.state import FitState
from fitkit.engine.run import FitRun
from fitkit.regrouping import share_of
from fitkit.runtime.pieces import fitted_all
from fitkit.runtime.rng import capture_streams
from fitkit.runtime.world import World


class Unfinished:
    """The run under way, or what a later save or ``fit`` needs of the one before.

    Attributes:
        run: the run under way, or ``None``.
        loaded: whether a checkpoint was loaded that the next ``fit`` has to go on from.
        scheduler: the state of a scheduler that is yet to be set.
        unheard: an event that some callbacks have yet to hear.
    """

    KEYS = ("progress", "loader", "scaler_state_dict", "rng")

    def __init__(self) -> None:
        self.run: FitRun | None = None
        self.loaded = False
        self.scheduler: dict[str, Any] | None = None
        self.unheard: dict[str, Any] | None = None
        self._kept: dict[str, Any] = {}

    def describe(self, state: FitState) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Progress, loader positions and loss scaler, of the run or as kept."""
        if self.run is not None:
            scaler = self.run.forward.precision.state_dict()
            return self.run.progress(), self.run.positions(), scaler
        progress = {**self._kept.get("progress", {}), "state": state.state_dict()}
        return progress, self._kept.get("loader", {}), self._kept.get("scaler_state_dict", {})

    def load(self, saved: dict[str, Any]) -> None:
        """Keep what a checkpoint holds for the next ``fit``."""
        self._kept = saved
        self.unheard = saved["progress"].get("unheard")
        self.loaded = True

    def remember(self) -> Callable[[], None]:
        """A function that puts everything back as it is now."""
        before = dict(vars(self))
        return lambda: vars(self).update(before)

    def begin(self, run: FitRun, world: World, *, is_sharded: bool) -> None:
        """``run`` is under way; what was kept goes into it, this process's share of it."""
        if self._kept:
            progress = share_of(self._kept["progress"], world, is_sharded=is_sharded)
            window = progress.get("window")
            if window:
                own = dict(run.module.named_parameters())
                window = {**window, "gradients": fitted_all(window["gradients"], own)}
                progress = {**progress, "window": window}
            run.restore(progress, self._kept["loader"])
            run.forward.precision.load_state_dict(self._kept["scaler_state_dict"])
        self.run = run

    def end(self, device: torch.device) -> None:
        """The run on ``device`` is over; keep what a save or a later ``fit`` needs."""
        if self.run is not None:
            progress, loader, scaler = self.describe(self.run.state)
            self._kept = {"progress": progress, "loader": loader, "scaler_state_dict": scaler}
            self._kept["rng"] = capture_streams(device)
            self.run = None
            self.loaded = False

    def forget_window(self) -> None:
        """A new call starts the interrupted epoch over: drop what was added up inside it."""
        if self._kept:
            self._kept = {**self._kept, "progress": {}}

    @property
    def streams(self) -> dict[str, Any] | None:
        """The random streams as kept."""
        return self._kept.get("rng")

    def streams_to_save(self, device: torch.device, *, own: bool) -> dict[str, Any] | None:
        """The streams that the next batch draws from; ``None`` if the run has yet to begin them.

        Args:
            device: the handler's.
            own: whether the handler draws from streams of its own, not from the program's.
        """
        waits = self.run is None and (own or self.loaded)
        return self.streams if waits else capture_streams(device)
