"""RankSync: lets all ranks stop, save and react to signals at the same batch."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Iterator
from typing import Any

from fitkit.checkpointing.save_queue.save_queue import SaveQueue
from fitkit.core.state import FitState
from fitkit.distributed.world import World
from fitkit.engine.run import RankSync
from fitkit.handler.base_handler import BaseHandler
from fitkit.runtime.signals import SignalWatch


class PeriodicRankSync(RankSync):
    """Checks for stops, signals and saves of any rank a few times a second.

    One small all-reduce of integers on the CPU. It also decides after how many batches the next one
    takes place, so that it is at the same batch on all ranks; there is always one at the end of an
    epoch.

    Args:
        state: where a stop may have been requested on this rank.
        watch: signals that this rank received.
        world: the ranks.
        saves: knows whether a saver of this rank would like to save.
        logger: says which logged values ranks have differently.
    """

    INTERVAL_SECONDS = 0.25

    def __init__(
        self,
        state: FitState,
        watch: SignalWatch,
        world: World,
        saves: SaveQueue,
        logger: logging.Logger,
    ) -> None:
        super().__init__(state, watch)
        self._logger = logger
        self._world = world
        self._saves = saves
        self._named: set[str] = set()  # logged values that ranks have differently
        self.restart()
        self._batches, self._next = 0, 1
        self._synced_at = time.monotonic()

    def restart(self) -> None:
        """Read anew whether a stop was requested, after a resume has changed that on all ranks."""
        self._must_stop = self._state.stopping

    @property
    def must_stop(self) -> bool:
        """Whether training is to end after this batch, on all ranks."""
        return self._must_stop

    def check(self, *, now: bool = False) -> None:
        """Called after each batch, and with ``now`` after each epoch; synchronizes after some.

        Raises:
            KeyboardInterrupt: after Ctrl-C, on any rank.
            Preempted: after a signal that announces the end of the process, on any rank.
        """
        self._batches += 1
        if not now and self._batches < self._next:
            return
        world = self._world
        received = 0 if self._watch.received is None else int(self._watch.received)
        stopper = world.size - world.rank if self._state.stopping else 0
        # negative: the largest of these gives the smallest number of batches
        values = [received, stopper, int(self._saves.wants_sync_point), -self._batches_until_next()]
        received, stopper, wants_sync_point, next_ = world.largest(values)
        self._batches, self._next, self._synced_at = 0, -next_, time.monotonic()
        if stopper:
            self._stop_like(world.size - stopper)
        if wants_sync_point:
            self._saves.schedule_sync_point()
        if received:
            self._end_for(signal.Signals(received))

    def guard(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; other ranks may be at another batch, so an error stays an error."""
        return batches

    def share_logs(self) -> None:
        """Give all ranks the values that callbacks of rank 0 have logged since the last time.

        What other ranks have logged otherwise is left out, and is named once.
        """
        own = {name: float(value) for name, value in (self._state.unshared or {}).items()}
        of_ranks: list[dict[str, float]] = self._world.gather_all(own)
        self._state.unshared = {}
        self._state.logged |= of_ranks[0]
        if self._world.is_main:
            self._name_differences(of_ranks)

    def _name_differences(self, of_ranks: list[dict[str, float]]) -> None:
        main = of_ranks[0]
        for rank, values in enumerate(of_ranks):
            for name, value in values.items():
                if name in self._named or repr(value) == repr(main.get(name)):
                    continue
                self._named.add(name)
                if name in main:
                    self._logger.info(
                        "a callback logs %r as %r on rank 0 and as %r on rank %d: the logs hold "
                        "the value of rank 0",
                        name,
                        main[name],
                        value,
                        rank,
                    )
                else:
                    warnings.warn(
                        f"a callback logs {name!r} on rank {rank} and not on rank 0, whose values "
                        f"the logs hold, so it is left out: log it on rank 0 too.",
                        stacklevel=2,
                    )

    def _batches_until_next(self) -> int:
        seconds_per_batch = (time.monotonic() - self._synced_at) / self._batches
        batches = int(self.INTERVAL_SECONDS / max(seconds_per_batch, 1e-6))
        return max(1, min(batches, 10_000))

    def _stop_like(self, rank: int) -> None:
        """Stop for the same reason as the first rank that stops."""
        state = self._state
        local = (state.stop_reason, state.stopped_non_finite, state.stop_is_final)
        reason, non_finite, final = self._world.broadcast(local, rank)
        state.clear_stop()
        state.stop(reason, non_finite=non_finite, final=final)
        self._must_stop = True


def make_rank_sync(handler: BaseHandler, watch: SignalWatch) -> RankSync:
    """The ``RankSync`` for the number of ranks of a handler."""
    if handler.world.size == 1:
        return RankSync(handler.state, watch)
    return PeriodicRankSync(handler.state, watch, handler.world, handler.saves, handler.logger)
