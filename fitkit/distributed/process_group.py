"""torch's process groups: backends, timeouts, aborting and destroying.

Some of this has no public form in torch; the private functions used here exist from 2.11 to 2.14.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fitkit.core.errors import ConfigurationError, listed
from fitkit.distributed import group_sockets

# Their collectives run on the host, not as kernels of a device.
_HOST_BACKENDS = ("gloo", "mpi")
_WITH_TIMEOUT = ("gloo", "nccl")


def backends(group: Any = None) -> dict[str, str]:
    """The backend of each device type, such as ``{"cpu": "gloo", "cuda": "nccl"}``."""
    pairs = (pair.partition(":") for pair in dist.get_backend_config(group).split(","))
    return {device: backend for device, _, backend in pairs}


def _runs_on_device(device: str, backend: str) -> bool:
    return device != "cpu" and backend not in _HOST_BACKENDS


def default_store() -> Any:
    """The store of the default group, or ``ConfigurationError`` if it has none."""
    store = dist.distributed_c10d._get_default_store()  # noqa: SLF001  no public form
    if store is None:
        raise ConfigurationError(
            f"the process group that the program created ({listed(backends().values())}) has no "
            f"store, which fitkit needs to tell ranks of failures: create it with gloo or nccl."
        )
    return store


def new_host_group(
    timeout: timedelta | None, sockets: dict[int, str], ranks: list[int] | None = None
) -> Any:
    """A new group for host tensors and objects, of all ranks or some; every rank must call it.

    Args:
        timeout: of its collectives; ``None``: torch's default.
        sockets: gets the sockets that it opens.
        ranks: its ranks; ``None``: all.
    """
    before = group_sockets.open_sockets()
    group = dist.new_group(ranks, backend="gloo", timeout=timeout)
    sockets.update(group_sockets.sockets_opened_since(before))
    return group


def sequence_numbers(group: Any = None) -> tuple[int, ...]:
    """How many collectives this rank has begun in the default group and in ``group``.

    Those of backends that do not count are left out.
    """
    groups = [dist.group.WORLD] if group is None else [dist.group.WORLD, group]
    numbers: list[int] = []
    pairs = [(one, device) for one in groups for device in backends(one)]
    for pair in pairs:
        with suppress(RuntimeError):
            backend = _implementation(*pair)
            numbers.append(backend._get_sequence_number_for_group())  # noqa: SLF001  no public form
    return tuple(numbers)


def counter(group: Any = None) -> Callable[[], int] | None:
    """Counts the collectives that this rank has begun in ``group``, if its backend does."""
    backend = _implementation(dist.group.WORLD if group is None else group, "cpu")
    count: Callable[[], int] = backend._get_sequence_number_for_group  # noqa: SLF001  no public form
    try:
        count()
    except RuntimeError:
        return None
    return count


def set_timeout(timeout: timedelta, group: Any = None) -> None:
    """Set the timeout of later collectives, or raise ``ConfigurationError`` if torch cannot."""
    fixed = set(backends(group).values()) - set(_WITH_TIMEOUT)
    if fixed:
        raise ConfigurationError(
            f"timeout={timeout.total_seconds():g} cannot be applied to the process group that the "
            f"program created: torch changes the timeout of {listed(_WITH_TIMEOUT)} only, and "
            f"this group uses {listed(fixed)}. Pass timeout= to init_process_group instead."
        )
    public = getattr(dist, "set_timeout", None)  # torch 2.14
    (public or dist.distributed_c10d._set_pg_timeout)(timeout, group)  # noqa: SLF001


def is_raised_by_group(error: BaseException) -> bool:
    """Whether a collective raised it, as because a connection broke or the timeout is over."""
    # gloo raises a plain RuntimeError, which begins with the path of its source
    return isinstance(error, dist.DistError) or "gloo/" in str(error)


def abort_device_backends() -> None:
    """Abort the communicators of all groups on devices; waits for their kernels return.

    Later collectives on them raise. The groups stay registered, unlike with torch's
    ``_abort_process_group``, which also forgets those that the program created.
    """
    if not dist.is_initialized():
        return
    names = dist.distributed_c10d._world.pg_names  # noqa: SLF001  no public form
    communicators: list[Any] = []
    for group in sorted(names, key=names.__getitem__, reverse=True):  # in the order that torch uses
        for device, backend in backends(group).items():
            if _runs_on_device(device, backend):
                communicators.append(_implementation(group, device))
    # NCCL communicators that are aborted one by one could wait for each other
    # (https://github.com/pytorch/pytorch/issues/119797)
    nccl = next((c for c in communicators if hasattr(c, "_group_start")), None)
    if nccl is not None:
        nccl._group_start()  # noqa: SLF001  no public form
    for communicator in communicators:
        communicator.abort()
    if nccl is not None:
        nccl._group_end()  # noqa: SLF001  no public form


def _implementation(group: Any, device: str) -> Any:
    try:
        backend = group._get_backend(torch.device(device))  # noqa: SLF001  no public form
    except RuntimeError:  # a group written in Python is its own backend
        return group
    return getattr(backend, "wrapped_pg", backend)  # TORCH_DISTRIBUTED_DEBUG=DETAIL wraps it


def destroy(group: Any) -> None:
    """Destroy a group, unless it was destroyed together with the default group."""
    if group in dist.distributed_c10d._world.pg_map:  # noqa: SLF001  no public form
        dist.destroy_process_group(group)
