"""SampleStreams: gives the random streams of each sample a state that depends on its place only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import get_worker_info

from fitkit.runtime.generator_memory import NUM_FIRST
from fitkit.runtime.host_streams import STREAMS, HostStream, Starter
from fitkit.runtime.rng import derive_seed, get_host_state, is_host_state, set_host_state

T = TypeVar("T")
Begin = Callable[[int], None]
Load = Callable[[Begin | None], T]


class SampleStreams:
    """The host streams while the samples of a batch are loaded.

    What a sample draws is a function of (seed, epoch, position). Only streams that samples have
    been seen to draw from are set for each of them, and only the words of a state that samples have
    been seen to need. The first batch shows which; if a later one draws from another stream, or
    more, that is noticed, and the batch is loaded again with what it needs.
    """

    def __init__(self) -> None:
        self._drawn: tuple[HostStream, ...] | None = None  # None: no batch was seen yet
        self._whole: set[str] = set()  # the streams of which samples need more than the first words
        self._pass: tuple[int, int] | None = None
        self._words: dict[str, _Words] = {}

    def run(self, seed: int, epoch: int, position: int, count: int, load: Load[T]) -> T:
        """What ``load`` returns.

        Args:
            seed: of the run.
            epoch: the pass.
            position: of the first sample in the pass.
            count: the number of samples.
            load: loads them; it calls its argument, if that is not ``None``, with 0, 1, ... before
                each of them.
        """
        if (seed, epoch) != self._pass:
            self._pass, self._words = (seed, epoch), {}
        outside, are_same = get_host_state(), False
        try:
            if self._drawn is None:
                return self._load_and_see(position, count, load)
            while True:
                num_whole = len(self._whole)
                begin, end = self._begin(self._drawn, position, count)
                batch = load(begin)
                end()
                are_same = not self._drawn and is_host_state(outside)
                found = () if are_same else self._drawn_first(outside)
                if not found and len(self._whole) == num_whole:
                    return batch
                self._drawn += found
                set_host_state(outside)
        finally:
            if not are_same and get_worker_info() is None:
                set_host_state(outside)

    def _drawn_first(self, outside: tuple[Any, ...]) -> tuple[HostStream, ...]:
        """The streams that a batch has drawn from and that were not known for that."""
        return tuple(
            stream
            for stream, state in zip(STREAMS, outside, strict=True)
            if stream not in (self._drawn or ()) and not stream.is_at(state)
        )

    def _begin(
        self, streams: tuple[HostStream, ...], position: int, count: int
    ) -> tuple[Begin | None, Callable[[], None]]:
        """What sets ``streams`` before a sample, ``None`` if there are none; and what ends them."""
        if not streams:
            return None, lambda: None
        is_first = self._drawn is None
        in_part = [s for s in streams if s.num_first < s.num_raw and s.name not in self._whole]
        starters = {
            stream: self._starter(stream, position, count, whole=is_first or stream not in in_part)
            for stream in streams
        }
        starts = [start for start, _ in starters.values()]

        def begin(offset: int) -> None:
            for start in starts:
                start(offset)

        def end() -> None:
            self._whole |= {stream.name for stream in in_part if not starters[stream][1]()}

        return (begin if len(starts) > 1 else starts[0]), end

    def _load_and_see(self, position: int, count: int, load: Load[T]) -> T:
        """The first batch, with all streams set; notes which of them are drawn from."""
        begin_all: Any
        begin_all, end = self._begin(STREAMS, position, count)
        drawn: set[str] = set()
        given = get_host_state()

        def see() -> None:
            pairs = zip(STREAMS, given, strict=True)
            drawn.update(stream.name for stream, state in pairs if not stream.is_at(state))

        def begin(offset: int) -> None:
            nonlocal given
            see()
            begin_all(offset)
            given = get_host_state()

        batch = load(begin)
        see()
        end()
        self._drawn = tuple(stream for stream in STREAMS if stream.name in drawn)
        return batch

    def _starter(self, stream: HostStream, position: int, count: int, *, whole: bool) -> Starter:
        words = self._words.get(stream.name)
        if words is None:
            key = (*self._pass, "sample", stream.name)  # type: ignore[misc]
            words = self._words[stream.name] = _Words(key, stream.num_raw)
        first = words.first.of(position, count)
        if whole and words.others is not None:
            return stream.starter(np.hstack([first, words.others.of(position, count)]))
        return stream.starter(first)


class _Words:
    """Random words of 64 bits for each position: the first, and the others of a whole state."""

    def __init__(self, key: tuple[int | str, ...], number: int) -> None:
        num_first = min(number, NUM_FIRST)
        self.first = _WordsOfPositions(derive_seed(*key), num_first)
        self.others: _WordsOfPositions | None = None
        if number > num_first:
            self.others = _WordsOfPositions(derive_seed(*key, "others"), number - num_first)


class _WordsOfPositions:
    """So many words for each position; those of a whole batch are made at once."""

    def __init__(self, seed: int, per_position: int) -> None:
        self._bits = np.random.PCG64(seed)
        self._per_position = per_position
        self._position = 0

    def of(self, position: int, count: int) -> Any:
        """An array of uint64, with a row for each position from ``position`` on."""
        if position != self._position:
            self._bits.advance((position - self._position) * self._per_position)
        self._position = position + count
        words = self._bits.random_raw(count * self._per_position)
        return words.reshape(count, self._per_position)
