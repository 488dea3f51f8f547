"""What the processes of a run do at the same step; here they are threads of one test."""

from __future__ import annotations

import logging
import signal
import threading
from types import SimpleNamespace

import pytest

from fitkit.core.errors import Preempted
from fitkit.core.state import FitState
from fitkit.distributed.world import World
from fitkit.engine.run import RankSync
from fitkit.training.rank_sync import PeriodicRankSync, make_rank_sync

LOGGER = logging.getLogger("fitkit")


class Meeting:
    """Threads that exchange values."""

    def __init__(self, size):
        self.size = size
        self.said = [None] * size
        self.barrier = threading.Barrier(size, timeout=5)
        self.reductions = 0

    def exchange(self, rank, value):
        self.said[rank] = value
        self.barrier.wait()
        everything = list(self.said)
        self.barrier.wait()
        return everything


class OneOfSeveral(World):
    """A process that is a thread."""

    def __init__(self, meeting, rank):
        self.meeting, self.rank, self.size = meeting, rank, meeting.size

    def largest(self, values):
        if self.rank == 0:
            self.meeting.reductions += 1
        return [
            max(column) for column in zip(*self.meeting.exchange(self.rank, values), strict=True)
        ]

    def gather_all(self, value):
        return self.meeting.exchange(self.rank, value)

    def broadcast(self, value, source=0):
        return self.meeting.exchange(self.rank, value)[source]


class Saves:
    def __init__(self):
        self.wants_sync_point = self.is_sync_scheduled = False

    def schedule_sync_point(self):
        self.is_sync_scheduled = True


def together(size, act):
    """``act(rank, agreement, state, watch, saves)`` on each; what each returned or raised."""
    meeting, found = Meeting(size), [None] * size

    def run(rank):
        state, watch, saves = FitState(), SimpleNamespace(received=None), Saves()
        rank_sync = PeriodicRankSync(state, watch, OneOfSeveral(meeting, rank), saves, LOGGER)
        try:
            found[rank] = act(rank, rank_sync, state, watch, saves)
        except BaseException as error:  # noqa: BLE001  handed to the test
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, meeting


def batches_until_the_end(rank_sync, number=1000):
    for batch in range(number):
        rank_sync.check()
        if rank_sync.must_stop:
            return batch
    return number


@pytest.mark.parametrize("size", [2, 3])
def test_a_stop_of_one_stops_all_at_the_same_batch_for_its_reason(size):
    def act(rank, rank_sync, state, watch, saves):
        if rank == size - 1:
            state.stop("because", non_finite=True, final=False)
        batch = batches_until_the_end(rank_sync)
        return batch, state.stop_reason, state.stopped_non_finite, state.stop_is_final

    found, _ = together(size, act)
    assert found == [found[0]] * size
    assert found[0][1:] == ("because", True, False)
    assert found[0][0] < 1000


def test_the_first_of_several_reasons_is_everybodys():
    def act(rank, rank_sync, state, watch, saves):
        if rank:
            state.stop(f"rank {rank} says so")
        batches_until_the_end(rank_sync)
        return state.stop_reason

    assert together(3, act)[0] == ["rank 1 says so"] * 3


def test_a_stop_that_a_checkpoint_brought_holds_from_the_beginning():
    state = FitState()
    state.stop("EarlyStopping: enough")
    watch = SimpleNamespace(received=None)
    assert RankSync(state, watch).must_stop
    meeting = Meeting(1)
    assert PeriodicRankSync(state, watch, OneOfSeveral(meeting, 0), Saves(), LOGGER).must_stop


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Preempted)]
)
def test_a_signal_to_one_is_everybodys(number, kind):
    def act(rank, rank_sync, state, watch, saves):
        watch.received = number if rank == 1 else None
        batches_until_the_end(rank_sync)

    found, _ = together(2, act)
    assert [type(one) for one in found] == [kind, kind]
    if kind is Preempted:
        assert [one.code for one in found] == [143, 143]


def test_the_end_of_the_process_goes_before_an_interrupt():
    def act(rank, rank_sync, state, watch, saves):
        watch.received = signal.SIGTERM if rank else signal.SIGINT
        rank_sync.check()

    assert [type(one) for one in together(2, act)[0]] == [Preempted, Preempted]


def test_a_wish_to_save_invites_all():
    def act(rank, rank_sync, state, watch, saves):
        saves.wants_sync_point = rank == 0
        rank_sync.check(now=True)
        return saves.is_sync_scheduled

    assert together(2, act)[0] == [True, True]


def test_quick_batches_are_not_slowed_down_by_agreements():
    def act(rank, rank_sync, state, watch, saves):
        return batches_until_the_end(rank_sync, 3000)

    found, meeting = together(2, act)
    assert found == [3000, 3000]
    assert meeting.reductions < 300


def test_the_end_of_an_epoch_is_always_agreed():
    def act(rank, rank_sync, state, watch, saves):
        for _ in range(5):
            rank_sync.check(now=True)

    assert together(2, act)[1].reductions == 5


def handler_of(world, state=None):
    return SimpleNamespace(state=state or FitState(), world=world, saves=Saves(), logger=LOGGER)


def test_one_process_agrees_with_itself_after_every_batch():
    state, watch = FitState(), SimpleNamespace(received=None)
    rank_sync = make_rank_sync(handler_of(World(), state), watch)
    assert type(rank_sync) is RankSync
    rank_sync.check()
    assert not rank_sync.must_stop
    state.stop("because")
    assert rank_sync.must_stop
    watch.received = signal.SIGTERM
    with pytest.raises(Preempted):
        rank_sync.check()


def test_several_processes_share_an_agreement():
    world = OneOfSeveral(Meeting(2), 0)
    made = make_rank_sync(handler_of(world), SimpleNamespace(received=None))
    assert type(made) is PeriodicRankSync


def test_one_of_several_ranks_does_not_end_alone_when_its_data_breaks():
    def act(rank, rank_sync, state, watch, saves):
        def batches():
            watch.received = signal.SIGTERM
            raise RuntimeError("a worker was ended")
            yield

        return list(rank_sync.guard(batches()))

    assert [type(error) for error in together(2, act)[0]] == [RuntimeError] * 2


def test_the_value_of_rank_0_is_everybodys_and_a_difference_is_named_once(caplog):
    caplog.set_level(logging.INFO, "fitkit")

    def act(rank, rank_sync, state, watch, saves):
        for _ in range(2):
            state.unshared = {"mine": rank + 0.5, "same": float("nan")}
            rank_sync.share_logs()
        return dict(state.live_logs()), state.unshared

    found, _ = together(3, act)
    assert str(found) == str([({"mine": 0.5, "same": float("nan")}, {})] * 3)
    assert [record.getMessage() for record in caplog.records] == [
        "a callback logs 'mine' as 0.5 on rank 0 and as 1.5 on rank 1: the logs hold the value of "
        "rank 0"
    ]


def test_a_value_that_rank_0_lacks_is_left_out_with_a_warning():
    def act(rank, rank_sync, state, watch, saves):
        state.unshared = {"mine": 1.0} if rank else {}
        rank_sync.share_logs()
        return dict(state.live_logs())

    with pytest.warns(UserWarning, match=r"logs 'mine' on rank 1 and not on rank 0.*left out"):
        assert together(2, act)[0] == [{}, {}]
