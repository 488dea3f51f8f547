"""FitSession: the run in progress, and restored state that waits for its owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fitkit.core.data_timer import DataTimer
from fitkit.core.errors import ConfigurationError
from fitkit.core.state import FitState, Phase
from fitkit.core.tree import map_tensors
from fitkit.core.types import BatchSource
from fitkit.distributed.parallel import Parallel
from fitkit.distributed.world import World
from fitkit.engine.run import FitRun
from fitkit.handler.redistribute_progress import redistribute_progress
from fitkit.runtime.rng import capture_streams

# the pending state that every run replaces
_OF_RUN = ("progress", "loader", "scaler_state_dict", "rng")


class FitSession:
    """The run in progress; between two runs, the state that a save or the next ``fit`` needs.

    Attributes:
        run: the run in progress, or ``None``.
        pending: restored state that waits for its owner, by its key in a checkpoint: progress,
            loader positions, loss scaler and random streams for the next run; ``optimizer``, loss,
            SDE and sampler until they are set; ``schedule`` for schedulers that are set before the
            next run. Only states of callbacks wait in ``CallbackStates``.
        part_changes: how optimizer and scheduler differ from those in the checkpoint, in sentences.
        loaded: whether a checkpoint was loaded that the next ``fit`` goes on from.
        pending_event: the event during which that checkpoint was made, and who has yet to hear it.
        call_is_open: whether the last call of ``fit`` was interrupted: the next one with
            ``resume=`` continues it.
        call_ends: the counters at the end of each earlier call, by its number.
        config: the configuration of the last call, as ``run_config`` returns it.
        sources: the object that the last run read, by the name of the data pass, and the source of
            an iterator. Other sources end with their run, and so do their workers.
        has_own_streams: whether the random streams that wait are those of this rank; a checkpoint
            between two epochs, or of another number of ranks, has only those of rank 0.
    """

    def __init__(self, world: World, parallel: Parallel) -> None:
        self._world = world
        self._parallel = parallel
        self.run: FitRun | None = None
        self.pending: dict[str, Any] = {}
        self.part_changes: dict[str, list[str]] = {}
        self.loaded = False
        self.pending_event: dict[str, Any] | None = None
        self.call_is_open = False
        self.call_ends: dict[int, dict[str, int]] = {}
        self.config: dict[str, Any] = {}
        self.sources: dict[str, tuple[Any, BatchSource | None]] = {}
        self.has_own_streams = True

    def require_idle(self, verb: str) -> None:
        """Raise ``ConfigurationError`` if ``verb`` is called while a run is in progress."""
        if self.run is not None:
            raise ConfigurationError(
                f"{verb} was called during a fit of the same handler: call it before or after fit."
            )

    def require_outside_fit(self, setter: str) -> None:
        """Raise ``ConfigurationError`` if ``setter`` is called by a hook during ``fit``.

        A resumed run would not call that hook again, so it would go on with the part that the
        script sets before ``fit``.
        """
        if self.run is not None:
            raise ConfigurationError(
                f"{setter} was called during fit, and a resumed run could not repeat it: call it "
                f"before fit, or between two calls of fit."
            )

    def number_of_call(self, state: FitState) -> int:
        """The number of the call of ``fit`` that begins now, from 1."""
        return state.call + (not self.call_is_open)

    @property
    def changes(self) -> list[str]:
        """What the program sets differently than the checkpoint that was loaded, in sentences."""
        return [sentence for sentences in self.part_changes.values() for sentence in sentences]

    # ---- values of a checkpoint -----------------------------------------------------------------

    def progress(self, state: FitState) -> dict[str, Any]:
        """Position in the run, and what was accumulated inside the epoch."""
        if self.run is not None:
            return self.run.progress()
        return {**self.pending.get("progress", {}), "state": state.state_dict()}

    def positions(self) -> dict[str, Any]:
        """Positions of the data sources, beyond epoch and batch."""
        return self.pending.get("loader", {}) if self.run is None else self.run.positions()

    def scaler(self) -> dict[str, Any]:
        """State of the loss scaler."""
        if self.run is not None:
            return self.run.forward.precision.state_dict()
        return dict(self.pending.get("scaler_state_dict", {}))

    def streams(self, device: torch.device, *, is_seeded: bool) -> dict[str, Any] | None:
        """The random streams that the next batch draws from; ``None`` if the run has none yet.

        A handler with a seed has its own streams besides the program's.
        """
        is_pending = self.run is None and (is_seeded or self.loaded)
        return self.pending.get("rng") if is_pending else capture_streams(device)

    def load_progress(self, progress: dict[str, Any], state: FitState) -> None:
        """Load the counters in a checkpoint, and keep the rest for the next ``fit``."""
        state.load_state_dict(progress["state"])
        self.pending["progress"] = progress
        self.pending_event = progress.get("unheard")
        self.loaded = True

    @contextmanager
    def gathered_from_ranks(self, verb: str = "a save") -> Iterator[None]:
        """Inside ``with`` the progress on rank 0 contains that of the other ranks.

        A collective: all ranks have to call ``verb``. Outside an epoch there is nothing to gather,
        and only the ranks of a sharded model go on to communicate.
        """
        run, is_sharded = self.run, self._parallel.is_sharded
        if run is None or run.state.phase is Phase.BEGIN or self._world.size == 1:
            with self._world.call(verb) if is_sharded else nullcontext():
                yield
            return
        with ExitStack() as stack:
            stack.enter_context(self._world.call(f"{verb} in the middle of an epoch"))
            progress = {**run.rank_progress(), "rng": capture_streams(run.forward.precision.device)}
            if is_sharded:  # the window is sharded too: each rank saves its part
                del progress["window"]
            ranks = self._world.gather(map_tensors(Tensor.cpu, progress))
            if not is_sharded:  # what follows is the work of one rank
                stack.close()
            run.other_ranks = None if ranks is None else ranks[1:]
            try:
                yield
            finally:
                run.other_ranks = []

    # ---- begin and end of a run -----------------------------------------------------------------

    def begin(self, run: FitRun, data: Mapping[str, Any]) -> None:
        """Start ``run``, which reads ``data``, from the restored progress if there is one."""
        same = {name for name, (old, _) in self.sources.items() if data.get(name) is old}
        for name in same:
            source = self.sources[name][1]
            if source is not None:  # only it knows how far its iterator was read
                run.passes()[name].source = source
        if "progress" in self.pending:
            if not self.loaded:  # a new call begins other data at the beginning
                positions = self.pending["loader"]
                self.pending["loader"] = {name: positions[name] for name in same & set(positions)}
            progress = self.pending["progress"]
            is_own = progress.get("others", ()) is None  # of a call that ended in this process
            if not is_own:
                is_sharded = self._parallel.is_sharded
                progress = redistribute_progress(progress, self._world, is_sharded=is_sharded)
            self.has_own_streams = is_own or not self.loaded or "rng" in progress
            if "rng" in progress:
                self.pending["rng"] = progress["rng"]
            run.restore(progress, self.pending["loader"])
            run.forward.precision.load_state_dict(self.pending["scaler_state_dict"])
        for waiting in ("optimizer", "schedule"):
            self.pending.pop(waiting, None)
        self.run = run
        self.sources = {
            name: (one, run.passes()[name].source if isinstance(one, Iterator) else None)
            for name, one in data.items()
        }

    def end(self, device: torch.device) -> None:
        """End the run, and keep the state that a save or a later ``fit`` needs."""
        if self.run is None:
            return
        try:
            self.pending |= {
                "progress": self.progress(self.run.state),
                "loader": self.positions(),
                "scaler_state_dict": self.scaler(),
                "rng": capture_streams(device),
            }
        except BaseException:
            # what the run has accumulated cannot be read: the next fit starts the epoch over
            self.pending = {k: v for k, v in self.pending.items() if k not in _OF_RUN}
            raise
        finally:
            self.run = None
            self.loaded = False
            self.part_changes = {}

    def drop_epoch_progress(self) -> None:
        """Drop what was accumulated inside an interrupted epoch, which starts over."""
        if "progress" in self.pending:
            self.pending["progress"] = {}

    def make_undo(self) -> Callable[[], None]:
        """A function that puts back everything as it is now."""
        before = {**vars(self), "pending": dict(self.pending)}
        return lambda: vars(self).update(before)

    def time_data_loading(self) -> DataTimer:
        """The timer of waits for training data, shared by its readers; it starts with a pass."""
        if self.run is None:
            return DataTimer()
        if self.run.train.timer is None:
            self.run.train.timer = DataTimer()
        return self.run.train.timer
