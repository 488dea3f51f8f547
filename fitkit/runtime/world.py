"""World: the processes of a run. The only file that speaks to the others.

Everything that has to be agreed between processes goes through a ``World``, so that code above it
never asks whether there are several. Every method that speaks is called by all of them, in the same
order, whatever data they have; ``fail`` is the exception, and how the others hear of it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from fitkit.core.errors import ConfigurationError, RankError
from fitkit.runtime import connections
from fitkit.runtime.fresh_store import fresh
from fitkit.runtime.launcher import Place, find_place

Result = TypeVar("Result")


class World:
    """One process: every reduction is the identity.

    Attributes:
        rank: index of this process, from 0.
        size: number of processes.
        local_rank: index of this process on its machine, from 0.
        is_broken: a process has failed, so nobody can be spoken to any more.
        group: torch's process group; ``None``: the one that torch takes for granted.
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
        sockets: the connections of the process group.
        group: the process group; ``None``: the one that torch takes for granted.
    """

    def __init__(
        self, store: Any, place: Place, sockets: Mapping[int, str], group: Any = None
    ) -> None:
        self.rank, self.size, self.local_rank = place.rank, place.size, place.local_rank
        self.group = group
        self._place = place
        self._store = store
        self._sockets = dict(sockets)
        self._beside: Processes | None = None

    def sum(self, sums: Tensor) -> Tensor:
        """The elementwise sum over the processes, the same bits on each."""
        total = sums.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def largest(self, values: list[int]) -> list[int]:
        """The elementwise maximum over the processes."""
        largest = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return largest.tolist()

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes by rank on the main one; ``None`` on the others."""
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, group=self.group)
        return values

    def gather_all(self, value: Any) -> list[Any]:
        """The values of all processes by rank, on all."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value of the process ``source``, on all."""
        values = [value]
        dist.broadcast_object_list(values, source, group=self.group)
        return values[0]

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` the values that they have on the main process."""
        for tensor in tensors:
            dist.broadcast(tensor, 0, group=self.group)

    def beside(self) -> Processes:
        """The same processes in a group of their own, which is made once."""
        if self._beside is None:
            before = connections.opened()
            group = dist.new_group(backend="gloo")
            opened = _opened_since(before)
            self._beside = Processes(self._store, self._place, opened, group)
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
        if isinstance(error, RankError):
            return error
        try:
            own = f"{self.rank} {_described(error)}"
            first = self._store.compare_set(_FAILURE, "", own).decode()
        except RuntimeError:  # the store went with the launcher
            return error
        connections.shut_down(self._sockets)
        rank, _, told = first.partition(" ")
        return error if int(rank) == self.rank else RankError(int(rank), told)


_FAILURE = "fitkit/failure"
_joined: list[Processes] = []


def find_world(use_distributed: bool | None, environment: Mapping[str, str] = os.environ) -> World:
    """The world that the launcher's environment describes; its process group is made once.

    Args:
        use_distributed: ``None``: as the environment says; ``True``: there must be a launcher;
            ``False``: one process whatever it says.
        environment: variables of the launcher: torchrun's, or those of Slurm's ``srun``.

    Raises:
        ConfigurationError: what is asked for cannot be read, or there is no launcher.
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
        _joined.append(_join(place))
    return _joined[0]


def _join(place: Place) -> Processes:
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    if dist.is_initialized():
        store: Any = dist.distributed_c10d._get_default_store()  # noqa: SLF001  no public form
        return Processes(store, place, {})
    # CPU tensors, such as those that agreements are made with, go through gloo
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = next(iter(rendezvous(place.url, place.rank, place.size)))
    store = fresh(store, rank, size)
    before = connections.opened()
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    atexit.register(_leave)
    return Processes(store, place, _opened_since(before))


def _opened_since(before: Mapping[int, str]) -> dict[int, str]:
    return {one: name for one, name in connections.opened().items() if before.get(one) != name}


def _leave() -> None:
    if dist.is_initialized():
        _joined.clear()
        gc.collect()  # what still holds the group would end its threads too late
        dist.destroy_process_group()
        gc.collect()


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def on_rank(
    rank: int, *, barrier: bool = False
) -> Callable[[Callable[..., Result]], Callable[..., Result | None]]:
    """Run a function on one process only; on the others it returns ``None``.

    Args:
        rank: the process.
        barrier: let the others wait until it is done; if it fails there, it fails on all.

    Raises:
        RankError: with ``barrier``, on the others, if it failed.

    >>> @on_rank(0)
    ... def say():
    ...     return "hello"
    >>> say()
    'hello'
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result | None]:
        @functools.wraps(function)
        def on_one(*args: Any, **kwargs: Any) -> Result | None:
            world = _joined[0] if _joined else find_world(None)
            if barrier:
                return world.run_on(rank, functools.partial(function, *args, **kwargs))
            if world.rank == rank or world.size == 1:
                return function(*args, **kwargs)
            return None

        return on_one

    return decorate
