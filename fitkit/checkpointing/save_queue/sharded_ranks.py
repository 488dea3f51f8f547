"""ShardedRanks: several ranks with a part of the model each; every rank writes its part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fitkit.checkpointing.save_queue.replicated_ranks import ReplicatedRanks
from fitkit.checkpointing.storage import sharded_checkpoint
from fitkit.checkpointing.storage.run_record import RunRecord
from fitkit.core.errors import RankError
from fitkit.distributed.world import World


class ShardedRanks(ReplicatedRanks):
    """How ranks save together that hold a part of the model each.

    Args:
        world: the ranks.
        side_world: the same ranks in a group of their own, for threads beside training.
    """

    is_sharded = True

    def __init__(self, world: World, side_world: World) -> None:
        super().__init__(world)
        self._side_world = side_world

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside ``with`` rank 0 calls ``write``, while the others are in ``write_parts``."""
        try:
            yield
        finally:
            self._side_world.broadcast(None)

    def write(
        self,
        content: Any,
        path: Path,
        also: Iterable[Path],
        *,
        weights_only: bool,
        record: RunRecord | None = None,
    ) -> None:
        """Write ``content`` together with the other ranks."""
        self._side_world.broadcast(weights_only)
        sharded_checkpoint.write(content, path, also, world=self._side_world, record=record)

    def write_parts(self, whole: Any, weights: Any) -> None:
        """Write this rank's part of each content; rank 0 raises if one cannot be written."""
        try:
            while (weights_only := self._side_world.broadcast(None)) is not None:
                content = weights if weights_only else whole
                sharded_checkpoint.write_own_shards(content, self._side_world)
        except BaseException as error:  # noqa: BLE001  raised, perhaps as that of another rank
            # rank 0 waits for this thread, and training, which would raise the error, for rank 0
            raise self._side_world.fail(error)  # noqa: B904  it may be the same

    def save_now(self, content: Any, path: Path, record: RunRecord | None = None) -> None:
        """Write ``content`` to ``path``; every rank calls it with its own."""
        if self.is_main:
            sharded_checkpoint.write(content, path, world=self._side_world, record=record)
        elif not sharded_checkpoint.write_own_shards(content, self._side_world):
            raise RankError(0, f"could not save to {str(path)!r}")
