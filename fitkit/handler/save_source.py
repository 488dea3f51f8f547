"""Makes the save queue of a handler."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fitkit.checkpointing.catalog import latest
from fitkit.checkpointing.save_queue.replicated_ranks import ReplicatedRanks
from fitkit.checkpointing.save_queue.save_queue import SaveQueue
from fitkit.checkpointing.save_queue.save_source import SaveSource
from fitkit.checkpointing.save_queue.sharded_ranks import ShardedRanks
from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage.run_record import RunIdentity
from fitkit.core.event import Event
from fitkit.core.logs import EMPTY_LOGS
from fitkit.core.tree import TensorMap
from fitkit.handler.base_handler import BaseHandler
from fitkit.handler.state_dict import handler_state_dict


class _HandlerSource(SaveSource):
    """The ``SaveSource`` of a handler."""

    def __init__(self, handler: BaseHandler) -> None:
        self._handler = handler

    def take_snapshot(self, tensor_map: TensorMap) -> dict[str, Any]:
        handler = self._handler
        tensor_map = handler.parallel.on_local_tensors(tensor_map)
        return handler_state_dict(handler, tensor_map, for_file=True)

    def take_weights(self, tensor_map: TensorMap) -> dict[str, Any]:
        return self._handler.weights.evaluated(tensor_map)

    def saver_state(self, saver: Saver, snapshot: dict[str, Any]) -> dict[str, Any]:
        # states of the same name are in the order of the callbacks; those without one are left out
        same_name = [c for c in self._handler.callbacks if c.name == saver.name and c.state_dict()]
        entries = [e for e in snapshot["callback_states"].values() if e["name"] == saver.name]
        state: dict[str, Any] = {}
        if saver in same_name:
            state = entries[same_name.index(saver)]["state"]
        return state

    def identity(self) -> RunIdentity:
        return self._handler.run_identity

    def position(self) -> tuple[int, ...]:
        return self._handler.state.position()

    def is_current(self, path: Path) -> bool:
        return latest.is_at_position(path, self._handler.state.position())

    def announce(self, path: Path) -> None:
        self._handler.logger.info("saved %s", path)
        self._handler.callbacks.fire(Event.CHECKPOINT_SAVED, str(path), EMPTY_LOGS)

    def savers(self) -> list[Saver]:
        return [callback for callback in self._handler.callbacks if isinstance(callback, Saver)]

    def gathered_from_ranks(self) -> AbstractContextManager[None]:
        return self._handler.session.gathered_from_ranks()

    def is_non_finite(self) -> bool:
        return self._handler.state.stopped_non_finite


def make_save_queue(handler: BaseHandler) -> SaveQueue:
    """The save queue of a handler, for one rank or several, sharded or not."""
    source, world, parallel = _HandlerSource(handler), handler.world, handler.parallel
    if not parallel.is_sharded or world.size == 1:
        return SaveQueue(source, ReplicatedRanks(world))
    return SaveQueue(source, ShardedRanks(world, parallel.side_world))
