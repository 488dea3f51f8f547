"""The global generators of Python, NumPy and torch's CPU, whose states are exchanged quickly.

The public functions of Python and NumPy make 625 numbers of a state, which takes 10 and 45 µs: too
long to do it for each batch, and far too long for each sample. So the words of a state are copied
as bytes where the two generators keep them (``generator_memory.py``), or by the public functions
where that is not known.
"""

from __future__ import annotations

import random
import sys
from array import array
from typing import Any, Protocol

import numpy as np
import torch

from fitkit.core.errors import CheckpointError
from fitkit.core.tree import iterate_leaves
from fitkit.runtime.generator_memory import (
    NUM_BYTES,
    NUM_WORDS,
    bytes_of_python,
    memory_of_numpy,
    memory_of_python,
    numpy_random,
)

_NUM_RAW = NUM_WORDS // 2 + 1  # 64-bit words that are enough for them


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
        """Restore what ``get`` returned, or begin with one of ``states``."""

    def is_at(self, state: Any) -> bool:
        """Whether nothing was drawn since ``get`` returned ``state``."""

    def states(self, raw: Any) -> list[Any]:
        """A state to begin with for each row of an array of random words, uint64."""

    def as_saved(self, state: Any) -> Any:
        """What a checkpoint holds of the state: tensors and plain types."""

    def of_saved(self, saved: Any) -> Any:
        """The state that a checkpoint holds, or ``CheckpointError``."""


class PythonStream:
    """The generator of Python's module ``random``."""

    name, num_raw = "python", _NUM_RAW

    def __init__(self) -> None:
        self._generator: Any = random.random.__self__  # type: ignore[attr-defined]
        self._memory = memory_of_python(self._generator)

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

    def is_at(self, state: Any) -> bool:
        """Whether nothing was drawn since ``get`` returned ``state``."""
        return bool(self.get() == state)

    def states(self, raw: Any) -> list[Any]:
        """A state for each row of words; the first word is the next."""
        rows = raw.view(np.uint32)[:, : NUM_WORDS + 1]
        rows[:, 0] = 0
        if self._memory is not None:
            return [(row, None) for row in _rows_of_bytes(raw)]
        return [(3, (*row[1:].tolist(), 0), None) for row in rows]

    def as_saved(self, state: Any) -> Any:
        """One tensor, because pickling 625 numbers takes longer than pickling a small model."""
        if self._memory is None:
            version, words, gauss = state
        else:
            place, *words = np.frombuffer(state[0], np.uint32).tolist()
            version, words, gauss = 3, (*words, place), state[1]
        content = torch.frombuffer(array("q", words), dtype=torch.int64)
        return {"version": version, "state": content, "gauss": gauss}

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


class NumpyStream:
    """NumPy's legacy generator, that of ``numpy.random.rand``."""

    name, num_raw = "numpy", _NUM_RAW

    def __init__(self) -> None:
        self._bits = numpy_random.get_bit_generator()
        self._memory = memory_of_numpy(self._bits)

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

    def is_at(self, state: Any) -> bool:
        """Whether nothing was drawn since ``get`` returned ``state``."""
        if type(state) is dict:
            pairs = zip(iterate_leaves(self.get()), iterate_leaves(state), strict=True)
            return all(np.array_equal(now, before) for now, before in pairs)
        return bool(self.get() == state)

    def states(self, raw: Any) -> list[Any]:
        """A state for each row of words; the first word is the next."""
        rows = raw.view(np.uint32)[:, : NUM_WORDS + 1]
        rows[:, NUM_WORDS] = 0
        if self._is_known():
            return [(row, _NO_NORMAL) for row in _rows_of_bytes(raw)]
        return [_numpy_state(row[:NUM_WORDS].copy(), 0) for row in rows]

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


class TorchStream:
    """torch's generator for the CPU."""

    name, num_raw = "torch", 1

    def get(self) -> Any:
        """Its state."""
        return torch.default_generator.get_state()

    def set(self, state: Any) -> None:
        """Restore a state, or begin with a seed."""
        if type(state) is int:
            torch.default_generator.manual_seed(state)
        else:
            torch.default_generator.set_state(state)

    def is_at(self, state: Any) -> bool:
        """Whether nothing was drawn since ``get`` returned ``state``."""
        # as bytes, which takes half the time of torch.equal
        return bool(self.get().numpy().tobytes() == state.numpy().tobytes())

    def states(self, raw: Any) -> list[Any]:
        """A seed for each row of one word."""
        seeds: list[Any] = (raw[:, 0] >> np.uint64(1)).tolist()
        return seeds

    def as_saved(self, state: Any) -> Any:
        """The state itself, a tensor."""
        return state

    def of_saved(self, saved: Any) -> Any:
        """The state that a checkpoint holds."""
        return saved.cpu()


def _rows_of_bytes(raw: Any) -> list[memoryview]:
    """The beginning of each row, as bytes."""
    content = memoryview(raw).cast("B")
    return [content[i : i + NUM_BYTES] for i in range(0, len(content), 8 * _NUM_RAW)]


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


STREAMS: tuple[HostStream, ...] = (PythonStream(), NumpyStream(), TorchStream())
