"""Random streams: captured, restored, derived from keys, and kept apart from each other.

The *streams* are those that user code draws from without naming a generator: Python's ``random``,
NumPy's legacy global state, torch's CPU generator and the generator of each device in use.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitkit.core.errors import CheckpointError

_WORDS_OF_NUMPY = 624  # of the Mersenne Twister's state


def derive_seed(*key: int | str) -> int:
    """A seed in ``[0, 2**63)`` that is a function of ``key`` alone.

    >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1) != derive_seed(0, "order", 2)
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int(struct.unpack("<Q", digest)[0]) >> 1


def draw_seed() -> int:
    """A new seed, drawn from torch's own generator so that ``torch.manual_seed`` decides it."""
    return int(torch.randint(2**63 - 1, (), device="cpu").item())


def fresh_seed() -> int:
    """A new seed from the operating system."""
    return secrets.randbits(63)


def seed_streams(seed: int) -> None:
    """Seed every stream of this process, those of its devices included."""
    seed_host_streams(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)


def seed_host_streams(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU stream, and touch no device."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


HostState = tuple[Any, Any, Tensor]


def get_host_state() -> HostState:
    """The state of Python's, NumPy's and torch's CPU stream, as cheaply as it can be had."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_host_state(state: HostState) -> None:
    """Put back what ``get_host_state`` returned."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


@contextmanager
def streams_apart() -> Iterator[None]:
    """Inside ``with`` foreign code on the host draws from fresh streams, none that training has."""
    streams = get_host_state()
    seed_host_streams(fresh_seed())
    try:
        yield
    finally:
        set_host_state(streams)


def capture_streams() -> dict[str, Any]:
    """The state of every stream as tensors and plain types, for a checkpoint."""
    return {**_as_plain(get_host_state()), "devices": _capture_devices()}


def restore_streams(state: dict[str, Any]) -> None:
    """Put back what ``capture_streams`` returned; devices that are not here are left out."""
    set_host_state(_from_plain(state))
    if torch.cuda.is_available():
        for index, device_state in enumerate(state["devices"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state.cpu(), index)


def _as_plain(state: HostState) -> dict[str, Any]:
    version, words, gauss_next = state[0]
    name, key, position, has_gauss, gauss = state[1]
    return {
        # one tensor instead of 625 numbers, which would take longer to pickle than a small model
        "python": {
            "version": version,
            "state": torch.frombuffer(array("q", words), dtype=torch.int64),
            "gauss": gauss_next,
        },
        "numpy": {
            "name": str(name),
            "key": torch.from_numpy(np.asarray(key, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": state[2],
    }


def _from_plain(state: dict[str, Any]) -> HostState:
    saved = state["numpy"]
    if not 0 <= saved["position"] <= _WORDS_OF_NUMPY:  # NumPy would read past its memory
        raise CheckpointError(
            f"the state of NumPy's random stream has position {saved['position']}, outside 0 to "
            f"{_WORDS_OF_NUMPY}: the checkpoint was altered, use another."
        )
    key = saved["key"].cpu().numpy().astype(np.uint32)
    if (
        key.shape != (_WORDS_OF_NUMPY,) or not key.any()
    ):  # of nothing but zeros NumPy draws for ever
        raise CheckpointError(
            "the state of NumPy's random stream has no valid key: the checkpoint was altered, use "
            "another."
        )
    gauss = state["python"]["gauss"]
    if not (gauss is None or type(gauss) is float):
        raise CheckpointError(
            f"the state of Python's random stream holds {gauss!r}, not a number: the checkpoint "
            f"was altered, use another."
        )
    numpy_state = (
        saved["name"],
        key,
        saved["position"],
        saved["has_gauss"],
        saved["gauss"],
    )
    python = state["python"]
    python_state = (python["version"], tuple(python["state"].tolist()), python["gauss"])
    return python_state, numpy_state, state["torch"].cpu()


def _capture_devices() -> list[Tensor]:
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.get_rng_state_all()
    return []


@contextmanager
def seeded_streams(seed: int, device: torch.device) -> Iterator[None]:
    """Inside ``with`` every stream of the host, and of ``device``, begins at ``seed``.

    Afterwards all of them are where they were.
    """
    outside = capture_streams()
    try:
        seed_host_streams(seed) if device.type == "cpu" else seed_streams(seed)
        yield
    finally:
        restore_streams(outside)


class IsolatedStreams:
    """A set of host streams of its own; inside ``with`` they take the place of the process's.

    What runs inside draws from streams that depend on the seed alone, and what runs outside does
    not notice. The private streams go on where they were at the next ``with``.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._inner: HostState | None = None
        self._outer: HostState | None = None

    def __enter__(self) -> None:
        self._outer = get_host_state()
        if self._inner is None:
            seed_host_streams(self._seed)
        else:
            set_host_state(self._inner)

    def __exit__(self, *exc_info: object) -> None:
        self._inner = get_host_state()
        if self._outer is not None:
            set_host_state(self._outer)

    def state_dict(self) -> dict[str, Any]:
        """Where the private streams stand; empty before the first ``with``."""
        return {} if self._inner is None else _as_plain(self._inner)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put the private streams where ``state_dict`` was taken."""
        self._inner = _from_plain(state_dict) if state_dict else None
