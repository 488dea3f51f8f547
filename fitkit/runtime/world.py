"""World: the processes of a run. The only file that speaks to the others.

Everything that has to be agreed between processes goes through a ``World``, so that code above it
never asks whether there are several. Every method that speaks is called by all of them, in the same
order, whatever data they have; ``fail`` is the exception, and how the others hear of it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fitkit.core.errors import RankError
from fitkit.runtime import connections, process_group
from fitkit.runtime.failure_watch import FailureWatch
from fitkit.runtime.launcher import Place

Result = TypeVar("Result")

_FAILURE = "failure"
_HOST = torch.device("cpu")


class World:
    """One process: every reduction is the identity.

    Attributes:
        rank: index of this process, from 0.
        size: number of processes.
        local_rank: index of this process on its machine, from 0.
        is_broken: a process has failed, so nobody can be spoken to any more.
        group: the process group for host tensors and objects; ``None``: torch's default group.
    """

    group: Any = None
    rank = 0
    size = 1
    local_rank = 0
    is_broken = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, sums: Tensor) -> Tensor:
        """The elementwise sum over the processes, the same bits on each."""
        return sums

    def largest(self, values: list[int]) -> list[int]:
        """The elementwise maximum over the processes."""
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes by rank on the main one; ``None`` on the others."""
        return [value]

    def gather_all(self, value: Any) -> list[Any]:
        """The values of all processes by rank, on all."""
        return [value]

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value of the process ``source``, on all."""
        return value

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` the values that they have on the main process."""

    def sum_in_place(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its elementwise sum over the processes.

        The same bits on each; the tensor may be on any device.
        """

    def group_for(self, device: torch.device) -> Any:
        """The process group that takes tensors on ``device``; ``None``: torch's default group."""
        return self.group if device.type == "cpu" else None

    def set_timeout(self, timeout: timedelta) -> None:
        """Let collectives that begin from now on fail after ``timeout``.

        Raises:
            ConfigurationError: torch cannot change it for this process group.
        """

    def beside(self) -> World:
        """The same processes on connections of their own, for a thread beside the program's.

        All have to call it when the first does.
        """
        return self

    def on_main(self, action: Callable[[], Result]) -> Result | None:
        """``run_on`` the main process."""
        return self.run_on(0, action)

    def run_on(self, rank: int, action: Callable[[], Result]) -> Result | None:
        """Run ``action`` on one process, while the others wait; they get ``None``.

        Raises:
            RankError: on the others, if it failed there.
        """
        return action()

    def fail(self, error: BaseException) -> BaseException:
        """This process cannot go on: let the others know, so that nobody waits for it.

        Returns:
            the error to be told: ``error``, or that of the process that failed first.
        """
        return error


class Processes(World):
    """Several processes, in torch's process group.

    Args:
        store: where the first failure is written for all to see.
        place: this process among the others.
        sockets: the connections of the group for host tensors.
        group: that group; ``None``: the default group takes them.
        timeout: that of groups to come; ``None``: torch's default.
        watch: hears of failures where a device's kernels wait for other processes.
    """

    def __init__(
        self,
        store: Any,
        place: Place,
        sockets: Mapping[int, str],
        group: Any = None,
        timeout: timedelta | None = None,
        watch: FailureWatch | None = None,
    ) -> None:
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank
        self.group = group
        self._place = place
        self._store = store
        self._sockets = dict(sockets)
        self._timeout = timeout
        self._watch = watch
        self._beside: Processes | None = None

    def group_for(self, device: torch.device) -> Any:
        """The process group that takes tensors on ``device``; ``None``: torch's default group.

        Raises:
            RankError: another process has failed, as was heard meanwhile.
        """
        if self._watch is not None and self._watch.failure is not None:
            raise self._watch.failure
        return super().group_for(device)

    def sum(self, sums: Tensor) -> Tensor:
        """The elementwise sum over the processes, the same bits on each."""
        total = sums.clone()
        self.sum_in_place(total)
        return total

    def sum_in_place(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its elementwise sum over the processes."""
        dist.all_reduce(tensor, group=self.group_for(tensor.device))

    def largest(self, values: list[int]) -> list[int]:
        """The elementwise maximum over the processes."""
        largest = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group_for(_HOST))
        return largest.tolist()

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes by rank on the main one; ``None`` on the others."""
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, group=self.group_for(_HOST))
        return values

    def gather_all(self, value: Any) -> list[Any]:
        """The values of all processes by rank, on all."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group_for(_HOST))
        return values

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value of the process ``source``, on all."""
        values = [value]
        dist.broadcast_object_list(values, source, group=self.group_for(_HOST))
        return values[0]

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` the values that they have on the main process."""
        for tensor in tensors:
            dist.broadcast(tensor, 0, group=self.group_for(tensor.device))

    def set_timeout(self, timeout: timedelta) -> None:
        """Let collectives that begin from now on fail after ``timeout``.

        Raises:
            ConfigurationError: torch cannot change it for this process group.
        """
        process_group.set_timeout(timeout)
        if self.group is not None:
            process_group.set_timeout(timeout, self.group)
        if self._beside is not None:
            self._beside.set_timeout(timeout)
        self._timeout = timeout

    def beside(self) -> Processes:
        """The same processes in a group of their own, which is made once."""
        if self._beside is None:
            before = connections.opened()
            group = process_group.new_host_group(self._timeout)
            opened = connections.opened_since(before)
            self._beside = Processes(
                self._store, self._place, opened, group, self._timeout, self._watch
            )
            self._sockets.update(opened)
        return self._beside

    def run_on(self, rank: int, action: Callable[[], Result]) -> Result | None:
        """Run ``action`` on one process, while the others wait; they get ``None``.

        Raises:
            RankError: on the others, if it failed there.
        """
        result, error = None, None
        if self.rank == rank:
            try:
                result = action()
            except BaseException as caught:  # noqa: BLE001  raised below, when all know of it
                error = caught
        told = self.broadcast(None if error is None else _described(error), rank)
        if error is not None:
            raise error
        if told is not None:
            raise RankError(rank, told)
        return result

    def fail(self, error: BaseException) -> BaseException:
        """Write the failure down for all to see, and close the connections.

        Whoever waits for this process in a collective then hears of it at once.
        """
        self.is_broken = True
        if self._watch is not None:
            self._watch.stop()
        if not isinstance(error, RankError):
            error = self._first_failure(error)
            connections.shut_down(self._sockets)
        if self._watch is not None:
            self._watch.abort()  # whoever copies from the device now would wait for the others
        return error

    def _first_failure(self, error: BaseException) -> BaseException:
        """``error``, unless another process failed first."""
        own = f"{self.rank} {_described(error)}"
        try:
            first = self._store.compare_set(_FAILURE, "", own).decode()
        except RuntimeError:  # the store went with the launcher
            return error
        rank, _, told = first.partition(" ")
        return error if int(rank) == self.rank else RankError(int(rank), told)

    def leave(self, *, is_ours: bool) -> None:
        """Leave the process groups, when the program ends.

        Args:
            is_ours: the default group is fitkit's, to be destroyed; else those beside it are.
        """
        if self._watch is not None:
            self._watch.stop()
            if self.is_broken or self._watch.failure is not None:
                self._watch.abort()  # destroying NCCL's communicators would wait for the others
        if dist.is_initialized():
            if is_ours:
                dist.destroy_process_group()
            else:
                self._destroy_own_groups()
        # who still holds this world must not hold groups: their threads would end too late
        self.group = self._beside = None
        gc.collect()

    def _destroy_own_groups(self) -> None:
        for world in (self._beside, self):
            if world is not None and world.group is not None:
                process_group.destroy(world.group)
                world.group = None


def failure_of_another(store: Any, rank: int) -> RankError | None:
    """The first failure, if another rank than ``rank`` has written one; does not wait."""
    if not store.check([_FAILURE]):
        return None
    first, _, told = store.get(_FAILURE).decode().partition(" ")
    return None if int(first) == rank else RankError(int(first), told)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
