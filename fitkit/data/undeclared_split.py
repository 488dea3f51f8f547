"""UndeclaredSplitSource: finds out from first batches whether each rank has a part of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from fitkit.core.errors import ConfigurationError
from fitkit.core.types import BatchSource, Share
from fitkit.data.own_part import DATA_REMEDY, batch_digest, taken_as_parts
from fitkit.data.rank_part import RankPartSource
from fitkit.data.rank_split import RoundRobinSource
from fitkit.distributed.world import World


class UndeclaredSplitSource:
    """Batches of an iterable on several ranks, without ``split="rank"``.

    Before it yields its first batch, the ranks compare what they have read for it. If that differs,
    each rank trains all that it reads, as with ``split="rank"``; else each takes its share.

    Args:
        name: says in a warning which data that is.
        data: the iterable.
        shared: the source of data that all ranks have.
        make_part: makes the source of an iterable of which each rank has its part.
        ranks: the ranks.
    """

    def __init__(
        self,
        name: str,
        data: Any,
        shared: RoundRobinSource,
        make_part: Callable[[Any], RankPartSource],
        ranks: World,
    ) -> None:
        self._name, self._data, self._ranks = name, data, ranks
        self._shared, self._make_part = shared, make_part
        self._source: BatchSource = shared
        self._has_compared = False

    @property
    def possible_parts(self) -> tuple[int, ...]:
        """Into how many parts the data may be split; see ``load_position``."""
        return (1, self._ranks.size)

    @property
    def num_batches(self) -> int | None:
        """Batches of this rank in one pass, if known."""
        return self._source.num_batches

    @property
    def share(self) -> Share | None:
        """The share of this rank in the last batch."""
        return self._source.share

    def iterate(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield this rank's batches of pass ``epoch`` from batch ``start`` on.

        Raises:
            ConfigurationError: the data differs between ranks, but did not before a resume, cannot
                be read again, or has a generator, which parts cannot have.
        """
        if self._has_compared:
            yield from self._source.iterate(epoch, start)
            return
        rounds = self._shared.rounds(epoch, start)
        first = next(rounds, [])
        self._has_compared = True
        if len(set(self._ranks.gather_all(batch_digest(first)))) == 1:
            yield from self._shared.pick_from(chain([first], rounds) if first else ())
            return
        if start or self._shared.batches.is_single_pass:
            why = "did not when the epoch was interrupted" if start else "can be read only once"
            raise ConfigurationError(
                f"{self._name} differs between ranks and {why}: {DATA_REMEDY}."
            )
        if self._ranks.rank == 0:
            warnings.warn(taken_as_parts(self._name), stacklevel=2)
        del rounds  # ends workers of a loader
        # read again from its beginning: a part draws from other random streams
        self._source = self._make_part(self._data)
        yield from self._source.iterate(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data that all ranks have, or in the parts."""
        return self._source.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position, and what the ranks found when they compared."""
        if "parts" in state_dict:
            self._source, self._has_compared = self._make_part(self._data), True
        self._source.load_state_dict(state_dict)
