"""ReplicatedRanks: one rank, or several with the whole model each; rank 0 decides and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage import atomic_write
from fitkit.checkpointing.storage.run_record import RunRecord
from fitkit.distributed.world import World


class SaveCommand(NamedTuple):
    """What every rank has to do for one save.

    Attributes:
        whole: take the whole state.
        weights: take the weights that evaluation uses.
        in_background: copy them and write behind training.
    """

    whole: bool
    weights: bool
    in_background: bool


class ReplicatedRanks:
    """How the ranks of a run save together; with one rank, communication does nothing.

    Requests of ranks other than 0 do not count: their savers may decide otherwise. Inside an epoch
    these ranks contribute what they have accumulated, so a state can only be taken at a sync point.

    Args:
        world: the ranks.

    Attributes:
        is_main: this is rank 0, whose requests count.
        is_sharded: every rank writes its part of each file.
        writes: this rank writes.
        needs_sync_point: there are several ranks.
    """

    is_sharded = False

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_acting = False
        self.is_main = world.is_main
        self.writes = world.is_main or self.is_sharded
        self.needs_sync_point = world.size > 1

    @property
    def is_broken(self) -> bool:
        """Whether a rank has failed, so that no rank can communicate."""
        return self._world.is_broken

    def on_any_rank(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any rank."""
        return any(self._world.largest([int(flag)]))

    def run_on_main(
        self,
        action: Callable[[], None],
        follow: Callable[[SaveCommand], None],
        savers: Callable[[], list[Saver]],
    ) -> None:
        """Run ``action`` on rank 0; every rank calls it.

        Args:
            action: what rank 0 does; after a failure every rank does so for itself.
            follow: what the other ranks do for each command that rank 0 sends meanwhile.
            savers: the attached savers; afterwards all ranks have the files of rank 0's.
        """
        is_nested = self._is_acting  # a hook that runs inside ``action`` may wait for saves
        if is_nested or self.is_broken or not self.needs_sync_point:
            action()
        elif self.is_main:
            attached = savers()
            self._is_acting = True
            try:
                action()
            finally:
                self._is_acting = False
                self._world.broadcast([saver.file_state() for saver in attached])
        else:
            while isinstance(message := self._world.broadcast(None), SaveCommand):
                follow(message)
            for saver, file_state in zip(savers(), message, strict=True):
                saver.rollback(file_state)
                saver.requested = ()

    def send(self, command: SaveCommand) -> None:
        """Send ``command`` from rank 0 to the others."""
        self._world.broadcast(command)

    def writing(self) -> AbstractContextManager[None]:
        """Inside ``with`` rank 0 calls ``write``, while the others are in ``write_parts``."""
        return nullcontext()

    def write(
        self,
        content: Any,
        path: Path,
        also: Iterable[Path],
        *,
        weights_only: bool,
        record: RunRecord | None = None,
    ) -> None:
        """Write ``content`` to ``path`` and its further names ``also``; called on rank 0.

        Raises:
            SaveError: it could not be written, on any rank.
        """
        atomic_write.write(content, path, also, record)

    def write_parts(self, whole: Any, weights: Any) -> None:
        """Write the parts of a rank other than 0 of the contents that rank 0 writes."""

    def save_now(self, content: Any, path: Path, record: RunRecord | None = None) -> None:
        """Write ``content`` to ``path``; every rank calls it.

        Raises:
            SaveError: it could not be written; on other ranks ``RankError``.
        """
        if self.is_main:
            atomic_write.write(content, path, record=record)
