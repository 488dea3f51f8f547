"""World: the ranks of a run. All communication between ranks goes through it.

Code above never asks how many ranks there are. Every rank calls each communicating method in the
same order, whatever data it has; the exception is ``fail``, by which the others learn of an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class World:
    """A single rank, for which every reduction is the identity; base of ``DistributedWorld``.

    Attributes:
        rank: index of this rank, from 0.
        size: number of ranks.
        local_rank: index of this rank on its machine, from 0.
        is_broken: a rank has failed, so communication is no longer possible.
        group: the process group for host tensors and objects; ``None``: torch's default group.
    """

    group: Any = None
    rank = 0
    size = 1
    local_rank = 0
    is_broken = False

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and shows progress."""
        return self.rank == 0

    def sum(self, sums: Tensor) -> Tensor:
        """The elementwise sum over the ranks, the same bits on each."""
        return sums

    def begin_sum(self, sums: Tensor) -> Callable[[], Tensor]:
        """As ``sum``, of host tensors, while the caller goes on; the result waits for the end."""
        total = self.sum(sums)
        return lambda: total

    def largest(self, values: list[int]) -> list[int]:
        """The elementwise maximum over the ranks."""
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks on rank 0; ``None`` on the others."""
        return [value]

    def gather_all(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""
        return [value]

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value of rank ``source``, on every rank."""
        return value

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with their values on rank 0."""

    def sum_in_place(self, tensor: Tensor) -> None:
        """All-reduce a contiguous tensor on any device; the same bits on each rank."""

    def group_for(self, device: torch.device) -> Any:
        """The process group for tensors on ``device``; ``None``: torch's default group."""
        return self.group if device.type == "cpu" else None

    def set_timeout(self, timeout: timedelta) -> None:
        """Set the timeout of later collectives, or raise ``ConfigurationError`` if torch cannot."""

    def side_group(self) -> World:
        """The same ranks in another process group, for a second thread; all ranks must call it.

        Collectives of two threads in one group would mix.
        """
        return self

    def call(self, verb: str, *, meets: bool = True) -> AbstractContextManager[None]:
        """Inside ``with`` all ranks call ``verb``: none waits for one that raised an error.

        If all ranks raise, as for a wrong argument, each raises its own error and they may go on.
        Otherwise the first failure is that of all, as in ``fail``.

        Args:
            verb: the name of what is called.
            meets: the ranks wait for each other first, so that a rank which calls it alone, or
                another verb, is found.

        Raises:
            RankError: another rank failed, now or before.
            ConfigurationError: this is a function of ``on_rank``, which only some ranks run.
        """
        return nullcontext()

    def locate(self, position: Callable[[], str]) -> None:
        """Describe where the run is with ``position``, for errors of ranks that wait for this."""

    def in_step(self) -> AbstractContextManager[None]:
        """Inside ``with`` this rank computes a training step: it writes no files."""
        return nullcontext()

    def listening(self, signals: Iterable[int]) -> AbstractContextManager[None]:
        """Inside ``with`` these signals end this rank also while it waits for others in vain."""
        return nullcontext()

    def subgroup(self, ranks: list[list[int]]) -> Any:
        """A group for host tensors of this rank and those in its row of ``ranks``.

        All ranks must call it with the same rows, of which each rank is in one.
        """
        raise NotImplementedError  # a single rank has no groups

    def run_on(self, ranks: int | Sequence[int], action: Callable[[], Result]) -> Result | None:
        """Run ``action`` on one or several ranks while the others wait; they get ``None``.

        Raises:
            RankError: on the other ranks, if it failed.
        """
        return action()

    def first_error(self, error: BaseException) -> BaseException:
        """The error to raise for one that this rank has raised.

        Returns:
            ``error``, if all ranks raise at this point, so that they may go on together; else what
            ``fail`` returns.
        """
        return error

    def fail(self, error: BaseException) -> BaseException:
        """Tell the other ranks that this one has failed, so that none waits for it.

        Returns:
            the error to raise: ``error``, or a ``RankError`` if another rank failed first and
            ``error`` may be a consequence of that.
        """
        return error
