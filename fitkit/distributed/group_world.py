"""GroupWorld: collectives of the ranks of one process group."""
# ruff: noqa: D102  the methods are documented in World

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parameter import is_lazy

from fitkit.core.errors import ConfigurationError, RankError
from fitkit.distributed import failures
from fitkit.distributed.alone import alone
from fitkit.distributed.buckets import buckets
from fitkit.distributed.messages import exchange
from fitkit.distributed.world import Result, World

_HOST = torch.device("cpu")
_COPIED_TOGETHER = 1 << 20  # bytes; larger tensors are not worth a second copy in memory


class GroupWorld(World):
    """Several ranks that communicate in the process group of ``group_for``.

    A deep copy of what holds a world, as of a handler, shares it: the ranks are the same.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupWorld:
        return self

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "a handler of several ranks cannot be pickled, because it is connected to the others: "
            "write a checkpoint with handler.save, or give the other process handler.module."
        )

    def _communicate(
        self, name: str, collective: Callable[..., Any], *args: Any, device: torch.device = _HOST
    ) -> None:
        """Run a collective of torch; ``name``: what it is for."""
        group = self.group_for(device)
        # one on a device does not wait here
        with self._waiting_in(name) if device.type == "cpu" else nullcontext():
            collective(*args, group=group)

    def _waiting_in(self, name: str) -> AbstractContextManager[Any]:
        """Surrounds a collective that waits for the other ranks."""
        return nullcontext()

    def _rank_in_torch(self, rank: int) -> int:
        """The rank that torch's default group has for one of this world."""
        return rank

    def sum(self, sums: Tensor) -> Tensor:
        total = sums.clone()
        self.sum_in_place(total)
        return total

    def begin_sum(self, sums: Tensor) -> Callable[[], Tensor]:
        total = sums.clone()
        work: Any = dist.all_reduce(total, group=self.group_for(_HOST), async_op=True)

        def end() -> Tensor:
            with self._waiting_in("sum"):
                work.wait()
            return total

        return end

    def sum_in_place(self, tensor: Tensor) -> None:
        self._communicate("sum", dist.all_reduce, tensor, device=tensor.device)

    def largest(self, values: list[int]) -> list[int]:
        largest = torch.tensor(values, dtype=torch.int64)
        self._communicate("largest", dist.all_reduce, largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def gather(self, value: Any) -> list[Any] | None:
        values: list[Any] | None = [None] * self.size if self.is_main else None
        self._communicate("gather", dist.gather_object, value, values, self._rank_in_torch(0))
        return values

    def gather_all(self, value: Any) -> list[Any]:
        def gathered(own: Tensor) -> list[Tensor]:
            parts = [torch.empty_like(own) for _ in range(self.size)]
            self._communicate("gather_all", dist.all_gather, parts, own)
            return parts

        return exchange(value, gathered)

    def broadcast(self, value: Any, source: int = 0) -> Any:
        def sent(content: Tensor) -> list[Tensor]:
            self._communicate("broadcast", dist.broadcast, content, self._rank_in_torch(source))
            return [content]

        return exchange(value if self.rank == source else None, sent)[0]

    def run_on(self, ranks: int | Sequence[int], action: Callable[[], Result]) -> Result | None:
        chosen, result, error = [ranks] if isinstance(ranks, int) else ranks, None, None
        if self.rank in chosen:
            try:
                with alone():
                    result = action()
            except BaseException as caught:  # noqa: BLE001  raised below, after the exchange
                error = caught
        message = None if error is None else failures.describe(error)
        if len(chosen) == 1:
            messages = {chosen[0]: self.broadcast(message, chosen[0])}
        else:
            messages = dict(enumerate(self.gather_all(message)))
        if error is not None:
            raise error
        for rank, told in messages.items():
            if told is not None:
                raise RankError(rank, told)
        return result

    @torch.no_grad()
    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        copied = list(tensors)
        if any(map(is_lazy, copied)):
            raise ConfigurationError(
                "several ranks cannot share a module with lazy parameters that have no values "
                "yet: call it on one batch, on the CPU, and pass it as a ready module."
            )
        for bucket in buckets(copied, lambda tensor: tensor.device, _COPIED_TOGETHER):
            if len(bucket) == 1:
                self._copy(bucket[0])
                continue
            flat = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in bucket])
            self._copy(flat)
            if self.is_main:
                continue
            parts = torch.split(flat, [tensor.nbytes for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                # torch views bytes as numbers only where numbers may begin
                tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))

    def _copy(self, tensor: Tensor) -> None:
        source = self._rank_in_torch(0)
        self._communicate("copy", dist.broadcast, tensor, source, device=tensor.device)
