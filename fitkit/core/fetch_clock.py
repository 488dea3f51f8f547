"""FetchClock: how long training waits for its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")


class FetchClock:
    """Two readings of the clock per batch, for as long as somebody wants to know.

    Attributes:
        waiting_seconds: time spent in fetching batches.
        working_seconds: time between a batch and the wish for the next: the step, hooks, saves.
        starting_seconds: of the waiting, that for the first batch of each pass, in which workers
            are started.
        num_batches: batches that were fetched and done with.
    """

    def __init__(self) -> None:
        self.waiting_seconds = 0.0
        self.working_seconds = 0.0
        self.starting_seconds = 0.0
        self.num_batches = 0

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches."""
        asked, is_first = perf_counter(), True
        for batch in batches:
            given = perf_counter()
            self.waiting_seconds += given - asked
            if is_first:
                self.starting_seconds += given - asked
                is_first = False
            try:
                yield batch
            finally:  # a pass may end at any batch
                asked = perf_counter()
                self.working_seconds += asked - given
                self.num_batches += 1
