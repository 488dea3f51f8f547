"""Processes of one start find each other, whatever an earlier start left in the store."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from fitkit.distributed.rendezvous_store import (
    agree_on_prefix,
    second_connection,
    with_prefix,
    without_prefix,
)


def fresh(store, rank, size):
    """The part of the store that the ranks of one start share."""
    return with_prefix(store, agree_on_prefix(store, rank, size))


def start(store, size, order):
    """The stores that the processes of one start get; they come in this order."""
    found = {}
    threads = {
        rank: threading.Thread(
            target=lambda rank=rank: found.update({rank: fresh(store, rank, size)})
        )
        for rank in range(size)
    }
    for rank in order:
        threads[rank].start()
        threads[rank].join(0.1)  # whoever has to wait for others is left to it
    for thread in threads.values():
        thread.join(10)
    assert set(found) == set(range(size))
    return found


@pytest.fixture
def store():
    """One that outlives starts, as the one of torchrun does."""
    return dist.HashStore()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_all_get_the_same_one_in_every_start(store, order):
    for number in range(3):
        found = start(store, 3, order)
        found[0].set("said", str(number))
        assert {one.get("said") for one in found.values()} == {str(number).encode()}


def test_nothing_of_an_earlier_start_is_heard(store):
    first = start(store, 2, [0, 1])
    first[1].set("said", "before")
    second = start(store, 2, [1, 0])
    with pytest.raises(dist.DistStoreError):
        second[0].wait(["said"], timedelta(seconds=0.05))


def test_one_who_died_waiting_is_not_answered_in_the_place_of_the_next(store):
    store.set("fitkit/token", "of an earlier start")
    store.set("of an earlier start/here/1", "dead")
    store.set("of an earlier start/go/1", "dead")
    found = start(store, 2, [1, 0])
    found[0].set("said", "now")
    assert found[1].get("said") == b"now"


def test_one_alone_waits_for_nobody(store):
    fresh(store, 0, 1).set("a", "b")


def test_prefixes_can_be_taken_off(store):
    assert without_prefix(store) is store
    assert without_prefix(with_prefix(with_prefix(store, "a"), "b")) is store


def test_a_connection_of_its_own_says_the_same_and_does_not_wait(store):
    assert second_connection(store) is store  # it has no connections
    first = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    again = second_connection(first)
    first.set("said", "a")
    assert (again is first, again.get("said")) == (False, b"a")
    waiting = threading.Thread(target=lambda: first.get("later"))
    waiting.start()
    waiting.join(0.1)
    began = time.monotonic()
    assert not again.check(["later"])
    assert time.monotonic() - began < 1.0
    again.set("later", "now")
    waiting.join(5)
