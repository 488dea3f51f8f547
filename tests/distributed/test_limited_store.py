"""Calls of a store end, also where the process that serves it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from fitkit.distributed.limited_store import LimitedStore, StoreSilentError

SERVER = """
import torch.distributed as dist, sys
store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server():
    """The process that serves a store; and its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        yield process, int(process.stdout.readline())
        process.kill()


def stop(process):
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def connect(port):
    return dist.TCPStore("localhost", port, is_master=False, timeout=timedelta(seconds=60))


def test_its_calls_are_those_of_the_store():
    store = LimitedStore(dist.HashStore())
    assert not store.check(["a"])
    store.set("a", "1")
    assert store.check(["a"])
    assert store.get("a") == b"1"
    assert (store.add("n", 0), store.add("n", 2)) == (0, 2)
    assert store.compare_set("b", "", "mine") == b"mine"
    assert store.compare_set("b", "", "later") == b"mine"


def test_an_error_of_the_store_is_raised():
    store = LimitedStore(dist.HashStore())
    with pytest.raises(TypeError):
        store.check([1])


def test_a_stopped_server_is_not_waited_for_and_may_go_on(server):
    process, port = server
    store = LimitedStore(connect(port), seconds=0.3)
    store.set("a", "1")
    stop(process)
    began = time.monotonic()
    for _ in range(20):  # only the first waits
        with pytest.raises(StoreSilentError, match="does not answer"):
            store.check(["a"])
    assert 0.3 <= time.monotonic() - began < 2.0
    os.kill(process.pid, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while True:
        try:
            assert store.get("a") == b"1", "a late answer is not that of a later call"
            break
        except StoreSilentError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_server_that_has_ended_is_another_error(server):
    process, port = server
    store = LimitedStore(connect(port))
    process.kill()
    process.wait()
    with pytest.raises(dist.DistNetworkError):  # the first request may still be sent
        any(store.check(["a"]) for _ in range(3))


def test_an_overdue_call_does_not_keep_the_program_alive(server):
    process, port = server
    store = LimitedStore(connect(port), seconds=0.1)
    stop(process)
    with pytest.raises(StoreSilentError):
        store.check(["a"])
    left = [one for one in threading.enumerate() if one is not threading.main_thread()]
    assert all(one.daemon for one in left)
    os.kill(process.pid, signal.SIGCONT)
    for one in left:
        one.join(10)
