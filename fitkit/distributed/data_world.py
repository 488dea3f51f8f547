"""DataWorld: the ranks that share out the batches, where others get the same ones."""
# ruff: noqa: D102  the methods are documented in World

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitkit.distributed.group_world import GroupWorld
from fitkit.distributed.world import World


class DataWorld(GroupWorld):
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

    def group_for(self, device: torch.device) -> Any:
        return self.group

    def _rank_in_torch(self, rank: int) -> int:
        return self._members[rank]

    def sum(self, sums: Tensor) -> Tensor:
        """As in ``World``, on the host, where the group is."""
        return super().sum(sums.cpu()).to(sums.device)
