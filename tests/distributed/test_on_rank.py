"""A function that runs on one rank only; several ranks are in tests/distributed."""

from __future__ import annotations

import pytest

from fitkit.distributed.on_rank import on_rank


@pytest.mark.parametrize("barrier", [False, True])
def test_on_rank_in_one_process(barrier):
    calls = []

    @on_rank(3, barrier=barrier)
    def act(value):
        """What it does."""
        calls.append(value)
        return value / 0 if value == 7 else value

    assert (act(5), calls) == (5, [5])
    assert act.__doc__ == "What it does."
    with pytest.raises(ZeroDivisionError):
        act(7)
