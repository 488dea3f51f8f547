"""Random streams: captured, restored, derived from keys, and kept apart from each other.

The *streams* are those that user code draws from without naming a generator: Python's ``random``,
NumPy's legacy global state, torch's CPU generator and the generator of the device in use. The
streams of other devices are the program's.
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


CPU = torch.device("cpu")


def seed_streams(seed: int, device: torch.device = CPU) -> None:
    """Seed every stream of the host, and that of ``device``."""
    seed_host_streams(seed)
    _seed_device(device, seed)


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


def capture_streams(device: torch.device = CPU) -> dict[str, Any]:
    """The state of the host's streams and of that of ``device``, for a checkpoint.

    Returns:
        tensors and plain types; the device's state is the only one in ``"devices"``, and its kind
        is under ``"device"``.
    """
    state = {**_as_plain(get_host_state()), "devices": []}
    if device.type == "cpu":
        return state
    module = _module_with_stream(device)
    if module is not None:
        own = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
        state["devices"] = [own]
    return {**state, "device": device.type}


def restore_streams(state: dict[str, Any], device: torch.device = CPU) -> None:
    """Put back what ``capture_streams`` returned, also on a device of another index.

    The stream of a device of another kind than the one that was saved begins at a seed that follows
    from the host's stream.
    """
    set_host_state(_from_plain(state))
    module = _module_with_stream(device)
    if module is None:
        return
    saved = state["devices"]
    if kind_of_streams(state) != device.type or not saved:
        _seed_device(device, derive_seed("device", state["torch"].cpu().numpy().tobytes().hex()))
        return
    # fitkit 0.1 saved every CUDA device by its index
    own = saved[min(device.index or 0, len(saved) - 1)].cpu()
    if device.type == "mps":
        module.set_rng_state(own)
    else:
        module.set_rng_state(own, device)


def kind_of_streams(state: dict[str, Any]) -> str:
    """The kind of device on which ``state`` was captured."""
    of_old_files = "cuda" if state["devices"] else "cpu"
    return str(state.get("device", of_old_files))


def _module_with_stream(device: torch.device) -> Any:
    """``torch.cuda`` and the like, where ``device`` has a stream of its own; else ``None``."""
    if device.type in ("cpu", "meta"):
        return None
    module = torch.get_device_module(device)
    return module if hasattr(module, "get_rng_state") else None


def _seed_device(device: torch.device, seed: int) -> None:
    module = _module_with_stream(device)
    if module is None:
        return
    if device.type == "mps":
        module.manual_seed(seed)
        return
    with module.device(device):
        module.manual_seed(seed)


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


@contextmanager
def seeded_streams(seed: int, device: torch.device) -> Iterator[None]:
    """Inside ``with`` every stream of the host, and of ``device``, begins at ``seed``.

    Afterwards all of them are where they were.
    """
    outside = capture_streams(device)
    try:
        seed_streams(seed, device)
        yield
    finally:
        restore_streams(outside, device)


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
