"""SaveSource: what a save queue needs of a handler."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from fitkit.checkpointing.savers.saver import Saver
from fitkit.checkpointing.storage.run_record import RunIdentity
from fitkit.core.tree import TensorMap


class SaveSource(Protocol):
    """What the queue reads of a handler, and what it reports to it."""

    def take_snapshot(self, tensor_map: TensorMap) -> dict[str, Any]:
        """The whole state, encoded; ``tensor_map`` gives what is saved for each live tensor."""

    def take_weights(self, tensor_map: TensorMap) -> dict[str, Any]:
        """The weights that evaluation uses, likewise."""

    def saver_state(self, saver: Saver, snapshot: dict[str, Any]) -> dict[str, Any]:
        """The state of ``saver`` in a snapshot; empty if it has none."""

    def identity(self) -> RunIdentity:
        """The run whose files the savers write."""

    def position(self) -> tuple[int, ...]:
        """The handler's position in the run."""

    def is_current(self, path: Path) -> bool:
        """Whether the file ``path`` holds the state at the handler's position in the run."""

    def announce(self, path: Path) -> None:
        """Report that the file ``path`` is durable."""

    def savers(self) -> list[Saver]:
        """The attached savers, in the same order on each rank."""

    def gathered_from_ranks(self) -> AbstractContextManager[None]:
        """Inside ``with`` a snapshot holds what the other ranks have accumulated."""

    def is_non_finite(self) -> bool:
        """Whether training stops for a value that is not finite."""
