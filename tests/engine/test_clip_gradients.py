"""Clipping: sparse gradients as dense ones; the sharded ones are in tests/distributed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitkit.engine.clip_gradients import clip_norm, clip_value


def embeddings():
    """A dense and a sparse embedding with the same gradients; one row is used twice."""
    made = []
    for is_sparse in (False, True):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Embedding(5, 2, sparse=is_sparse), nn.Linear(2, 1))
        (10 * module(torch.tensor([0, 1, 1]))).sum().backward()
        made.append(module)
    return made


@pytest.mark.parametrize("limit", [0.1, 1e6])
@pytest.mark.parametrize("clip", [clip_norm, clip_value])
def test_sparse_gradients_are_clipped_as_dense_ones(clip, limit):
    dense, sparse = embeddings()
    for module in (dense, sparse):
        clip(module.parameters(), limit)
    assert sparse[0].weight.grad.is_sparse
    for a, b in zip(dense.parameters(), sparse.parameters(), strict=True):
        torch.testing.assert_close(b.grad.to_dense(), a.grad)


def test_norm_and_value_are_those_of_torch():
    ours, theirs = embeddings()[0], embeddings()[0]
    clip_norm(ours.parameters(), 0.5)
    nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    assert all(map(torch.equal, grads(ours), grads(theirs)))
    clip_value(ours.parameters(), 0.01)
    nn.utils.clip_grad_value_(theirs.parameters(), 0.01)
    assert all(map(torch.equal, grads(ours), grads(theirs)))


def grads(module):
    return [parameter.grad for parameter in module.parameters()]


def test_without_gradients_nothing_happens():
    clip_norm(nn.Linear(2, 1).parameters(), 1.0)
    clip_value(nn.Linear(2, 1).parameters(), 1.0)
