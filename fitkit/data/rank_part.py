"""RankPartSource: batches of data of which each rank has a part of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fitkit.core.errors import ConfigurationError, DataError
from fitkit.core.types import Batches, Share
from fitkit.data.generator_state import UserGenerators
from fitkit.data.make_source import batch_size_of, make_source
from fitkit.data.rank_split import RoundRobinSource
from fitkit.data.sample_count import SampleCount
from fitkit.data.spec import DataSpec, is_batched_by_fitkit
from fitkit.distributed.world import World
from fitkit.runtime.rng import derive_seed

_END = object()
_UNKNOWN = -1


def make_part_source(
    spec: DataSpec, ranks: World, *, seed: int, count: SampleCount, **options: Any
) -> RankPartSource:
    """The source of this rank's part; see ``make_source`` for ``seed``, ``count`` and ``options``.

    Raises:
        ConfigurationError: a loader has a generator, whose state on other ranks no file holds.
    """
    if UserGenerators(spec.data).states() or spec.loader_kwargs.get("generator") is not None:
        raise ConfigurationError(
            "a loader with generator= cannot have a part of its own on each rank (split='rank'), "
            "because a checkpoint holds the generators of rank 0: leave it out, the order is a "
            "function of the seed."
        )
    if is_batched_by_fitkit(spec.data):
        size = batch_size_of(spec, ranks.size)
        spec = replace(spec, batch_size=size, global_batch_size=None)
    seed = derive_seed(seed, "part", ranks.rank)  # else all ranks would draw the same numbers
    source: Any = make_source(spec, seed=seed, count=count, **options)
    # a checkpoint holds the position of rank 0, and a loader's own may be another on each rank
    is_iterable = isinstance(source, RoundRobinSource)
    part: Batches = source.batches.as_part() if is_iterable else source
    return RankPartSource(part, ranks, count)


class RankPartSource:
    """The batches of this rank's part; a rank that runs out repeats one that counts 0 samples.

    So all ranks take equally many steps, and each sample counts once. If each rank knows how many
    batches it has, they exchange that once per pass, else whether there is one before each batch.

    Args:
        batches: the part of this rank.
        ranks: the ranks.
        count: counts the samples of a batch.

    Raises:
        DataError: a rank is known to have no batch.
    """

    def __init__(self, batches: Batches, ranks: World, count: SampleCount) -> None:
        self.batches = batches
        self.possible_parts = (ranks.size,)
        self.share: Share | None = None
        self._ranks, self._count = ranks, count
        numbers: list[int | None] = ranks.gather_all(batches.num_batches)
        empty = [rank for rank, number in enumerate(numbers) if number == 0]
        if empty:
            raise _no_batch(empty[0])
        known = [number for number in numbers if number is not None]
        self._num_batches = max(known) if len(known) == len(numbers) else None

    @property
    def num_batches(self) -> int | None:
        """Batches of the longest part, if all ranks know theirs."""
        return self._num_batches

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield this rank's batches of pass ``epoch`` from batch ``start`` on.

        Raises:
            DataError: a rank has not even one batch to repeat.
        """
        own = self.batches.num_batches
        numbers = [_UNKNOWN if own is None else own, int(own is None)]
        longest, is_unknown = self._ranks.largest(numbers)
        self._num_batches = None if is_unknown else longest
        if own is not None and start >= own:  # after a resume, one to repeat
            batches = self.batches.iterate(epoch, own - 1)
            spare = next(batches, _END)
            batches = iter(())
        else:
            batches, spare = self.batches.iterate(epoch, start), _END
        number = start
        while True:
            batch = next(batches, _END) if is_unknown or number < longest else _END
            if batch is _END and spare is _END:
                spare = next(iter(getattr(self.batches, "skipped_last", ())), _END)
            if not self._goes_on(number, longest, batch, spare, is_unknown=bool(is_unknown)):
                return
            self.share = Share(0, None)
            if batch is not _END:
                inner = getattr(self.batches, "share", None)
                self.share = Share(self._count.of(batch) if inner is None else inner.local, None)
                spare = batch
            number += 1
            yield spare

    def _goes_on(
        self, number: int, longest: int, batch: Any, spare: Any, *, is_unknown: bool
    ) -> bool:
        """Whether any rank has a batch."""
        if not is_unknown:
            return number < longest
        lacks = batch is _END and spare is _END
        rank = self._ranks.rank + 1 if lacks else 0
        any_has, lacking = self._ranks.largest([int(batch is not _END), rank])
        if any_has and lacking:
            raise DataError(
                f"the part of rank {lacking - 1} has no batch, while others have: give each rank "
                f"at least one batch, or all ranks the same data without split='rank'."
            )
        return bool(any_has)

    def state_dict(self) -> dict[str, Any]:
        """The position, which is the same in each part, and the number of parts."""
        return {**self.batches.state_dict(), "parts": self._ranks.size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position for the next ``iterate``."""
        self.batches.load_state_dict({k: v for k, v in state_dict.items() if k != "parts"})


def _no_batch(rank: int) -> DataError:
    return DataError(
        f"the part of rank {rank} has no batch, while others have: give each rank at least one "
        f"batch, or all ranks the same data without split='rank'."
    )
