"""Ranks that wait for each other, or for one that does not come, and legitimate waits."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from fitkit.core.errors import DeadlockError, Preempted, RankError
from fitkit.distributed import hang_detector as module
from fitkit.distributed.activity import Activity
from fitkit.distributed.failures import failure_of_another
from fitkit.distributed.hang_detector import HangDetector, end_process, find_absent, find_deadlock

POLLING_SECONDS = 0.5


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Moves when a test says so."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Ranks, "clock", clock, raising=False)
    return clock


class Signals:
    signaled = None

    def read(self):
        return self.signaled


class Ranks:
    """Several ranks, as threads of a test see them."""

    def __init__(self, size=2, *, polls=False):
        self.store = dist.HashStore()
        self.all = [
            HangDetector(self.store, rank, size, Activity(), Signals(), polls=polls)
            for rank in range(size)
        ]
        for one in self.all:
            one.activity.verbs.append("fit")

    def look(self, times=12):
        """What each finds in the end."""
        found = {}
        for _ in range(times):
            for rank, one in enumerate(self.all):
                found[rank] = found.get(rank) or one.find_failure()
            self.clock.now += POLLING_SECONDS
        return [found[rank] for rank in range(len(self.all))]


def status(count, operation=None, known=(), place="fit"):
    known = {str(index): name for index, name in known}
    begun = count - 1 if operation else count
    if operation:
        known[str(begun)] = operation
    return {
        "operation": operation,
        "begun": begun,
        "count": count,
        "known": known,
        "place": place,
        "stack": "  File ...\n",
    }


# ---- deadlocks ----------------------------------------------------------------------------------


def test_different_calls_at_one_collective_are_a_deadlock():
    found = find_deadlock({0: status(4, "save (barrier)"), 1: status(4, "fit (sum)")})
    assert found.startswith(
        "the ranks wait for each other in different calls: rank 0 waits in save"
    )
    assert "rank 1 waits in fit (sum), at fit" in found


def test_a_collective_of_torch_in_its_place_is_a_deadlock():
    """As of DistributedDataParallel, which does not say what it is."""
    found = find_deadlock({0: status(4, "save (barrier)"), 1: status(6, known=[(2, "fit (sum)")])})
    assert "rank 1 waits in a collective of torch" in found


def test_a_rank_that_went_on_after_another_call_is_a_deadlock():
    known = [(3, "fit (broadcast)")]  # as its source it need not wait
    found = find_deadlock({0: status(4, "save (barrier)"), 1: status(6, "fit (sum)", known)})
    assert "rank 1 waits in fit (broadcast)" in found


@pytest.mark.parametrize(
    "other",
    [
        status(4, "fit (sum)"),  # the same: it is about to end
        status(3),  # at work, and may come
        status(2, "fit (broadcast)", [(0, "fit (sum)")]),  # behind, for a third
        status(6, "fit (gather)", [(3, "fit (sum)")]),  # ahead, as the source of a broadcast
        status(400, "fit (gather)", [(300, "fit (sum)")]),  # it has forgotten
    ],
)
def test_what_may_end_is_no_deadlock(other):
    assert find_deadlock({0: status(4, "fit (sum)"), 1: other}) is None


def test_all_ranks_hear_of_a_deadlock():
    ranks = Ranks(3)
    ranks.all[0].activity.inside("gather")
    for one in ranks.all[1:]:
        one.activity.inside("sum")
    found = ranks.look()
    assert {type(error) for error in found} == {DeadlockError}
    assert len({str(error) for error in found}) == 1
    assert "rank 0 waits in fit (gather)" in str(found[0])
    assert found[0].rank == -1


def test_ranks_that_wait_for_one_at_work_do_not_fail():
    ranks = Ranks(3)
    for one in ranks.all[1:]:
        one.activity.inside("sum")
    assert ranks.look(2000) == [None] * 3


def test_a_rank_that_makes_progress_writes_nothing():
    ranks = Ranks()
    for _ in range(10):
        for one in ranks.all:
            with one.activity.inside("sum"):
                one.find_failure()
        ranks.clock.now += POLLING_SECONDS
    assert not ranks.store.check(["status/0"])


def test_outside_of_calls_a_rank_writes_nothing():
    ranks = Ranks()
    ranks.all[0].activity.verbs.clear()
    assert ranks.look() == [None, None]
    assert not ranks.store.check(["status/0"])
    assert ranks.store.check(["status/1"])


@pytest.mark.parametrize("polls", [True, False])
def test_ranks_of_a_device_look_for_failures_at_any_time(polls):
    ranks = Ranks(polls=polls)
    module.failures.publish(ranks.store, 1, ValueError("boom"))
    found = ranks.all[0].find_failure()
    assert (found is not None) is polls
    assert ranks.look()[0].told == "ValueError: boom"
    assert ranks.store.check(["acknowledged/0"])


# ---- a rank that does not come ------------------------------------------------------------------


def test_the_rank_that_is_behind_is_named_with_its_stack():
    statuses = {0: status(5, place="fit, step 4"), 1: status(5), 2: status(3, place="fit, step 3")}
    found = find_absent(statuses, 0, 3)
    assert found.rank == 2
    assert found.told.startswith("rank 0 waited for it in fit, step 4 too long; it is in fit, step")
    assert "  File ...\n" in found.told
    assert find_absent({0: status(5), 1: status(5)}, 0, 2) is None


def test_a_rank_that_does_not_answer_is_named():
    found = find_absent({1: status(5)}, 1, 2)
    assert found.rank == 0
    assert "it is stopped, or its machine is lost" in found.told


# ---- signals ------------------------------------------------------------------------------------


def after_signal(number, times=1, *, other=None, seconds=4.5):
    """What rank 0, which waits in a sum, finds after a signal; ``other``: what rank 1 does."""
    ranks = Ranks()
    waiting, second = ranks.all
    waiting.activity.inside("sum")
    if other == "sum":
        second.activity.inside("sum")
    found = None
    for i in range(int(seconds / POLLING_SECONDS)):
        waiting.signals.signaled = (number, times, i * POLLING_SECONDS)
        if other is not None:
            second.find_failure()
        found = found or waiting.find_failure()
        ranks.clock.now += POLLING_SECONDS
    return found, waiting


def test_a_signal_ends_a_rank_that_waits_for_one_that_is_stopped():
    found, waiting = after_signal(signal.SIGTERM)
    assert found.rank == 0
    assert "received SIGTERM while it waited" in found.told
    assert failure_of_another(waiting._store, 1).told == found.told
    end = waiting.end_after_signal()
    assert isinstance(end, Preempted)
    assert end.code == 143


@pytest.mark.parametrize("other", ["work", "sum"])
def test_a_rank_at_work_is_waited_for(other):
    """As one that writes the last checkpoint; or both are in a long collective."""
    assert after_signal(signal.SIGTERM, other=other, seconds=600)[0] is None


def test_a_rank_at_work_for_which_the_others_wait_is_not_ended():
    ranks = Ranks()
    writing, waiting = ranks.all
    waiting.activity.inside("sum")
    writing.signals.signaled = (signal.SIGTERM, 1, 600.0)
    assert ranks.look(1200) == [None, None]


def test_a_rank_in_an_unknown_collective_ends_where_no_other_answers():
    ranks, found = Ranks(), []
    alone = ranks.all[0]
    for i in range(60):
        alone.signals.signaled = (signal.SIGTERM, 1, i * POLLING_SECONDS)
        found.append(alone.find_failure() is not None)
        ranks.clock.now += POLLING_SECONDS
    assert found.index(True) == 40  # after 20 seconds


def test_a_second_interrupt_ends_at_once():
    found, waiting = after_signal(signal.SIGINT, 2, other="work", seconds=2)
    assert isinstance(found, RankError)
    assert isinstance(waiting.end_after_signal(), KeyboardInterrupt)


def test_without_a_signal_the_error_stays():
    assert Ranks().all[0].end_after_signal() is None


# ---- a rank that does not come back -------------------------------------------------------------


@pytest.fixture
def exits(monkeypatch):
    found = []
    monkeypatch.setattr(module.os, "_exit", found.append)
    return found


def test_a_rank_that_does_not_notice_is_ended(exits, capsys):
    stuck = Ranks().all[0]
    stuck.find_failure()
    end_process(stuck, RankError(1, "boom"))
    stuck.signals.signaled = (signal.SIGTERM, 1, 0.0)
    end_process(stuck, RankError(1, "boom"))
    assert exits == [1, 143]
    told = capsys.readouterr().err
    assert "rank 1 failed, and with it the run: boom" in told
    assert "test_a_rank_that_does_not_notice_is_ended" in told


def test_a_rank_that_notices_or_is_in_no_call_is_not_ended(exits):
    first, second = Ranks().all
    for one in (first, second):
        one.find_failure()
    with first.activity.inside("sum"):
        pass
    second.activity.verbs.clear()
    for one in (first, second):
        end_process(one, RankError(1, "boom"))
    assert exits == []


def test_statuses_are_those_of_all_ranks():
    ranks = Ranks()
    ranks.all[1].activity.inside("gather")
    ranks.look()
    found = ranks.all[0].statuses()
    assert found[1]["operation"] == "fit (gather)"
    assert json.loads(ranks.store.get("status/1").decode())["place"] == "fit"
    assert SimpleNamespace(**found[0]).operation is None
