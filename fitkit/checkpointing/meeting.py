"""MeetingQueue: several processes take part in a save; the main one decides and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fitkit.checkpointing.save_job import SaveRequest
from fitkit.checkpointing.save_queue import SaveQueue
from fitkit.checkpointing.saver import Saver
from fitkit.runtime.world import World


class MeetingQueue(SaveQueue):
    """The queue of one process among several.

    What others have to contribute to a checkpoint must be collected at a moment when all of them
    are there: at an event that calls ``meet`` on each. The main process says whether it wants to
    save, and what the savers know of their files; the others' own wishes do not count, so that
    they may differ.

    Args:
        world: the processes.
        savers: the savers of this process, in the same order on each.
        contributions: a context in which a snapshot holds what only the others know of the run.
        is_non_finite: whether training is to stop here for a value that is not finite.
        options: those of ``SaveQueue``.
    """

    def __init__(
        self,
        world: World,
        savers: Callable[[], Sequence[Saver]],
        contributions: Callable[[], AbstractContextManager[None]],
        is_non_finite: Callable[[], bool],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._world = world
        self._savers = savers
        self._contributions = contributions
        self._is_non_finite = is_non_finite
        self._meets = False

    @property
    def is_meeting(self) -> bool:
        """Whether all processes are there at the end of this event."""
        return self._meets

    def meet(self) -> None:
        """All processes are there at the end of this event; called on each."""
        self._meets = True

    def wish(self) -> None:
        """A saver of this process would save if all were there."""
        self.wishes_to_meet = not self._meets

    def invite(self) -> None:
        """All processes will be there at the end of the next batch."""
        self.is_invited = True

    def add(self, request: SaveRequest) -> None:
        """Take a request; those of the main process count."""
        if self._world.is_main:
            super().add(request)

    def settle(self) -> None:
        """If all are there, answer what the main process asked for.

        Raises:
            SaveError: as in ``SaveQueue``, on the main process.
        """
        if not self._meets or self._world.is_broken:
            return
        self._meets = self.wishes_to_meet = self.is_invited = False
        if any(self._world.largest([int(self._is_non_finite())])):
            self._requests = []  # what one process saw is in the weights of all by now
        with self._contributions() if self._agree_on_files() else nullcontext():
            super().settle()

    def _agree_on_files(self) -> bool:
        """Let all know what the main process's savers know; whether a whole state is wanted."""
        wanted = any(not request.weights_only for request in self._requests)
        planned = [saver.planned() for saver in self._savers()]
        wanted, planned = self._world.broadcast((wanted, planned))
        if not self._world.is_main:
            for saver, fields in zip(self._savers(), planned, strict=True):
                saver.put_back({**fields, "asked": ()})
        return bool(wanted)

    def finish(self) -> None:
        """A call of ``fit`` ends: wait for what the main process has under way.

        Raises:
            SaveError: as ``settle``.
        """
        super().finish()
        if not self._world.is_broken:
            self._agree_on_files()
