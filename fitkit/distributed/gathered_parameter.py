"""GatheredParameter: keeps what a step does to a parameter while FSDP has gathered it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fitkit.core.errors import ConfigurationError
from fitkit.distributed.dtensor import is_dtensor


class GatheredParameter:
    """Passes changes of a gathered parameter on to its shard, which the optimizer has.

    ``model.parameters()`` are the gathered ones inside a step: a step may clear their gradients
    (``model.zero_grad()``) and change their values (``p.data.clamp_(...)``). ``keep_changes`` must
    be called before FSDP uses the gradient and before the parameter is sharded again.

    Args:
        of_fsdp: torch's ``FSDPParam`` of a parameter that is gathered now.
    """

    def __init__(self, of_fsdp: Any) -> None:
        self._of_fsdp = of_fsdp
        part = self._own_part()  # of which values are compared with those of now
        self._values = None if part is None else (part, part.clone())
        self._mark: Tensor | None = None
        if of_fsdp.sharded_param.grad is not None:
            # zero_grad only touches gradients that are there; this one takes no memory
            whole = of_fsdp.unsharded_param.detach()
            is_plain = not is_dtensor(whole)
            self._mark = whole.new_zeros(()).expand_as(whole) if is_plain else whole * 0
            of_fsdp.unsharded_param.grad = self._mark
            self._version = self._mark._version  # noqa: SLF001

    def _own_part(self) -> Tensor | None:
        """This rank's part of the gathered values; ``None``: an extension of torch has them."""
        outputs, shard = self._of_fsdp.all_gather_outputs, self._of_fsdp._sharded_param_data  # noqa: SLF001
        rank, size = self._of_fsdp.mesh_info.shard_mesh_rank, shard.numel()
        if (
            len(outputs) != 1
            or outputs[0].numel() != size * self._of_fsdp.mesh_info.shard_mesh_size
        ):
            return None
        part: Tensor = outputs[0].narrow(0, rank * size, size)
        return part

    @torch.no_grad()
    def keep_changes(self) -> None:
        """Clear the gradient of the shard if the step did so, and write changed values to it.

        Raises:
            ConfigurationError: the step has assigned a gradient, of which the shard would get none.
        """
        whole, mark = self._of_fsdp.unsharded_param, self._mark
        gradient, whole.grad = whole.grad, None
        if gradient is not None and gradient is not mark:
            where = self._of_fsdp._module_info  # noqa: SLF001
            raise ConfigurationError(
                f"the training step assigns .grad of {where.param_name!r} of "
                f"{type(where.module).__name__}, which FSDP has gathered for the step: return the "
                f"loss from the training step, or call loss.backward() in it."
            )
        if mark is not None and (gradient is None or mark._version != self._version):  # noqa: SLF001
            self._of_fsdp.sharded_param.grad = None
        if self._values is not None and self._of_fsdp.sharded_state.name == "UNSHARDED":
            (now, before), shard = self._values, self._of_fsdp._sharded_param_data  # noqa: SLF001
            shard.copy_(torch.where(now == before, shard, now.to(shard.dtype)))
