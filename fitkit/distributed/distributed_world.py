"""DistributedWorld: several ranks, connected by torch's process group."""
# ruff: noqa: D102  the methods are documented in World

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parameter import is_lazy

from fitkit.core.errors import ConfigurationError, RankError
from fitkit.distributed import group_sockets, process_group
from fitkit.distributed.failure_watch import FailureWatch
from fitkit.distributed.rank_info import RankInfo
from fitkit.distributed.world import Result, World

_FAILURE = "failure"
_HOST = torch.device("cpu")


class DistributedWorld(World):
    """The ranks of a run that a launcher has started.

    Args:
        store: where the first failure is published.
        info: this rank among the others.
        sockets: the connections of the group for host tensors.
        group: that group; ``None``: the default group.
        timeout: of later groups; ``None``: torch's default.
        watch: detects failures of other ranks while this one waits for a kernel.
    """

    def __init__(
        self,
        store: Any,
        info: RankInfo,
        sockets: Mapping[int, str],
        group: Any = None,
        timeout: timedelta | None = None,
        watch: FailureWatch | None = None,
    ) -> None:
        self.rank, self.size, self.local_rank = info.rank, info.size, info.local_rank
        self.group = group
        self._info, self._store, self._sockets = info, store, dict(sockets)
        self._timeout, self._watch = timeout, watch
        self._side_group: DistributedWorld | None = None
        self._subgroups: list[Any] = []

    def group_for(self, device: torch.device) -> Any:
        """As in ``World``; raises the ``RankError`` of a failure that was detected meanwhile."""
        if self._watch is not None and self._watch.failure is not None:
            raise self._watch.failure
        return super().group_for(device)

    def sum(self, sums: Tensor) -> Tensor:
        total = sums.clone()
        self.sum_in_place(total)
        return total

    def sum_in_place(self, tensor: Tensor) -> None:
        dist.all_reduce(tensor, group=self.group_for(tensor.device))

    def largest(self, values: list[int]) -> list[int]:
        largest = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group_for(_HOST))
        return largest.tolist()

    def gather(self, value: Any) -> list[Any] | None:
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, group=self.group_for(_HOST))
        return values

    def gather_all(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group_for(_HOST))
        return values

    def broadcast(self, value: Any, source: int = 0) -> Any:
        values = [value]
        dist.broadcast_object_list(values, source, group=self.group_for(_HOST))
        return values[0]

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if is_lazy(tensor):
                raise ConfigurationError(
                    "several ranks cannot share a module with lazy parameters that have no values "
                    "yet: call it on one batch, on the CPU, and pass it as a ready module."
                )
            dist.broadcast(tensor, 0, group=self.group_for(tensor.device))

    def set_timeout(self, timeout: timedelta) -> None:
        process_group.set_timeout(timeout)
        if self.group is not None:
            process_group.set_timeout(timeout, self.group)
        if self._side_group is not None:
            self._side_group.set_timeout(timeout)
        for group in self._subgroups:
            process_group.set_timeout(timeout, group)
        self._timeout = timeout

    def subgroup(self, ranks: list[list[int]]) -> Any:
        before = group_sockets.open_sockets()
        groups = [process_group.new_host_group(self._timeout, row) for row in ranks]
        self._sockets.update(group_sockets.sockets_opened_since(before))
        (own,) = (group for group, row in zip(groups, ranks, strict=True) if self.rank in row)
        self._subgroups.append(own)
        return own

    def side_group(self) -> DistributedWorld:
        if self._side_group is None:
            before = group_sockets.open_sockets()
            group = process_group.new_host_group(self._timeout)
            opened = group_sockets.sockets_opened_since(before)
            self._side_group = DistributedWorld(
                self._store, self._info, opened, group, self._timeout, self._watch
            )
            self._sockets.update(opened)
        return self._side_group

    def run_on(self, rank: int, action: Callable[[], Result]) -> Result | None:
        result, error = None, None
        if self.rank == rank:
            try:
                result = action()
            except BaseException as caught:  # noqa: BLE001  raised below, after the broadcast
                error = caught
        message = self.broadcast(None if error is None else _describe(error), rank)
        if error is not None:
            raise error
        if message is not None:
            raise RankError(rank, message)
        return result

    def fail(self, error: BaseException) -> BaseException:
        """Publish the failure and close the connections, which ends collectives of other ranks.

        They learn of it within milliseconds instead of after the timeout.
        """
        self.is_broken = True
        if self._watch is not None:
            self._watch.stop()
        if not isinstance(error, RankError):
            error = self._first_failure(error)
            group_sockets.shut_down(self._sockets)
        if self._watch is not None:
            self._watch.abort()  # else a later copy from the device would wait for the others
        return error

    def _first_failure(self, error: BaseException) -> BaseException:
        """``error``, unless another rank published a failure first."""
        message = f"{self.rank} {_describe(error)}"
        try:
            first = self._store.compare_set(_FAILURE, "", message).decode()
        except RuntimeError:  # the store ended with the launcher
            return error
        return _parse_failure(first, self.rank) or error

    def leave(self, *, is_ours: bool) -> None:
        """Destroy the process groups at the end of the program.

        Args:
            is_ours: fitkit created the default group; else it destroys only its additional groups.
        """
        if self._watch is not None:
            self._watch.stop()
            if self.is_broken or self._watch.failure is not None:
                self._watch.abort()  # destroying NCCL's communicators would wait for the others
        if dist.is_initialized():
            if is_ours:
                dist.destroy_process_group()
            else:
                for group in self._subgroups:
                    process_group.destroy(group)
                for world in (self._side_group, self):
                    if world is not None and world.group is not None:
                        process_group.destroy(world.group)
                        world.group = None
        # an object that still holds this world must not keep the threads of its groups alive
        self.group = self._side_group = None
        self._subgroups.clear()
        gc.collect()


def failure_of_another(store: Any, rank: int) -> RankError | None:
    """The first published failure if another rank than ``rank`` has failed; does not wait."""
    if not store.check([_FAILURE]):
        return None
    return _parse_failure(store.get(_FAILURE).decode(), rank)


def _parse_failure(published: str, own_rank: int) -> RankError | None:
    rank, _, message = published.partition(" ")
    return None if int(rank) == own_rank else RankError(int(rank), message)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
