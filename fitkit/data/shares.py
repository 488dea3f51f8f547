"""Which part of each batch is whose: the global order is cut into batches, and these into shares.

Position in a pass is counted in items of the global order (samples, or batches of an iterable that
makes its own), so that a run can go on with another number of processes or another batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from fitkit.core.errors import CheckpointError
from fitkit.core.tree import leading_size
from fitkit.core.types import Batches, Share


class Ranks(NamedTuple):
    """This process among those that share the data."""

    rank: int = 0
    size: int = 1

    def part(self, total: int) -> tuple[slice, Share]:
        """This process's part of ``total`` samples in order, as equal as possible.

        Where there are fewer samples than processes, those that get none are given the first
        process's part to stay in step with, which counts nothing.
        """
        least, more = divmod(total, self.size)
        own = least + (self.rank < more)
        rank = self.rank if own else 0
        begin = rank * least + min(rank, more)
        return slice(begin, begin + least + (rank < more)), Share(own, total)


ALONE = Ranks()


class Stride:
    """Where each batch of a pass begins in the global order.

    Args:
        step: items per batch, over all processes.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._batch = self._item = 0  # a batch of this pass, and the item that it begins with
        self._saved_step = step

    def begin(self, batch: int) -> int:
        """A pass begins, or goes on, with this batch; the item that it begins with."""
        if not batch:
            self._batch = self._item = 0
        item = self._item + (batch - self._batch) * self._saved_step
        if self._saved_step != self.step:
            self._batch, self._item, self._saved_step = batch, item, self.step
        return item

    def batches_of(self, num_items: int, *, whole_only: bool = False) -> int:
        """Batches of the pass, if it has so many items."""
        full, rest = divmod(max(num_items - self._item, 0), self.step)
        return self._batch + full + (rest > 0 and not whole_only)

    def state_dict(self) -> dict[str, int]:
        """A batch of the pass with its first item, and items per batch from there on."""
        return {"batch": self._batch, "item": self._item, "step": self._saved_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Count from where ``state_dict`` was taken, with its step up to the next ``begin``.

        Raises:
            CheckpointError: it is no position.
        """
        counts = [state_dict.get(name) for name in ("batch", "item", "step")]
        if not all(type(count) is int and count >= 0 for count in counts) or not counts[2]:
            raise CheckpointError(
                f"the position in the data that the checkpoint holds cannot be read: {counts!r}."
            )
        self._batch, self._item = state_dict["batch"], state_dict["item"]
        self._saved_step = state_dict["step"]


class RoundsSource:
    """An iterable of batches, shared in rounds: each process takes one batch of each round.

    Every process reads all of it, as an iterable cannot be asked for a part.

    Args:
        batches: the source of whole batches.
        ranks: this process among the others.
    """

    def __init__(self, batches: Batches, ranks: Ranks) -> None:
        self.batches = batches
        self._ranks = ranks
        self._stride = Stride(ranks.size)
        self.share: Share | None = None

    @property
    def num_batches(self) -> int | None:
        """Rounds of one pass, if the iterable has a length."""
        known = self.batches.num_batches
        return None if known is None else self._stride.batches_of(known)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """This process's batches of pass ``epoch`` from round ``start`` on."""
        batches = self.batches.iterate(epoch, self._stride.begin(start))
        if self._ranks.size == 1:
            yield from batches
            return
        while batches_of_round := list(islice(batches, self._ranks.size)):
            sizes = [leading_size(batch) or 1 for batch in batches_of_round]
            has_own = self._ranks.rank < len(sizes)
            mine = self._ranks.rank if has_own else 0
            self.share = Share(sizes[mine] if has_own else 0, sum(sizes))
            yield batches_of_round[mine]

    def state_dict(self) -> dict[str, Any]:
        """The position of the iterable, and how rounds lie in it."""
        return {**self.batches.state_dict(), "stride": self._stride.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Stand where ``state_dict`` was taken, at the next ``iterate``."""
        rest = {key: value for key, value in state_dict.items() if key != "stride"}
        if "stride" in state_dict:
            self._stride.load_state_dict(state_dict["stride"])
        self.batches.load_state_dict(rest)
