"""Where the ranks are, as each of them writes it into the store, and who answers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from fitkit.distributed import rank_statuses as module
from fitkit.distributed.activity import Activity
from fitkit.distributed.rank_statuses import RankStatuses

STILL = 10.0  # seconds in the same place


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Moves when a test says so."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def store():
    return dist.HashStore()


@pytest.fixture
def three(store):
    made = [RankStatuses(store, rank, 3, Activity()) for rank in range(3)]
    for one in made:
        one._activity.verbs.append("fit")
    return made


def test_statuses_are_those_of_all_ranks_that_told(three, store):
    three[1]._activity.inside("gather")
    three[1].tell(STILL)
    found = three[0].read()
    assert set(found) == {0, 1}
    assert (found[0]["operation"], found[1]["operation"]) == (None, "fit (gather)")
    assert json.loads(store.get("status/1").decode())["place"] == "fit"
    assert found[1]["verb"]


def test_it_is_told_once_per_second_and_not_after_progress(three, clock):
    beats = []
    for seconds in (0.0, 1.0, STILL, STILL, STILL):
        three[1].tell(seconds)
        status = three[0].of(1)
        beats.append(status and status["beat"])
        clock.now += 0.5
    assert beats == [None, None, 1, 1, 2]


def test_who_is_asked_answers_whatever_it_does(three):
    three[1]._activity.verbs.clear()
    three[0].ask()
    assert three[0].answers() == {}
    three[1].tell(0.0)
    assert set(three[0].answers()) == {1}
    assert not three[0].answers()[1]["verb"]
    three[2].tell(0.0)
    assert set(three[0].answers()) == {1, 2}


def test_what_was_told_before_is_no_answer(three, clock):
    three[1].tell(STILL)
    three[0].read()
    clock.now += 1.0
    three[1].tell(STILL)
    three[0].read()
    assert three[0].is_fresh(1)
    three[0].ask()
    assert three[0].answers() == {}
    three[1].tell(0.0)
    assert set(three[0].answers()) == {1}


def test_who_stops_to_tell_after_its_answer_is_not_counted(three, clock):
    three[0].ask()
    three[1].tell(STILL)
    for _ in range(5):
        three[1].tell(STILL)
        assert set(three[0].answers()) == {1}
        clock.now += 1.0
    clock.now += 3.0
    assert three[0].answers() == {}


def test_two_that_ask_are_both_answered(three):
    three[0].ask()
    three[1].ask()
    for one in three:
        one.tell(0.0)
    assert set(three[0].answers()) == {1, 2}
    assert set(three[1].answers()) == {0, 2}
