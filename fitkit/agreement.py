"""Agreement: what the processes of a run have to do at the same step, and how it gets around."""

from __future__ import annotations

import signal
import time
from typing import Any

from fitkit.checkpointing.save_queue import SaveQueue
from fitkit.core.errors import Preempted
from fitkit.core.state import FitState
from fitkit.runtime.signals import SignalWatch
from fitkit.runtime.world import World


class Agreement:
    """The wishes of one process alone: it agrees with itself after every batch.

    Args:
        state: where somebody may have asked to stop.
        watch: signals that came.
    """

    def __init__(self, state: FitState, watch: SignalWatch) -> None:
        self._state = state
        self._watch = watch

    @property
    def must_stop(self) -> bool:
        """Whether training is to end after this batch."""
        return self._state.stopping

    def share(self, contributed: dict[str, Any]) -> None:
        """Let all processes have the values that callbacks of the main one contributed."""

    def check(self, *, now: bool = False) -> None:
        """A batch is done; ``now``: an epoch is.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            Preempted: after a signal that announces the end of the process.
        """
        if self._watch.received is not None:
            _raise(self._watch.received)


class SharedAgreement(Agreement):
    """The wishes of several processes: a few times a second all learn what any of them wishes.

    One small reduction of integers on the CPU carries them. How many batches lie between two of
    them is agreed in the one before, so that all meet at the same batch; at the end of an epoch
    they meet in any case.

    Args:
        state: where somebody in this process may have asked to stop.
        watch: signals that came to this process.
        world: the processes.
        saves: knows whether the main process would like to save.
    """

    INTERVAL_SECONDS = 0.25

    def __init__(self, state: FitState, watch: SignalWatch, world: World, saves: SaveQueue) -> None:
        super().__init__(state, watch)
        self._world = world
        self._saves = saves
        self._must_stop = state.stopping
        self._batches, self._next = 0, 1
        self._met_at = time.monotonic()

    @property
    def must_stop(self) -> bool:
        """Whether training is to end after this batch, on all processes."""
        return self._must_stop

    def check(self, *, now: bool = False) -> None:
        """A batch is done; ``now``: an epoch is. At some of them, the same ones for all, agree.

        Raises:
            KeyboardInterrupt: after Ctrl-C, on any process.
            Preempted: after a signal that announces the end of the process, on any process.
        """
        self._batches += 1
        if not now and self._batches < self._next:
            return
        world = self._world
        received = 0 if self._watch.received is None else int(self._watch.received)
        stopper = world.size - world.rank if self._state.stopping else 0
        wishes = [received, stopper, int(self._saves.wishes_to_meet), -self._batches_until_next()]
        received, stopper, is_wished, next_ = world.largest(wishes)
        self._batches, self._next, self._met_at = 0, -next_, time.monotonic()
        if stopper:
            self._stop_as(world.size - stopper)
        if is_wished:
            self._saves.invite()
        if received:
            _raise(signal.Signals(received))

    def share(self, contributed: dict[str, Any]) -> None:
        """Let all processes have the values that callbacks of the main one contributed."""
        values = {name: float(value) for name, value in contributed.items()}
        values = self._world.broadcast(values)
        contributed.clear()
        contributed.update(values)

    def _batches_until_next(self) -> int:
        pace = (time.monotonic() - self._met_at) / self._batches
        return max(1, min(int(self.INTERVAL_SECONDS / max(pace, 1e-6)), 10_000))

    def _stop_as(self, rank: int) -> None:
        """Stop for the reason of the first process that asked."""
        state = self._state
        own = (state.stop_reason, state.stopped_non_finite, state.stop_is_final)
        reason, non_finite, final = self._world.broadcast(own, rank)
        state.clear_stop()
        state.stop(reason, non_finite=non_finite, final=final)
        self._must_stop = True


def _raise(received: signal.Signals) -> None:
    if received is signal.SIGINT:
        raise KeyboardInterrupt
    raise Preempted(received)


def make_agreement(
    state: FitState, watch: SignalWatch, world: World, saves: SaveQueue
) -> Agreement:
    """The agreement that fits the number of processes."""
    if world.size == 1:
        return Agreement(state, watch)
    return SharedAgreement(state, watch, world, saves)
