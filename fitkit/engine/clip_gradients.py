"""Clips gradients by their total norm or by value, also sparse and sharded ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fitkit.distributed.dtensor import full_tensor, is_dtensor


def clip_norm(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale all gradients so that their total 2-norm is at most ``limit``."""
    clipped = list(_with_strided_gradients(parameters))
    # sharded and whole tensors do not mix in one call: a loss beside a sharded model is whole
    kinds = [[p for p in clipped if is_dtensor(p) is sharded] for sharded in (True, False)]
    groups = [group for group in kinds if group]
    if len(groups) == 1:
        nn.utils.clip_grad_norm_(groups[0], limit)
        return
    norms = [full_tensor(nn.utils.get_total_norm([p.grad for p in group])) for group in groups]  # type: ignore[misc]
    if norms:
        total = torch.linalg.vector_norm(torch.stack(norms))
        for group in groups:
            nn.utils.clip_grads_with_norm_(group, limit, total)


def clip_value(parameters: Iterable[Tensor], limit: float) -> None:
    """Limit each element of the gradients to ``[-limit, limit]``."""
    clipped = list(_with_strided_gradients(parameters))
    if clipped:
        nn.utils.clip_grad_value_(clipped, limit)


def _with_strided_gradients(parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    """Parameters with gradients; in place of a sparse one its values, which share its memory.

    torch does not clip sparse gradients. Elements that are not stored are 0.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if not gradient.is_sparse:
            yield parameter
            continue
        parameter.grad = gradient = gradient.coalesce()  # the parts of an element are added
        holder = gradient.values().detach()
        holder.grad = holder.detach()
        yield holder
