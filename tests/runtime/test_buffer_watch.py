"""Buffers that no checkpoint holds: training state is told of, caches are not."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fitkit.runtime.buffer_watch import BufferWatch, unsaved_buffers


class Holder(nn.Module):
    """A saved and an unsaved buffer, the latter with the given value."""

    def __init__(self, value=None):
        super().__init__()
        self.register_buffer("saved", torch.zeros(2))
        self.register_buffer("cache", value, persistent=False)


def test_names_of_unsaved_buffers_also_without_a_tensor():
    model = nn.Sequential(Holder(), nn.ModuleList([Holder(torch.ones(1))]), nn.BatchNorm1d(2))
    assert unsaved_buffers(model) == {"0.cache", "1.0.cache"}
    assert unsaved_buffers(Holder()) == {"cache"}
    assert unsaved_buffers(nn.BatchNorm1d(2)) == set()


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (torch.ones(2), torch.ones(2)),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")])),
        (torch.ones(2), torch.ones(3)),  # a cache that grows
        (torch.ones(2), torch.zeros(2, dtype=torch.int64)),
        (torch.tensor([True]), torch.tensor([True])),
    ],
)
def test_caches_are_not_told_of(first, later):
    holder = Holder(torch.full_like(first, 0))
    watch = BufferWatch([holder])
    watch.after_epoch(0, {})
    holder.cache = first  # filled by the first batch
    watch.after_batch(0, {})
    holder.cache, holder.saved = later.clone(), holder.saved + 1
    watch.after_batch(1, {})
    watch.after_epoch(0, {})


def test_what_training_changes_is_told_of_once():
    holders = nn.ModuleList([Holder(torch.zeros(2)), Holder(torch.ones(1))])
    watch = BufferWatch([nn.Linear(2, 1), holders])
    watch.after_batch(0, {})
    watch.after_epoch(0, {})
    with torch.no_grad():
        holders[0].cache.add_(1)
    with pytest.warns(UserWarning, match=r"the buffers '0\.cache', which no .*persistent=True"):
        watch.after_epoch(1, {})
    holders[1].cache = torch.zeros(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.after_epoch(2, {})
