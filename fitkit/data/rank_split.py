"""Splits each batch over the ranks.

The position in a pass is counted in items of the global order (samples, or batches of an iterable
that makes its own), so a run can be resumed with another number of ranks or another batch size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from fitkit.core.errors import CheckpointError
from fitkit.core.types import Share
from fitkit.data.iterables import IterableBatches
from fitkit.data.sample_count import SampleCount


class RankSplit(NamedTuple):
    """Which part of the data this rank gets.

    Every rank must take part in every collective, so a rank without samples computes the part of
    rank 0, with a share that counts 0 samples.
    """

    rank: int = 0
    size: int = 1

    def part(self, total: int) -> tuple[slice, Share]:
        """This rank's part of ``total`` samples in order, as equal as possible."""
        least, more = divmod(total, self.size)
        local = least + (self.rank < more)
        rank = self.rank if local else 0
        begin = rank * least + min(rank, more)
        return slice(begin, begin + least + (rank < more)), Share(local, total)

    def pick(self, sizes: Sequence[int | None]) -> tuple[int, Share]:
        """The index of this rank's batch in a round of batches with ``sizes`` samples, if known."""
        has_batch = self.rank < len(sizes)
        index = self.rank if has_batch else 0
        known = [size for size in sizes if size is not None]
        total = sum(known) if len(known) == len(sizes) else None
        return index, Share(sizes[index] if has_batch else 0, total)


SINGLE_RANK = RankSplit()


class Stride:
    """Where each batch of a pass begins in the global order; ``step`` is items per batch.

    Attributes:
        step: items per batch.
        saved_step: items per batch of the last pass, which a checkpoint may have interrupted.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._batch = self._item = 0  # a batch of this pass, and its first item
        self.saved_step = step

    def begin(self, batch: int) -> int:
        """Begin or continue a pass at this batch; return its first item."""
        if not batch:
            self._batch = self._item = 0
        item = self._item + (batch - self._batch) * self.saved_step
        if self.saved_step != self.step:
            self._batch, self._item, self.saved_step = batch, item, self.step
        return item

    def batches_of(self, num_items: int, *, whole_only: bool = False) -> int:
        """Batches of a pass over ``num_items`` items."""
        full, rest = divmod(max(num_items - self._item, 0), self.step)
        return self._batch + full + (rest > 0 and not whole_only)

    def state_dict(self) -> dict[str, int]:
        """A batch of the pass with its first item, and the items per batch from there on."""
        return {"batch": self._batch, "item": self._item, "step": self.saved_step}

    def load_from(self, source_state: dict[str, Any]) -> dict[str, Any]:
        """Restore the entry ``"stride"`` of a source's state, if any; return the other entries."""
        rest = {key: value for key, value in source_state.items() if key != "stride"}
        if "stride" in source_state:
            state = source_state["stride"]
            counts = [state.get(name) for name in ("batch", "item", "step")]
            if not all(type(count) is int and count >= 0 for count in counts) or not counts[2]:
                raise CheckpointError(
                    f"the position in the data must be batch, item and step, received {counts!r}: "
                    f"the checkpoint was altered, use another."
                )
            self._batch, self._item, self.saved_step = counts
        return rest


class RoundRobinSource:
    """An iterable of batches, of which each rank takes one per round.

    Every rank reads the whole iterable, because an iterable cannot be asked for a part.
    """

    def __init__(
        self, batches: IterableBatches, ranks: RankSplit, count: SampleCount | None = None
    ) -> None:
        self.batches = batches
        self._ranks = ranks
        self._count = SampleCount() if count is None else count
        self._stride = Stride(ranks.size)
        self.share: Share | None = None

    @property
    def num_batches(self) -> int | None:
        """Rounds of one pass, if the iterable has a length."""
        num_batches = self.batches.num_batches
        return None if num_batches is None else self._stride.batches_of(num_batches)

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield this rank's batches of pass ``epoch`` from round ``start`` on."""
        if self._ranks.size == 1:
            return self._batches_from(epoch, start)
        return self.pick_from(self.rounds(epoch, start))

    def _batches_from(self, epoch: int, start: int) -> Iterator[Any]:
        self.batches.may_lack = self._stride.saved_step - 1
        return self.batches.iterate(epoch, self._stride.begin(start))

    def rounds(self, epoch: int, start: int = 0) -> Iterator[list[Any]]:
        """Yield the batches of all ranks; the last round may lack some."""
        batches = self._batches_from(epoch, start)
        while batches_of_round := list(islice(batches, self._ranks.size)):
            yield batches_of_round

    def pick_from(self, rounds: Iterable[list[Any]]) -> Iterator[Any]:
        """Yield this rank's batch of each of the ``rounds``."""
        for batches in rounds:
            index, self.share = self._ranks.pick([self._count.of(batch) for batch in batches])
            yield batches[index]

    def state_dict(self) -> dict[str, Any]:
        """The position of the iterable, and the stride of rounds."""
        return {**self.batches.state_dict(), "stride": self._stride.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position for the next ``iterate``."""
        self.batches.load_state_dict(self._stride.load_from(state_dict))
