"""Average gradients over ranks, a few collectives for all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fitkit.distributed.buckets import buckets
from fitkit.distributed.world import World

BUCKET_BYTES = 25 * 2**20  # of gradients that are copied into one buffer, as DDP does
_NONE, _STRIDED, _SPARSE = range(3)


@torch.no_grad()
def average_gradients(
    world: World, parameters: Iterable[Tensor], weight: float | None = None
) -> None:
    """Average gradients over the ranks in place; one that is missing on some ranks is 0 there.

    Args:
        world: the ranks, all of which have to call this.
        parameters: the same ones, in the same order, on every rank.
        weight: the share of this rank in the mean, of at least 0; those of all ranks add up to 1.
            With 0 its gradients are not read and may be NaN. ``None``: ranks count alike.
    """
    parameters = list(parameters)
    if world.size == 1 or not parameters:
        return
    weight = 1 / world.size if weight is None else weight
    kinds = world.largest([_kind_of_gradient(p) for p in parameters])
    strided: list[Tensor] = []
    for parameter, kind in zip(parameters, kinds, strict=True):
        if kind == _NONE:
            continue
        if parameter.grad is None or not weight:
            is_sparse = kind == _SPARSE
            parameter.grad = (sparse_without_rows if is_sparse else torch.zeros_like)(parameter)
        if kind == _SPARSE:
            parameter.grad = _summed_sparse(world, parameter.grad.mul_(weight))
        else:
            strided.append(parameter.grad.mul_(weight))
    for bucket in buckets(strided, _dtype_and_device, BUCKET_BYTES):
        _sum(world, bucket)


def sparse_without_rows(parameter: Tensor) -> Tensor:
    """A sparse gradient of zeros."""
    indices = torch.empty((1, 0), dtype=torch.int64, device=parameter.device)
    values = parameter.new_empty((0, *parameter.shape[1:]))
    return torch.sparse_coo_tensor(indices, values, parameter.shape, check_invariants=False)


def _kind_of_gradient(parameter: Tensor) -> int:
    if parameter.grad is None:
        return _NONE
    return _SPARSE if parameter.grad.is_sparse else _STRIDED


def _dtype_and_device(gradient: Tensor) -> tuple[torch.dtype, torch.device]:
    return gradient.dtype, gradient.device


def _sum(world: World, bucket: list[Tensor]) -> None:
    """All-reduce, which adds what is at the same place in memory: strides differ between ranks."""
    if len(bucket) == 1:  # large gradients are not copied
        flat = bucket[0].contiguous().view(-1)
    else:
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    world.sum_in_place(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in bucket])
    for gradient, part in zip(bucket, parts, strict=True):
        if part.data_ptr() != gradient.data_ptr():
            gradient.copy_(part.view(gradient.shape))


def _summed_sparse(world: World, gradient: Tensor) -> Tensor:
    summed = gradient.coalesce()
    world.sum_in_place(summed)
    return summed
