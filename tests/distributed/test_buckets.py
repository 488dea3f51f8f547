"""Groups of tensors that are sent together."""

from __future__ import annotations

import torch

from fitkit.distributed.buckets import buckets


def lengths(tensors, kind=lambda tensor: tensor.dtype, max_bytes=8):
    return [list(map(len, bucket)) for bucket in buckets(tensors, kind, max_bytes)]


def of_bytes(*sizes):
    return [torch.zeros(size, dtype=torch.uint8) for size in sizes]


def test_a_bucket_is_filled_to_the_last_byte():
    assert lengths(of_bytes(3, 5, 1)) == [[3, 5], [1]]
    assert lengths(of_bytes(3, 6)) == [[3], [6]]


def test_what_is_larger_is_alone():
    assert lengths(of_bytes(9, 1, 9, 9)) == [[9], [1], [9], [9]]


def test_neighbors_of_another_kind_are_in_another_bucket():
    one, other = torch.zeros(1, dtype=torch.int8), torch.zeros(1, dtype=torch.uint8)
    assert lengths([one, one, other, one]) == [[1, 1], [1], [1]]


def test_nothing_has_no_bucket():
    assert lengths([]) == []
