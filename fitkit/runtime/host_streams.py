"""The global generators of Python, NumPy and torch's CPU, whose states are exchanged quickly.

The public functions of Python and NumPy make 625 numbers of a state, which takes 10 and 45 µs: too
long to do it for each batch, and far too long for each sample. So the words of a state are copied
as bytes where the two generators keep them (``generator_memory.py``), or by the public functions
where that is not known.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from fitkit.core.errors import CheckpointError
from fitkit.runtime.generator_memory import (
    NUM_FIRST,
    NUM_RAW,
    NUM_WORDS,
    bytes_of_python,
    memory_of_python,
    rows_of_bytes,
)
from fitkit.runtime.numpy_stream import NumpyStream

# sets the state of a row; tells whether the words of each row sufficed that was set
Starter = tuple[Callable[[int], Any], Callable[[], bool]]
_PLACES = 2 * NUM_FIRST  # of Python's memory that are set, the first for the place of the next word


class HostStream(Protocol):
    """One of the global generators.

    Attributes:
        name: what a checkpoint calls it.
        num_raw: how many random 64-bit words a state for a sample is made of.
    """

    name: str
    num_raw: int

    def get(self) -> Any:
        """Its state."""

    def set(self, state: Any) -> None:
        """Restore what ``get`` returned."""

    @property
    def num_first(self) -> int:
        """How many words of a state suffice while a sample draws few numbers."""

    def is_at(self, state: Any) -> bool:
        """Whether nothing was drawn since ``get`` returned ``state``."""

    def starter(self, raw: Any) -> Starter:
        """What begins with the state of a row of an array of random words, uint64.

        A row has ``num_raw`` words, or only the first ``num_first``.
        """

    def as_saved(self, state: Any) -> Any:
        """What a checkpoint holds of the state: tensors and plain types."""

    def of_saved(self, saved: Any) -> Any:
        """The state that a checkpoint holds, or ``CheckpointError``."""


class PythonStream:
    """The generator of Python's module ``random``."""

    name, num_raw = "python", NUM_RAW

    def __init__(self) -> None:
        self._generator: Any = random.random.__self__  # type: ignore[attr-defined]
        self._memory = memory_of_python(self._generator)
        if self._memory is not None:
            self._place = self._memory[:4].cast("I")
            self._early = self._memory[8:16].cast("Q")

    def get(self) -> Any:
        """The place of the next word and the words, and a normal number that is left over."""
        if self._memory is None:
            return random.getstate()
        return bytes(self._memory), self._generator.gauss_next

    def set(self, state: Any) -> None:
        """Restore a state."""
        if self._memory is None:
            random.setstate(state)
            return
        self._memory[:], self._generator.gauss_next = state

    @property
    def num_first(self) -> int:
        """A part of the words, where they can be set alone."""
        return NUM_RAW if self._memory is None else NUM_FIRST

    def is_at(self, state: Any) -> bool:
        """Whether nothing was drawn since ``get`` returned ``state``."""
        return bool(self.get() == state)

    def starter(self, raw: Any) -> Starter:
        """See ``HostStream``; the first word of a row is the next."""
        rows = raw.view(np.uint32)[:, : NUM_WORDS + 1]
        rows[:, 0] = 0
        memory, generator = self._memory, self._generator
        if memory is None:
            states = [(3, (*row[1:].tolist(), 0), None) for row in rows]
            return lambda index: random.setstate(states[index]), lambda: True
        contents, expected = rows_of_bytes(raw), raw[:, 1].tolist()
        words, place, early = memory[: len(contents[0])], self._place, self._early
        last, suffices = -1, True

        def check() -> bool:
            nonlocal suffices
            # new words are made once all are drawn, so the early ones tell
            if last >= 0 and (place[0] >= _PLACES or early[0] != expected[last]):
                suffices = False
            return suffices

        def start(index: int) -> None:
            nonlocal last
            check()
            words[:], generator.gauss_next, last = contents[index], None, index

        return start, check

    def as_saved(self, state: Any) -> Any:
        """One tensor, because pickling 625 numbers takes longer than pickling a small model."""
        if self._memory is None:
            version, words, gauss = state
            content = np.array(words, np.int64)
        else:  # the place is the first word here, and the last one in a file
            version, gauss = 3, state[1]
            words = np.frombuffer(state[0], np.uint32)
            content = np.concatenate([words[1:], words[:1]], dtype=np.int64)
        return {"version": version, "state": torch.from_numpy(content), "gauss": gauss}

    def of_saved(self, saved: Any) -> Any:
        """The state that a checkpoint holds."""
        gauss = saved["gauss"]
        if not (gauss is None or type(gauss) is float):
            raise CheckpointError(
                f"the state of Python's random stream holds {gauss!r}, not a number: the "
                f"checkpoint was altered, use another."
            )
        checked = random.Random()
        checked.setstate((saved["version"], tuple(saved["state"].tolist()), gauss))
        state: Any = checked.getstate()
        return state if self._memory is None else (bytes_of_python(state), gauss)


class TorchStream:
    """torch's generator for the CPU."""

    name, num_raw, num_first = "torch", 1, 1

    def get(self) -> Any:
        """Its state."""
        return torch.default_generator.get_state()

    def set(self, state: Any) -> None:
        """Restore a state."""
        torch.default_generator.set_state(state)

    def is_at(self, state: Any) -> bool:
        """Whether nothing was drawn since ``get`` returned ``state``."""
        # as bytes, which takes half the time of torch.equal
        return bool(self.get().numpy().tobytes() == state.numpy().tobytes())

    def starter(self, raw: Any) -> Starter:
        """See ``HostStream``; a word is a seed, which suffices for any number of draws."""
        seeds, seed = (raw[:, 0] >> np.uint64(1)).tolist(), torch.default_generator.manual_seed
        return lambda index: seed(seeds[index]), lambda: True

    def as_saved(self, state: Any) -> Any:
        """The state itself, a tensor."""
        return state

    def of_saved(self, saved: Any) -> Any:
        """The state that a checkpoint holds."""
        return saved.cpu()


STREAMS: tuple[HostStream, ...] = (PythonStream(), NumpyStream(), TorchStream())
