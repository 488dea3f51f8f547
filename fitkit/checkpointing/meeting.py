"""MeetingQueue: several processes take part in a save; the main one decides and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from fitkit.checkpointing.save_job import SaveJob, SaveRequest
from fitkit.checkpointing.save_queue import SaveQueue
from fitkit.checkpointing.saver import Saver
from fitkit.runtime.world import World


class Order(NamedTuple):
    """What the main process wants of the others.

    Attributes:
        whole: their share of a whole state.
        weights: their share of the weights alone.
        is_behind: it is written behind training.
        is_again: it is what they gave last.
    """

    whole: bool
    weights: bool
    is_behind: bool = False
    is_again: bool = False


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
        self._lead(super().settle)

    def save_now(self, content: dict[str, Any], path: Path) -> None:
        """As ``SaveQueue``; the main process writes."""
        if self._world.is_main:
            super().save_now(content, path)

    def finish(self) -> None:
        """A call of ``fit`` ends: wait for what the main process has under way.

        Raises:
            SaveError: as ``settle``.
        """
        try:
            self._lead(super().wait)
        finally:
            self._release()

    def _lead(self, action: Callable[[], None]) -> None:
        """The main process acts; the others do what it orders, until it is done.

        In the end all know of the savers' files what the main one does.
        """
        planned = [saver.planned for saver in self._savers()]
        if self._world.is_broken:
            action()
        elif self._world.is_main:
            try:
                action()
            finally:
                self._world.broadcast([describe() for describe in planned])
        else:
            while isinstance(order := self._world.broadcast(None), Order):
                self._obey(order)
            for saver, fields in zip(self._savers(), order, strict=True):
                saver.put_back({**fields, "asked": ()})

    @contextmanager
    def _together(self, job: SaveJob) -> Iterator[None]:
        order = Order(*job.wants, is_behind=job.copies is not None)
        self._world.broadcast(order)
        with self._contributions() if order.whole else nullcontext():
            yield

    def _obey(self, order: Order) -> None:
        """Do what another process has to do for a save of the main one."""
        with self._contributions() if order.whole else nullcontext():
            pass
