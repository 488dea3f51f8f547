"""Positions in data with a part per rank; real ranks are in ``tests/distributed``."""

from __future__ import annotations

import pytest

from fitkit import CheckpointError
from fitkit.engine.data_position import load_position


class Source:
    """Remembers its position."""

    def __init__(self, parts=None):
        self.position = None
        if parts is not None:
            self.possible_parts = parts

    def load_state_dict(self, state_dict):
        self.position = state_dict


@pytest.mark.parametrize("is_inside", [True, False])
def test_a_position_in_the_same_parts_is_restored(is_inside):
    split = {"a": 1, "parts": 2}
    for source, position in ((Source(), {"a": 1}), (Source((2,)), split), (Source((1, 2)), split)):
        load_position(source, position, is_inside=is_inside)
        assert source.position == position


@pytest.mark.parametrize(
    ("parts", "saved", "numbers"),
    [
        ((2,), 3, "3 parts then, 2 now"),
        ((2,), 1, "1 part then, 2 now"),
        (None, 2, "2 parts then, 1 now"),
        ((1, 2), 3, "3 parts then, 2 now"),
    ],
)
def test_a_position_in_other_parts_is_refused_inside_a_pass(parts, saved, numbers):
    source, position = Source(parts), {"a": 1, "parts": saved}
    with pytest.raises(CheckpointError, match=f"{numbers}. Resume with as many ranks"):
        load_position(source, position, is_inside=True)
    load_position(source, position, is_inside=False)
    assert source.position is None
