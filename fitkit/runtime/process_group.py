"""torch's process groups: which backends they have, their time-out, and how they are ended.

torch offers some of this in private functions only; those used here exist from 2.6 to 2.13.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fitkit.core.errors import ConfigurationError, listed

# Backends whose collectives the host waits for itself: their end does not depend on a kernel.
_OF_THE_HOST = ("gloo", "mpi")
_WITH_TIMEOUT = ("gloo", "nccl")


def backends(group: Any = None) -> dict[str, str]:
    """The backend of each type of device, such as ``{"cpu": "gloo", "cuda": "nccl"}``.

    Args:
        group: ``None``: the default group.
    """
    pairs = (pair.partition(":") for pair in dist.get_backend_config(group).split(","))
    return {device: backend for device, _, backend in pairs}


def has_device_backend(group: Any = None) -> bool:
    """Whether collectives of ``group`` run as kernels of a device, as those of NCCL do."""
    return any(_runs_on_device(*pair) for pair in backends(group).items())


def _runs_on_device(device: str, backend: str) -> bool:
    return device != "cpu" and backend not in _OF_THE_HOST


def default_store() -> Any:
    """The store of the default group."""
    return dist.distributed_c10d._get_default_store()  # noqa: SLF001  no public form


def new_host_group(timeout: timedelta | None) -> Any:
    """All ranks in a further group, for host tensors and objects; every rank has to call it."""
    return dist.new_group(backend="gloo", timeout=timeout)


def set_timeout(timeout: timedelta, group: Any = None) -> None:
    """Let collectives of ``group`` that begin from now on fail after ``timeout``.

    Raises:
        ConfigurationError: torch cannot change it for one of the group's backends.
    """
    fixed = set(backends(group).values()) - set(_WITH_TIMEOUT)
    if fixed:
        raise ConfigurationError(
            f"timeout={timeout.total_seconds():g} cannot be applied to the process group that the "
            f"program has made: torch changes the time-out of {listed(_WITH_TIMEOUT)} only, and "
            f"this group uses {listed(fixed)}. Pass timeout= to init_process_group instead."
        )
    dist.distributed_c10d._set_pg_timeout(timeout, group)  # noqa: SLF001  no public form


def abort_device_backends() -> None:
    """End the communicators of all groups on devices; who waits for their kernels goes on.

    Every later collective on them raises. The groups themselves stay registered: torch's own
    ``_abort_process_group`` forgets them, also those that the program has made.
    """
    if not dist.is_initialized():
        return
    names = dist.distributed_c10d._world.pg_names  # noqa: SLF001  no public form
    found: list[Any] = []
    for group in sorted(names, key=names.__getitem__, reverse=True):  # the order of torch
        for device, backend in backends(group).items():
            if _runs_on_device(device, backend):
                found.append(_implementation(group, device))
    # NCCL: communicators that are aborted one by one could wait for each other
    # (https://github.com/pytorch/pytorch/issues/119797)
    bracket = next((one for one in found if hasattr(one, "_group_start")), None)
    if bracket is not None:
        bracket._group_start()  # noqa: SLF001  no public form
    for one in found:
        one.abort()
    if bracket is not None:
        bracket._group_end()  # noqa: SLF001  no public form


def _implementation(group: Any, device: str) -> Any:
    try:
        backend = group._get_backend(torch.device(device))  # noqa: SLF001  no public form
    except RuntimeError:  # a group that is written in Python is its own backend
        return group
    return getattr(backend, "wrapped_pg", backend)  # wrapped: TORCH_DISTRIBUTED_DEBUG=DETAIL


def destroy(group: Any) -> None:
    """Destroy a group, unless the program has destroyed the default group, and all with it."""
    if group in dist.distributed_c10d._world.pg_map:  # noqa: SLF001  no public form
        dist.destroy_process_group(group)
