"""DataWorld: the ranks that share out the batches, where others get the same ones."""
# ruff: noqa: D102  the methods are documented in World

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fitkit.distributed.world import World


class DataWorld(World):
    """Those of the ranks of ``world`` whose batches together are one global batch.

    With tensor parallelism several ranks compute one batch together, each its part of the tensors.
    Each of them belongs to another ``DataWorld``, in all of which the same is summed.

    Args:
        world: all ranks.
        members: the ranks.
        group: their process group for host tensors.
    """

    def __init__(self, world: World, members: list[int], group: Any) -> None:
        self.rank, self.size = members.index(world.rank), len(members)
        self.local_rank, self.group = world.local_rank, group
        self._world, self._members = world, members

    @property
    def is_broken(self) -> bool:  # type: ignore[override]
        """As in ``World``: whether any rank has failed, also one that is not among these."""
        return self._world.is_broken

    def sum(self, sums: Tensor) -> Tensor:
        total = sums.cpu().clone()
        dist.all_reduce(total, group=self.group)
        return total.to(sums.device)

    def largest(self, values: list[int]) -> list[int]:
        largest = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        return largest.tolist()

    def gather(self, value: Any) -> list[Any] | None:
        values = self.gather_all(value)
        return values if self.is_main else None

    def gather_all(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any, source: int = 0) -> Any:
        values = [value]
        dist.broadcast_object_list(values, self._members[source], group=self.group)
        return values[0]
