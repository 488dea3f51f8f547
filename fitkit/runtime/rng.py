"""Random streams: derives seeds, and captures, restores and isolates the global generators.

The *streams* are the generators that code draws from without naming one: Python's ``random``,
NumPy's legacy global state, torch's CPU generator (together the host streams), and the generator of
the handler's device. Those of other devices are left alone.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fitkit.runtime.host_streams import STREAMS


def derive_seed(*key: int | str) -> int:
    """A seed in ``[0, 2**63)`` that depends on ``key`` only.

    >>> derive_seed(0, "order", 1) == derive_seed(0, "order", 1) != derive_seed(0, "order", 2)
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int(struct.unpack("<Q", digest)[0]) >> 1


def draw_seed() -> int:
    """A seed drawn from torch's CPU generator, so that ``torch.manual_seed`` determines it."""
    return int(torch.randint(2**63 - 1, (), device="cpu").item())


def fresh_seed() -> int:
    """A seed from the operating system."""
    return secrets.randbits(63)


CPU = torch.device("cpu")


def seed_streams(seed: int, device: torch.device = CPU) -> None:
    """Seed the host streams and the stream of ``device``."""
    seed_host_streams(seed)
    _seed_device(device, seed)


def seed_host_streams(seed: int) -> None:
    """Seed the streams of Python, NumPy and torch's CPU generator."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


HostState = tuple[Any, ...]


def get_host_state() -> HostState:
    """The states of the host streams."""
    python, numpy, torchs = STREAMS
    return python.get(), numpy.get(), torchs.get()


def is_host_state(state: HostState) -> bool:
    """Whether nothing was drawn from the host streams since ``get_host_state`` returned that."""
    python, numpy, torchs = STREAMS
    return python.is_at(state[0]) and numpy.is_at(state[1]) and torchs.is_at(state[2])


def set_host_state(state: HostState) -> None:
    """Restore what ``get_host_state`` returned."""
    for stream, its_state in zip(STREAMS, state, strict=True):
        stream.set(its_state)


def capture_streams(device: torch.device = CPU) -> dict[str, Any]:
    """The state of the host streams and of the stream of ``device``, for a checkpoint.

    Returns:
        tensors and plain types. ``"device"`` is the type of the device, without its index, and
        ``"devices"`` has its state as the only item.
    """
    state = {**_host_state_dict(get_host_state()), "devices": []}
    if device.type == "cpu":
        return state
    module = _module_with_stream(device)
    if module is not None:
        args = () if device.type == "mps" else (device,)
        state["devices"] = [module.get_rng_state(*args)]
    return {**state, "device": device.type}


def restore_streams(state: dict[str, Any], device: torch.device = CPU) -> None:
    """Restore what ``capture_streams`` returned, also to a device of another index.

    A device of another type than the saved one is seeded from the saved host stream.
    """
    set_host_state(_host_state(state))
    module = _module_with_stream(device)
    if module is None:
        return
    saved = state["devices"]
    if kind_of_streams(state) != device.type or not saved:
        _seed_device(device, derive_seed("device", state["torch"].cpu().numpy().tobytes().hex()))
        return
    # fitkit 0.1 saved every CUDA device by its index
    device_state = saved[min(device.index or 0, len(saved) - 1)].cpu()
    module.set_rng_state(device_state, *(() if device.type == "mps" else (device,)))


def kind_of_streams(state: dict[str, Any]) -> str:
    """The type of the device on which ``state`` was captured."""
    default = "cuda" if state["devices"] else "cpu"  # fitkit 0.1 did not save it
    return str(state.get("device", default))


def _module_with_stream(device: torch.device) -> Any:
    """The torch module of ``device`` (such as ``torch.cuda``) if that has its own stream."""
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


def _host_state_dict(state: HostState) -> dict[str, Any]:
    return {stream.name: stream.as_saved(one) for stream, one in zip(STREAMS, state, strict=True)}


def _host_state(state: dict[str, Any]) -> HostState:
    return tuple(stream.of_saved(state[stream.name]) for stream in STREAMS)


@contextmanager
def seeded_streams(seed: int, device: torch.device) -> Iterator[None]:
    """Inside ``with``, the streams of the host and of ``device`` start from ``seed``."""
    outside = capture_streams(device)
    try:
        seed_streams(seed, device)
        yield
    finally:
        restore_streams(outside, device)


class IsolatedStreams:
    """Private host streams that replace those of the process inside ``with``.

    They start from ``seed`` and continue at the next ``with``; draws inside do not change the
    streams outside.
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
        """The state of the private streams; empty before the first ``with``."""
        return {} if self._inner is None else _host_state_dict(self._inner)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the private streams."""
        self._inner = _host_state(state_dict) if state_dict else None


class Seeds:
    """The seed that the user gave, and the seeds that follow from it.

    Attributes:
        given: the user's seed; ``None``: torch's global generator decides.
        num_draws: how often samples were drawn (``next_draw``).
    """

    def __init__(self, given: int | None) -> None:
        self.start_from(given)

    def start_from(self, given: int | None) -> None:
        """Replace the seed, for the model as for the data."""
        self.given = given
        self._data = given
        self.num_draws = 0

    @property
    def data(self) -> int:
        """The seed of data order and augmentation; drawn at its first use if none was given."""
        if self._data is None:
            self._data = draw_seed()
        return self._data

    def set_data(self, seed: int | None) -> None:
        """Replace ``data`` alone."""
        self._data = seed

    def next_draw(self) -> int:
        """The seed for the next draw of samples: a function of ``data`` and ``num_draws``."""
        seed = derive_seed(self.data, "draw", self.num_draws)
        self.num_draws += 1
        return seed
