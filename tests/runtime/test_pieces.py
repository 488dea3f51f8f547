"""Tensors of which each process has a part, as one process can see them."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from fitkit.runtime.pieces import fitted, fitted_all, here, is_piece

WHOLE = torch.arange(6.0).reshape(3, 2)


@pytest.fixture
def piece(mesh):
    """All three rows: there is nobody else."""
    return distribute_tensor(WHOLE.clone(), mesh, [Shard(0)])


def test_which_is_which(piece):
    assert is_piece(piece)
    assert not any(map(is_piece, (WHOLE, torch.nn.Parameter(WHOLE), None, 3, "text", [piece])))
    assert is_piece(torch.nn.Parameter(piece))


def test_what_is_here(piece):
    assert here(WHOLE) is WHOLE
    assert torch.equal(here(piece), WHOLE)
    assert not is_piece(here(piece))


def test_each_is_made_like_the_other(piece):
    assert fitted(WHOLE, WHOLE) is WHOLE
    assert fitted(piece, piece) is piece
    whole = fitted(piece, WHOLE)
    assert not is_piece(whole)
    assert torch.equal(whole, WHOLE)
    spread = fitted(WHOLE, piece)
    assert isinstance(spread, DTensor)
    assert spread.placements == piece.placements
    assert torch.equal(here(spread), WHOLE)


def test_what_does_not_fit_is_left_for_others_to_refuse(piece):
    other = torch.zeros(4)
    assert fitted(other, piece) is other
    assert fitted(piece, other) is piece


def test_types_stay(piece):
    assert fitted(WHOLE.to(torch.float64), piece).dtype is torch.float64


def test_by_name(piece):
    values = OrderedDict(a=WHOLE, b=piece, c=3, d=WHOLE, e=None)
    values._metadata = {"": {"version": 1}}
    own = {"a": piece, "b": WHOLE, "c": WHOLE, "e": WHOLE}
    found = fitted_all(values, own)
    assert type(found) is OrderedDict
    assert found._metadata == values._metadata
    assert is_piece(found["a"])
    assert not is_piece(found["b"])
    assert (found["c"], found["d"] is WHOLE, found["e"]) == (3, True, None)
    assert values["a"] is WHOLE  # they are as they were


def test_nothing_to_do():
    assert fitted_all({}, {}) == {}
    assert fitted_all({1: "x"}, {}) == {1: "x"}
