"""ShardedQueue: every process writes its part of a checkpoint, when the main one wants it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fitkit.checkpointing import sharded
from fitkit.checkpointing.meeting import MeetingQueue, Order
from fitkit.checkpointing.save_job import SaveJob, SaveRequest
from fitkit.checkpointing.saver import Saver
from fitkit.core.errors import RankError
from fitkit.runtime.host_copy import HostCopies
from fitkit.runtime.world import World


@dataclass
class Part:
    """What a process other than the main one contributes to the files of one event.

    Attributes:
        contents: the whole state and the weights, as far as they are wanted, in this order.
        world: the processes as the writing thread speaks to them.
        copies: the memory that the contents are copied in, if they are.
        error: why it could not speak to the others.
    """

    contents: list[Any]
    world: World
    copies: HostCopies | None = None
    error: BaseException | None = None

    def run(self) -> None:
        """Write; what goes wrong with a file is told by the main process."""
        try:
            if self.copies is not None:
                self.copies.wait()
            for content in self.contents:
                if not sharded.take_part(content, self.world):
                    break
        except BaseException as error:  # noqa: BLE001  raised where training can hear it
            self.error = error


class ShardedQueue(MeetingQueue):
    """The queue of one process among several that share the model between them.

    One save may be under way behind training, and none waits: when the next one comes, training
    waits for it.

    Args:
        world: the processes.
        beside: the same, as a thread beside the program's speaks to them.
        options: those of ``MeetingQueue``.
    """

    def __init__(self, world: World, beside: World, **options: Any) -> None:
        super().__init__(world, **options, write=partial(sharded.write, world=beside))
        self._beside = beside
        self._leads = False
        self._last: dict[str, Any] = {}
        self._last_copies: HostCopies | None = None

    def save_now(self, content: dict[str, Any], path: Path) -> None:
        """Write ``content`` at once; every process calls it with its own.

        Raises:
            SaveError: it could not be written, on the main process; ``RankError`` on the others.
        """
        super().save_now(content, path)
        if not self._world.is_main and not sharded.take_part(content, self._beside):
            raise RankError(0, f"could not save to {str(path)!r}")

    def wait(self) -> None:
        """Wait until no save is under way; called on each process.

        Raises:
            SaveError: as in ``SaveQueue``, on the main process.
        """
        if self._leads:
            super().wait()
        else:
            self._lead(super().wait)

    def _lead(self, action: Callable[[], None]) -> None:
        self._leads = True
        try:
            super()._lead(action)
        finally:
            self._leads = False

    def _make_room(self, requests: list[SaveRequest]) -> None:
        super().wait()

    def _collect(self) -> None:
        if self._world.is_main:
            super()._collect()
            return
        for part in self._writer.collect():
            if part.error is not None:
                raise part.error

    def _plan_again(
        self, old: SaveJob, requests: list[SaveRequest], savers: list[Saver]
    ) -> SaveJob:
        job = super()._plan_again(old, requests, savers)
        self._world.broadcast(Order(*job.wants, is_behind=True, is_again=True))
        return job

    def _obey(self, order: Order) -> None:
        self._writer.wait()
        self._collect()
        if not order.is_again:
            self._take(order)
        wanted = {"whole": order.whole, "weights": order.weights}
        contents = [self._last[name] for name, is_wanted in wanted.items() if is_wanted]
        part = Part(contents, self._beside, self._last_copies)
        if order.is_behind:
            self._writer.submit(part)
        else:
            part.run()
            if part.error is not None:
                raise part.error

    def _take(self, order: Order) -> None:
        copies = self._last_copies or HostCopies() if order.is_behind else None
        place = (lambda tensor: tensor) if copies is None else copies.reserve
        self._last, self._last_copies = {}, copies
        with self._contributions() if order.whole else nullcontext():
            if order.whole:
                self._last["whole"] = self._take_snapshot(place)
            if order.weights:
                self._last["weights"] = self._take_weights(place)
        if copies is not None:
            copies.fetch()

    def _release(self) -> None:
        self._writer.wait()
        super()._release()
        self._last, self._last_copies = {}, None
