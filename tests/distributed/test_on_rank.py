"""A function that runs on some ranks only; real ranks are in test_rank_sync_processes."""

from __future__ import annotations

import threading

import pytest

from fitkit.core.errors import ConfigurationError
from fitkit.distributed import on_rank as module
from fitkit.distributed.alone import is_alone
from fitkit.distributed.on_rank import on_rank
from fitkit.distributed.world import World


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


@pytest.mark.parametrize("wrong", ["0", -1, True, 1.0, None, [0, "1"], [[0]], {0}])
def test_what_is_no_rank_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="on_rank takes a rank, a whole number from 0"):
        on_rank(wrong)


@pytest.mark.parametrize("none", [[], (), range(0)])
def test_no_rank_is_refused(none):
    with pytest.raises(ConfigurationError, match="on_rank got no rank"):
        on_rank(none)


class Rank(World):
    def __init__(self, rank, size=2):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("ranks", [5, [0, 5], 2])
@pytest.mark.parametrize("barrier", [False, True])
def test_a_rank_that_there_is_not_is_refused_on_all(ranks, barrier, monkeypatch):
    for rank in (0, 1):
        monkeypatch.setattr(module, "current_world", lambda rank=rank: Rank(rank))
        with pytest.raises(ConfigurationError, match=r"there are 2 ranks: pass ranks from 0 to 1"):
            on_rank(ranks, barrier=barrier)(lambda: 1)()


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [(1, [None, 1, None]), ([0, 2], [0, None, 2]), (range(1, 3), [None, 1, 2]), ((2, 2), [2])],
)
def test_it_runs_on_those_ranks(ranks, expected, monkeypatch):
    found = []
    for rank in range(3):
        monkeypatch.setattr(module, "current_world", lambda rank=rank: Rank(rank, 3))
        found.append(on_rank(ranks)(lambda rank=rank: rank if is_alone() else "in company")())
    assert found == expected or [f for f in found if f is not None] == expected
    assert not is_alone()


def test_inside_another_function_of_on_rank_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(module, "current_world", lambda: Rank(0))
    inner = on_rank(1, barrier=True)(lambda: threading.current_thread().name)
    assert on_rank(0)(inner)() == threading.current_thread().name
