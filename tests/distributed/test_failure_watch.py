"""A thread hears that another rank has failed, and aborts what the main thread waits for."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from functools import partial

import pytest
import torch.distributed as dist

from fitkit.core.errors import RankError
from fitkit.distributed.distributed_world import DistributedWorld
from fitkit.distributed.failure_watch import FailureWatch
from fitkit.distributed.failures import failure_of_another
from fitkit.distributed.rank_info import RankInfo
from fitkit.distributed.rendezvous_store import second_connection, with_prefix

SHORT = 0.02


class Wait:
    """What the main thread waits for, as for a kernel: only ``abort`` ends it."""

    def __init__(self):
        self.times, self.failure_seen, self.watch = 0, None, None
        self._is_over = threading.Event()

    def abort(self):
        self.times += 1
        self.failure_seen = self.watch.failure if self.watch is not None else None
        self._is_over.set()

    def __call__(self):
        assert self._is_over.wait(5)


@pytest.fixture
def wait():
    return Wait()


@pytest.fixture
def watching():
    """Makes watches, and ends them."""
    made = []

    def make(*arguments):
        made.append(FailureWatch(*arguments))
        return made[-1]

    yield make
    for watch in made:
        watch.stop()


def rank_of_two(rank, store):
    return DistributedWorld(store, RankInfo(rank, 2, rank, "env://"), {})


def test_a_failure_is_heard_within_two_seconds(wait, watching):
    store = dist.HashStore()
    wait.watch = watch = watching(partial(failure_of_another, store, 0), wait.abort)
    rank_of_two(1, store).fail(ValueError("boom"))
    began = time.monotonic()
    wait()
    assert time.monotonic() - began < 2.0
    assert (watch.failure.rank, watch.failure.told) == (1, "ValueError: boom")


def test_who_is_woken_finds_the_failure(wait, watching):
    error = RankError(1, "boom")
    found = []
    wait.watch = watching(lambda: found.pop() if found else None, wait.abort, SHORT)
    found.append(error)
    wait()
    assert wait.failure_seen is error


def test_it_aborts_once(wait, watching):
    watch = watching(lambda: RankError(1, "boom"), wait.abort, SHORT)
    wait()
    for _ in range(3):
        watch.abort()
    time.sleep(3 * SHORT)
    assert wait.times == 1


def test_who_aborts_first_spares_the_thread(wait, watching):
    watch = watching(lambda: RankError(1, "boom"), wait.abort)
    watch.abort()
    watch.stop()
    assert wait.times == 1


def test_the_main_thread_may_notice_by_itself_before_connections_close(wait, watching):
    """A transfer that is under way would not hear that its connection is closed."""
    watch = watching(lambda: RankError(1, "boom"), wait.abort, SHORT)
    while watch.failure is None:
        time.sleep(SHORT)
    watch.stop()
    assert wait.times == 0


@pytest.mark.parametrize(
    ("seconds_at_work", "is_own"), [(2 * SHORT, True), (60, True), (60, False)]
)
def test_a_failure_in_a_thread_beside_training_ends_what_does_not_notice(
    seconds_at_work, is_own, wait, watching, monkeypatch
):
    monkeypatch.setattr(FailureWatch, "PATIENCE_AT_WORK", seconds_at_work)
    monkeypatch.setattr(FailureWatch, "PATIENCE", SHORT)
    gave_up = []
    watch = watching(lambda: None, wait.abort, SHORT, gave_up.append)
    failure = RankError(0, "bad disk")
    watch.report(failure, is_own=is_own)
    assert watch.failure is failure  # at once, for the next collective of the main thread
    wait()
    watch._thread.join(0.5)
    assert gave_up == ([failure] if seconds_at_work < 1 or not is_own else [])


def test_a_failure_of_its_own_rank_is_not_heard(wait, watching):
    store = dist.HashStore()
    watching(partial(failure_of_another, store, 0), wait.abort, SHORT)
    rank_of_two(0, store).fail(ValueError("mine"))
    time.sleep(5 * SHORT)
    assert wait.times == 0


def test_a_store_that_is_gone_ends_the_watch_and_nothing_else(wait, watching):
    def find():
        raise dist.DistNetworkError("Broken pipe")

    watch = watching(find, wait.abort, SHORT)
    watch._thread.join(5)
    assert not watch._thread.is_alive()
    assert (watch.failure, wait.times) == (None, 0)


def test_it_ends_at_once_when_it_is_told_to(wait):
    watch = FailureWatch(lambda: None, wait.abort, 60.0)
    began = time.monotonic()
    watch.stop()
    watch.stop()
    assert time.monotonic() - began < 1.0
    assert watch._thread not in threading.enumerate()


def test_it_does_not_wait_behind_the_main_thread(wait, watching):
    """A store's connection serves one call at a time, so the watch has one of its own."""
    patience = timedelta(seconds=20)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=patience)
    seen, other = (with_prefix(second_connection(store), "run") for _ in range(2))
    waiting = threading.Thread(target=lambda: store.get("later"))
    waiting.start()
    watch = watching(partial(failure_of_another, seen, 0), wait.abort)
    rank_of_two(1, other).fail(ValueError("boom"))
    wait()
    assert waiting.is_alive()
    assert watch.failure.rank == 1
    other = second_connection(dist.TCPStore("localhost", store.port, is_master=False))
    other.set("later", "now")
    waiting.join(5)
