"""Ranks that wait for each other, or for one that does not come, and legitimate waits."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from fitkit.core.errors import DeadlockError, Preempted, RankError
from fitkit.distributed import hang_detector as module
from fitkit.distributed import rank_statuses
from fitkit.distributed.activity import Activity
from fitkit.distributed.failures import failure_of_another
from fitkit.distributed.hang_detector import HangDetector, end_process, find_absent, find_deadlock
from fitkit.distributed.limited_store import StoreSilentError

POLLING_SECONDS = 0.5


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Moves when a test says so."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    for one in (module, rank_statuses):
        monkeypatch.setattr(one, "time", clock)
    monkeypatch.setattr(Ranks, "clock", clock, raising=False)
    return clock


class Signals:
    signaled = None

    def read(self):
        return self.signaled


class Ranks:
    """Several ranks, as threads of a test see them."""

    def __init__(self, size=2):
        self.store = dist.HashStore()
        self.all = [
            HangDetector(self.store, rank, size, Activity(), Signals()) for rank in range(size)
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


def test_ranks_look_for_failures_also_while_they_make_progress():
    ranks = Ranks()
    module.failures.publish(ranks.store, 1, ValueError("boom"))
    with ranks.all[0].activity.inside("sum"):
        assert ranks.all[0].find_failure().told == "ValueError: boom"
    assert ranks.store.check(["acknowledged/0"])


# ---- a rank that does not come ------------------------------------------------------------------


def test_the_rank_that_is_behind_is_named_with_its_stack():
    statuses = {0: status(5), 1: status(5), 2: status(3, place="fit, step 3")}
    found = find_absent(statuses, 0, 3, "fit, step 4", is_timeout=True)
    assert found.rank == 2
    assert found.told.startswith("rank 0 waited for it in fit, step 4 too long; it is in fit, step")
    assert "  File ...\n" in found.told
    assert find_absent({0: status(5), 1: status(5)}, 0, 2, "fit", is_timeout=True) is None


def test_who_is_behind_when_a_connection_breaks_did_not_break_it():
    assert find_absent({0: status(5), 1: status(3)}, 0, 2, "fit", is_timeout=False) is None


def explained(ranks, *, answering=(), is_timeout=False):
    """What rank 0 says of a broken collective while the watches of some others run."""
    ranks.all[0].activity.inside("sum")
    sleep = ranks.clock.sleep

    def go_on(seconds):
        for rank in answering:
            ranks.all[rank].find_failure()
        sleep(seconds)

    ranks.clock.sleep = go_on
    return ranks.all[0].explain(is_timeout=is_timeout)


@pytest.mark.parametrize(
    ("is_timeout", "told"),
    [
        (True, "too long; it does not answer: it is stopped or its machine is lost"),
        (False, "its process has ended without an error"),
    ],
)
def test_a_rank_that_does_not_answer_is_named(is_timeout, told):
    ranks = Ranks(3)
    found = explained(ranks, answering=[1], is_timeout=is_timeout)
    assert found.rank == 2
    assert told in found.told
    assert "rank 0 waited for it in fit" in found.told
    assert failure_of_another(ranks.store, 1).told == found.told
    assert ranks.clock.now < 103.0


def test_what_a_rank_told_before_it_ended_is_no_answer():
    ranks = Ranks()
    ranks.look()
    assert explained(ranks).rank == 1


def test_a_rank_outside_of_calls_answers():
    ranks = Ranks()
    ranks.all[1].activity.verbs.clear()
    assert explained(ranks, answering=[1]) is None


def test_a_failure_that_another_rank_publishes_meanwhile_is_the_cause():
    ranks = Ranks(3)
    module.failures.publish(ranks.store, 1, ValueError("boom"))
    assert explained(ranks).told == "ValueError: boom"
    assert ranks.clock.now == 100.0


@pytest.mark.parametrize("error", [StoreSilentError("silent"), dist.DistNetworkError("gone")])
@pytest.mark.parametrize(("rank", "is_served_by_main"), [(1, True), (1, False), (0, True)])
def test_a_store_that_does_not_answer_is_that_of_rank_0(error, rank, is_served_by_main):
    def fail(*arguments):
        raise error

    store = SimpleNamespace(check=fail, add=fail, compare_set=fail)
    alone = HangDetector(store, rank, 3, Activity(), Signals(), is_served_by_main=is_served_by_main)
    found = alone.explain(is_timeout=True)
    if rank and is_served_by_main:
        assert found.rank == 0
    else:
        assert found is None


# ---- broken connections -------------------------------------------------------------------------


def ranks_without_connection(size=2):
    ranks = Ranks(size)
    for one in ranks.all:
        one._is_connected = lambda: False
    return ranks


def test_a_rank_that_a_broken_connection_did_not_wake_finds_who_has_ended():
    """As gloo leaves it that was receiving from a process that is killed."""
    ranks = ranks_without_connection()
    waiting, found, began = ranks.all[0], None, ranks.clock.now
    waiting.activity.inside("copy")
    while found is None:
        found = waiting.find_failure()
        ranks.clock.now += POLLING_SECONDS
    assert found.rank == 1
    assert found.told.startswith("its process has ended without an error")
    assert ranks.clock.now - began < 3.0
    assert failure_of_another(waiting._store, 1).told == found.told


def test_ranks_that_lose_a_third_do_not_take_each_other_for_it():
    """Both ask at the same time, each in the thread in which it answers."""
    ranks = ranks_without_connection(3)
    asking, other, _ = ranks.all
    asking.activity.inside("copy")
    tell = asking._statuses.tell

    def both_tell(seconds):
        tell(seconds)
        other._statuses.tell(seconds)

    asking._statuses.tell = both_tell
    ranks.clock.now += 5.0
    asking.progress, asking._since = asking.activity.progress, 100.0
    assert asking.find_failure().rank == 2


@pytest.mark.parametrize("other", ["connected", "no verb", "it goes on", "it has noticed"])
def test_a_broken_connection_alone_ends_no_run(other):
    ranks = ranks_without_connection()
    waiting = ranks.all[0]
    if other != "it has noticed":
        waiting.activity.inside("copy")
    if other == "connected":
        waiting._is_connected = lambda: True
    if other == "no verb":
        waiting.activity.verbs.clear()
    for _ in range(60):
        if other == "it goes on":
            waiting.activity.progress += 1
        assert waiting.find_failure() is None
        ranks.clock.now += POLLING_SECONDS


def test_the_end_of_the_store_does_not_end_the_search():
    """Rank 0, which served it, is killed while it sends."""
    store, times, is_open = dist.HashStore(), [], [True]

    def fail(*arguments):
        times.append(arguments)
        raise dist.DistNetworkError("gone")

    waiting = HangDetector(store, 1, 2, Activity(), Signals(), is_connected=lambda: is_open[-1])
    waiting.activity.verbs.append("fit")
    assert waiting.find_failure() is None
    waiting._store = waiting._statuses._store = SimpleNamespace(
        check=fail, add=fail, set=fail, compare_set=fail
    )
    Ranks.clock.now += 1.0
    assert waiting.find_failure() is None
    assert waiting.find_failure() is None
    assert len(times) == 1  # each attempt prints a warning of torch
    waiting.activity.inside("copy")
    assert waiting.find_failure() is None
    is_open.append(False)
    Ranks.clock.now += 1.0
    assert waiting.find_failure().rank == 0


# ---- signals ------------------------------------------------------------------------------------


def after_signal(number, times=1, *, own="sum", other=None, size=2, seconds=3.0):
    """What rank 0, which waits, finds after a signal; ``other``: what rank 1 does."""
    ranks = Ranks(size)
    waiting, second = ranks.all[:2]
    for one, does in ((waiting, own), (second, other)):
        one.activity.in_step = does == "step"
        if does == "sum":
            one.activity.inside("sum")
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
    assert found.told == "it received SIGTERM while it waited for rank 1, which does not answer"
    assert failure_of_another(waiting._store, 1).told == found.told
    end = waiting.end_after_signal()
    assert isinstance(end, Preempted)
    assert end.code == 143


@pytest.mark.parametrize("own", ["sum", "step"])
@pytest.mark.parametrize("other", ["work", "sum", "step"])
def test_a_rank_at_work_is_waited_for(own, other):
    """As one that writes the last checkpoint; or both are in a long collective or step."""
    if (own, other) != ("step", "sum"):  # the other waits for what this one does not begin
        assert after_signal(signal.SIGTERM, own=own, other=other, seconds=600)[0] is None


@pytest.mark.parametrize("own", ["sum", "step"])
def test_a_step_is_not_waited_for_where_a_third_rank_is_stopped(own):
    assert after_signal(signal.SIGTERM, own=own, other="step", size=3)[0].rank == 0
    assert after_signal(signal.SIGTERM, own=own, other="work", size=3, seconds=60)[0] is None


def test_a_signal_ends_a_rank_while_the_store_is_silent():
    """As where rank 0 is stopped, which serves it."""

    def fail(*arguments):
        raise StoreSilentError("silent")

    store = SimpleNamespace(check=fail, add=fail, compare_set=fail)
    waiting = HangDetector(store, 1, 2, Activity(), Signals())
    waiting.activity.verbs.append("fit")
    waiting.activity.inside("sum")
    for seconds in range(2):
        assert waiting.find_failure() is None
        waiting.signals.signaled = (signal.SIGTERM, 1, float(seconds))
        Ranks.clock.now += 1.0
    waiting.signals.signaled = (signal.SIGTERM, 1, 2.0)
    found = waiting.find_failure()
    assert found.told == "it received SIGTERM while it waited for rank 0, which does not answer"


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
