"""Values of a checkpoint in the structure that the program expects."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit import CheckpointError
from fitkit.core.same_structure import require_same_structure

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
LEAVES |= st.builds(torch.zeros, st.lists(st.integers(0, 2), max_size=2))
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
)


@given(TREES)
def test_everything_has_its_own_structure(tree):
    require_same_structure(tree, tree, "state")


@given(TREES)
def test_none_matches_everything(tree):
    require_same_structure(None, tree, "state")
    require_same_structure(tree, None, "state")


FITTING = [
    (1, 0.5),
    (True, 3),
    (torch.ones(1), 2.0),
    (torch.ones(1, 1), torch.tensor(2)),
    (0.5, torch.tensor(2.0)),
    ((1, 2, 3), [0]),
    ([], [1]),
    ([object()], []),
    ({"a": 1, "new": "text"}, {"a": 2, "old": []}),
    (torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.int64)),
    ("a", "b"),
]


@pytest.mark.parametrize(("saved", "current"), FITTING)
def test_what_fits(saved, current):
    require_same_structure(saved, current, "state")


KINDS = ["text", 1, [1], {"a": 1}, torch.ones(2)]


@pytest.mark.parametrize("saved", KINDS, ids=repr)
@pytest.mark.parametrize("current", KINDS, ids=repr)
def test_kinds_do_not_match_each_other(saved, current):
    if saved is current:
        return
    with pytest.raises(CheckpointError, match=r"^state in the checkpoint is a .*, expected"):
        require_same_structure(saved, current, "state")


@pytest.mark.parametrize(
    ("saved", "current", "sentence"),
    [
        ({"a": [0, "x"]}, {"a": [0, 1]}, r"state\['a'\]\[1\] in the checkpoint is a str"),
        ([1, 2, "x"], (1,), r"state\[2\] in the checkpoint is a str"),
        (torch.ones(2), torch.ones(2, 1), r"tensor of shape \(2,\), expected .*\(2, 1\)"),
        (torch.ones(2), 1.0, "a tensor of shape"),
        (torch.ones(0), torch.tensor(1), "a tensor of shape"),
        (1.0, torch.ones(1), "a float"),
    ],
)
def test_the_error_says_where(saved, current, sentence):
    with pytest.raises(CheckpointError, match=sentence) as caught:
        require_same_structure(saved, current, "state")
    assert "use another" in str(caught.value)
