"""Joining the other ranks: torch's process group, made or found, and what fitkit puts beside it."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fitkit.core.errors import ConfigurationError
from fitkit.runtime import connections, process_group
from fitkit.runtime.failure_watch import FailureWatch
from fitkit.runtime.fresh_store import fresh_name, part_of, reconnected, without_prefix
from fitkit.runtime.launcher import Place, find_place
from fitkit.runtime.world import Processes, World, failure_of_another

_joined: list[Processes] = []


def find_world(
    use_distributed: bool | None,
    environment: Mapping[str, str] = os.environ,
    *,
    timeout: timedelta | None = None,
) -> World:
    """The world that the launcher's environment describes; its process group is made once.

    Args:
        use_distributed: ``None``: as the environment says; ``True``: there must be a launcher;
            ``False``: one process whatever it says.
        environment: variables of the launcher: torchrun's, or those of Slurm's ``srun``.
        timeout: after which a collective fails; ``None``: as it is, or else torch's default.

    Raises:
        ConfigurationError: what is asked for cannot be read, there is no launcher, or the time-out
            of a process group that the program has made cannot be changed.
    """
    if use_distributed is not None and not isinstance(use_distributed, bool):
        raise ConfigurationError(
            f"use_distributed must be True, False or None, received {use_distributed!r}."
        )
    if use_distributed is False:
        return World()
    place = find_place(environment)
    if use_distributed and place is None:
        raise ConfigurationError(
            "use_distributed=True, but no launcher has started this process: start the script with "
            "torchrun --nproc-per-node=N or srun, or leave use_distributed out."
        )
    if place is None or place.size == 1:
        return World()
    if not _joined:
        _joined.append(_join(place, timeout))
    elif timeout is not None:
        _joined[0].set_timeout(timeout)
    return _joined[0]


def _join(place: Place, timeout: timedelta | None) -> Processes:
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    is_ours = not dist.is_initialized()
    store = without_prefix(_meet(place, timeout) if is_ours else process_group.default_store())
    # host tensors, such as those that agreements are made with, go through gloo
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    is_watched = "nccl" in backend if is_ours else process_group.has_device_backend()
    seen = reconnected(store) if is_watched else None
    # When rank 0 returns from here, all ranks have connected: what is opened from now on belongs
    # to the group, and can be closed without the store.
    name = fresh_name(store, place.rank, place.size)
    store, before, group = part_of(store, name), connections.opened(), None
    if is_ours:
        rank, size = place.rank, place.size
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    else:
        if timeout is not None:
            process_group.set_timeout(timeout)
        # The program's group may be NCCL's alone, which takes no host tensors. If it does take
        # them: only connections that are ours can be closed when a process fails.
        group = process_group.new_host_group(timeout)
    opened, watch = connections.opened_since(before), None
    if seen is not None:
        find = partial(failure_of_another, part_of(seen, name), place.rank)
        watch = FailureWatch(find, process_group.abort_device_backends)
    world = Processes(store, place, opened, group, timeout, watch)
    atexit.register(_leave, world, is_ours=is_ours)
    return world


def _meet(place: Place, timeout: timedelta | None) -> Any:
    """The launcher's store, or one that rank 0 holds."""
    waiting: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    store, _, _ = next(iter(rendezvous(place.url, place.rank, place.size, **waiting)))
    if timeout is not None:
        store.set_timeout(timeout)
    return store


def _leave(world: Processes, *, is_ours: bool) -> None:
    _joined.clear()
    world.leave(is_ours=is_ours)


def current_world() -> World:
    """The world that was joined, or else the one that the launcher's environment describes."""
    return _joined[0] if _joined else find_world(None)
