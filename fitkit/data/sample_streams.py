"""SampleStreams: gives the random streams of each sample a state that depends on its place only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import get_worker_info

from fitkit.runtime.host_streams import STREAMS, HostStream
from fitkit.runtime.rng import derive_seed, get_host_state, is_host_state, set_host_state

T = TypeVar("T")
Begin = Callable[[int], None]
Load = Callable[[Begin | None], T]


class SampleStreams:
    """The host streams while the samples of a batch are loaded.

    What a sample draws is a function of (seed, epoch, position). Only streams that samples have
    been seen to draw from are set for each of them. The first batch shows which; if a later one
    draws from another stream, that is noticed, and the batch is loaded again with it set.
    """

    def __init__(self) -> None:
        self._drawn: tuple[HostStream, ...] | None = None  # None: no batch was seen yet
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
                batch = load(self._begin(self._drawn, position, count))
                are_same = not self._drawn and is_host_state(outside)
                found = () if are_same else self._drawn_first(outside)
                if not found:
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

    def _begin(self, streams: tuple[HostStream, ...], position: int, count: int) -> Begin | None:
        """What sets ``streams`` before a sample; ``None``: there are none."""
        if not streams:
            return None
        of_streams = [(stream.set, self._states(stream, position, count)) for stream in streams]

        def begin(offset: int) -> None:
            for set_state, states in of_streams:
                set_state(states[offset])

        return begin

    def _load_and_see(self, position: int, count: int, load: Load[T]) -> T:
        """The first batch, with all streams set; notes which of them are drawn from."""
        begin_all: Any = self._begin(STREAMS, position, count)
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
        self._drawn = tuple(stream for stream in STREAMS if stream.name in drawn)
        return batch

    def _states(self, stream: HostStream, position: int, count: int) -> list[Any]:
        words = self._words.get(stream.name)
        if words is None:
            key = derive_seed(*self._pass, "sample", stream.name)  # type: ignore[misc]
            words = self._words[stream.name] = _Words(key, stream.num_raw)
        return stream.states(words.of(position, count))


class _Words:
    """Random words for each position, of 64 bits; those of a whole batch are made at once."""

    def __init__(self, seed: int, per_position: int) -> None:
        self._bits = np.random.PCG64(seed)
        self._per_position = per_position
        self._position = 0

    def of(self, position: int, count: int) -> Any:
        """An array of uint64, with a row for each position from ``position`` on."""
        if position != self._position:
            self._bits.advance((position - self._position) * self._per_position)
        self._position = position + count
        return self._bits.random_raw(count * self._per_position).reshape(count, -1)
