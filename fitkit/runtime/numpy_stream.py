"""NumpyStream: NumPy's global generator, whose state is exchanged quickly (``host_streams.py``)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from fitkit.core.errors import CheckpointError
from fitkit.core.tree import iterate_leaves
from fitkit.runtime.generator_memory import (
    NUM_FIRST,
    NUM_RAW,
    NUM_WORDS,
    memory_of_numpy,
    numpy_random,
    rows_of_bytes,
)


class NumpyStream:
    """NumPy's legacy generator, that of ``numpy.random.rand``."""

    name, num_raw = "numpy", NUM_RAW

    def __init__(self) -> None:
        self._bits = numpy_random.get_bit_generator()
        self._memory = memory_of_numpy(self._bits)
        if self._memory is not None:
            words, _ = self._memory
            self._early, self._place = words[:8].cast("Q"), words[-4:].cast("I")

    def _is_known(self) -> bool:
        """Whether its memory is known: a program may have set a bit generator of its own."""
        return self._memory is not None and bool(numpy_random.get_bit_generator() is self._bits)

    def get(self) -> Any:
        """Words and place of the next one, and a normal number that is left over."""
        if not self._is_known():
            return np.random.get_state(legacy=False)
        words, normal = self._memory  # type: ignore[misc]
        return bytes(words), bytes(normal)

    def set(self, state: Any) -> None:
        """Restore a state."""
        if type(state) is dict:
            np.random.set_state(state)
        elif self._is_known():
            words, normal = self._memory  # type: ignore[misc]
            words[:], normal[:] = state
        else:
            np.random.set_state(_as_dict(state))

    @property
    def num_first(self) -> int:
        """A part of the words, where they can be set alone."""
        return NUM_FIRST if self._is_known() else NUM_RAW

    def is_at(self, state: Any) -> bool:
        """Whether nothing was drawn since ``get`` returned ``state``."""
        if type(state) is dict:
            pairs = zip(iterate_leaves(self.get()), iterate_leaves(state), strict=True)
            return all(np.array_equal(now, before) for now, before in pairs)
        return bool(self.get() == state)

    def starter(self, raw: Any) -> Any:
        """See ``HostStream``; the first word of a row is the next."""
        rows = raw.view(np.uint32)[:, : NUM_WORDS + 1]
        if not self._is_known():
            states = [_numpy_state(row[:NUM_WORDS].copy(), 0) for row in rows]
            return lambda index: np.random.set_state(states[index]), lambda: True
        rows[:, NUM_WORDS:] = 0  # the place, in a row of all words
        contents, expected = rows_of_bytes(raw), raw[:, 0].tolist()
        memory, normal = self._memory  # type: ignore[misc]
        words, place, early = memory[: len(contents[0])], self._place, self._early
        last, suffices = -1, True

        def check() -> bool:
            nonlocal suffices
            # new words are made once all are drawn, so the early ones tell; a sample may also set
            # a bit generator of its own
            if last >= 0 and (
                place[0] > 2 * NUM_FIRST
                or early[0] != expected[last]
                or numpy_random.get_bit_generator() is not self._bits
            ):
                suffices = False
            return suffices

        def start(index: int) -> None:
            nonlocal last
            check()
            words[:], normal[:], place[0], last = contents[index], _NO_NORMAL, 0, index

        return start, check

    def as_saved(self, state: Any) -> Any:
        """Words, place and left-over number."""
        if type(state) is not dict:
            state = _as_dict(state)
        return {
            "name": str(state["bit_generator"]),
            "key": torch.from_numpy(np.asarray(state["state"]["key"], dtype=np.int64)),
            "position": int(state["state"]["pos"]),
            "has_gauss": int(state["has_gauss"]),
            "gauss": float(state["gauss"]),
        }

    def of_saved(self, saved: Any) -> Any:
        """The state that a checkpoint holds."""
        position, key = saved["position"], saved["key"].cpu().numpy().astype(np.uint32)
        if not 0 <= position <= NUM_WORDS:  # NumPy would read past its memory
            raise CheckpointError(
                f"the state of NumPy's random stream has position {position}, outside 0 to "
                f"{NUM_WORDS}: the checkpoint was altered, use another."
            )
        if key.shape != (NUM_WORDS,) or not key.any():  # all zeros: NumPy would never return
            raise CheckpointError(
                "the state of NumPy's random stream has no valid key: the checkpoint was altered, "
                "use another."
            )
        state = _numpy_state(key, position, saved["has_gauss"], saved["gauss"])
        return {**state, "bit_generator": saved["name"]}


_NO_NORMAL = bytes(16)


def _numpy_state(key: Any, place: int, has_gauss: int = 0, gauss: float = 0.0) -> dict[str, Any]:
    """What ``numpy.random.set_state`` takes."""
    state = {"key": key, "pos": place}
    return {"bit_generator": "MT19937", "state": state, "has_gauss": has_gauss, "gauss": gauss}


def _as_dict(state: Any) -> dict[str, Any]:
    """The same for a state that is bytes."""
    words, normal = np.frombuffer(state[0], np.uint32), bytes(state[1])
    has_gauss = int.from_bytes(normal[:4], sys.byteorder)
    gauss = float(np.frombuffer(normal[8:], np.float64)[0])
    return _numpy_state(words[:NUM_WORDS], int(words[NUM_WORDS]), has_gauss, gauss)
