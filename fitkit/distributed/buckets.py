"""buckets: groups of tensors that are sent together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator

from torch import Tensor


def buckets(
    tensors: Iterable[Tensor], kind: Callable[[Tensor], Hashable], max_bytes: int
) -> Iterator[list[Tensor]]:
    """Neighbors of one kind that together have at most ``max_bytes``; a larger one is alone.

    >>> import torch
    >>> sizes = [torch.zeros(n, dtype=torch.uint8) for n in (2, 3, 9, 1)]
    >>> [list(map(len, bucket)) for bucket in buckets(sizes, lambda tensor: tensor.dtype, 5)]
    [[2, 3], [9], [1]]
    """
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > max_bytes or kind(tensor) != kind(bucket[0])):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
