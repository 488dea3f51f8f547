"""Joins the ranks of a run: creates or takes over torch's process group."""

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
from fitkit.distributed import group_sockets, process_group, rendezvous_store
from fitkit.distributed.activity import Activity
from fitkit.distributed.alone import is_alone
from fitkit.distributed.distributed_world import DistributedWorld
from fitkit.distributed.failure_watch import FailureWatch
from fitkit.distributed.hang_detector import HangDetector, end_process
from fitkit.distributed.limited_store import LimitedStore
from fitkit.distributed.rank_info import RankInfo, find_local_rank, find_rank_info
from fitkit.distributed.signal_bytes import SignalBytes
from fitkit.distributed.world import World

_POLLING_SECONDS = 0.5
_joined: list[DistributedWorld] = []


def join_world(
    use_distributed: bool | None,
    environment: Mapping[str, str] = os.environ,
    *,
    timeout: timedelta | None = None,
) -> World:
    """The ranks of torch's process group, or those that the launcher's environment describes.

    A group that the program, or Ray or Accelerate, has created says who the ranks are, whatever
    the environment says; else the environment does, and the group is created once. A function of
    ``on_rank`` gets a single rank: a handler that it creates is its own.

    Args:
        use_distributed: ``None``: as the group or the environment says; ``True``: one of them is
            required; ``False``: a single rank.
        environment: variables of the launcher (torchrun, ``mpirun`` or Slurm's ``srun``).
        timeout: of collectives; ``None``: unchanged, or torch's default for a new group.

    Raises:
        ConfigurationError: a variable or argument is invalid, a launcher is missing, or the timeout
            of a process group that the program created cannot be changed.
    """
    if use_distributed is not None and not isinstance(use_distributed, bool):
        raise ConfigurationError(
            f"use_distributed must be True, False or None, received {use_distributed!r}."
        )
    if use_distributed is False or is_alone():
        return World()
    info = _rank_in_group(environment) or find_rank_info(environment)
    if use_distributed and info is None:
        raise ConfigurationError(
            "use_distributed=True, but no launcher has started this process: start the script with "
            "torchrun --nproc-per-node=N, mpirun or srun, call init_process_group before, or leave "
            "use_distributed out."
        )
    if info is None or info.size == 1:
        return World()
    if _joined and not _joined[0].has_group():  # of an earlier run in this process
        _joined.pop().leave(is_ours=False)
    if not _joined:
        _joined.append(_join(info, timeout))
    elif timeout is not None:
        _joined[0].set_timeout(timeout)
    return _joined[0]


def current_world() -> World:
    """The joined world, or else the one that ``join_world`` joins."""
    return join_world(None)


def _rank_in_group(environment: Mapping[str, str]) -> RankInfo | None:
    """This rank in the process group that the program has created, if it has."""
    if not dist.is_initialized():
        return None
    rank = dist.get_rank()
    return RankInfo(rank, dist.get_world_size(), find_local_rank(environment, rank), "")


def _join(info: RankInfo, timeout: timedelta | None) -> DistributedWorld:
    if torch.cuda.is_available():
        torch.cuda.set_device(info.local_rank % torch.cuda.device_count())
    is_ours = not dist.is_initialized()
    store = _rendezvous(info, timeout) if is_ours else process_group.default_store()
    store = rendezvous_store.without_prefix(store)
    # host tensors, such as those of RankSync, go through gloo
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    watched_store = rendezvous_store.second_connection(store)
    # When rank 0 returns from here, all ranks have connected: sockets opened from now on belong to
    # the group, and can be closed without the store.
    prefix = rendezvous_store.agree_on_prefix(store, info.rank, info.size)
    store, group = rendezvous_store.with_prefix(store, prefix), None
    limited_store = LimitedStore(rendezvous_store.with_prefix(watched_store, prefix))
    sockets: dict[int, str] = {}
    if is_ours:
        before, rank, size = group_sockets.open_sockets(), info.rank, info.size
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        sockets.update(group_sockets.sockets_opened_since(before))
    else:
        if timeout is not None:
            process_group.set_timeout(timeout)
        # The program's group may only have NCCL, which takes no host tensors. Even if it has gloo:
        # only connections that fitkit opened may be closed when a rank fails.
        group = process_group.new_host_group(timeout, sockets)
    detector = HangDetector(
        limited_store,
        info.rank,
        info.size,
        Activity(process_group.counter(group)),
        SignalBytes(),
        is_served_by_main=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        is_connected=partial(group_sockets.are_open, sockets),
    )
    watch = _watch(detector, sockets)
    world = DistributedWorld(limited_store, info, sockets, group, timeout, watch, detector)
    atexit.register(_leave, world, is_ours=is_ours)
    return world


def _watch(detector: HangDetector, sockets: dict[int, str]) -> FailureWatch:
    abort, give_up = partial(_abort, sockets), partial(end_process, detector)
    return FailureWatch(detector.find_failure, abort, _POLLING_SECONDS, give_up)


def _abort(sockets: dict[int, str]) -> None:
    """End the collectives that this rank waits in."""
    group_sockets.shut_down(sockets)
    process_group.abort_device_backends()


def _rendezvous(info: RankInfo, timeout: timedelta | None) -> Any:
    """The store of the launcher, or one that rank 0 serves."""
    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    store, _, _ = next(iter(rendezvous(info.url, info.rank, info.size, **options)))
    if timeout is not None:
        store.set_timeout(timeout)
    return store


def _leave(world: DistributedWorld, *, is_ours: bool) -> None:
    _joined.clear()
    world.leave(is_ours=is_ours)
