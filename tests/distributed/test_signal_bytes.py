"""Signals are noted by a thread, whatever the main thread does."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

import pytest

from fitkit.distributed.signal_bytes import SignalBytes

SIGNALS = (signal.SIGUSR1, signal.SIGINT)


@pytest.fixture
def heard(monkeypatch):
    """Python's handlers note what they are called for, and do nothing else."""
    found = []
    before = {n: signal.signal(n, lambda number, frame: found.append(number)) for n in SIGNALS}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_and_its_times(heard):
    noted = SignalBytes()
    with noted.listening(SIGNALS):
        assert noted.read() is None
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        number, times, seconds = noted.read()
        assert (number, times) == (signal.SIGUSR1, 2)
        assert 0 <= seconds < 5
        time.sleep(0.01)
        assert noted.read()[2] > seconds
    assert noted.read() is None
    assert heard == [signal.SIGUSR1] * 2


def test_an_interrupt_gives_way_to_the_end(heard):
    noted = SignalBytes()
    with noted.listening(SIGNALS):
        signal.raise_signal(signal.SIGINT)
        assert noted.read()[0] == signal.SIGINT
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        assert noted.read()[:2] == (signal.SIGUSR1, 1)


def test_other_signals_are_not_noted(heard):
    noted = SignalBytes()
    with noted.listening([signal.SIGTERM]):
        signal.raise_signal(signal.SIGUSR1)
        assert noted.read() is None


@pytest.fixture
def listener():
    """A program that listens to signals, as asyncio does in a notebook."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno())
        yield reader
        signal.set_wakeup_fd(before)


def test_who_listened_before_still_hears(heard, listener):
    noted = SignalBytes()
    with noted.listening(SIGNALS):
        signal.raise_signal(signal.SIGUSR1)
        noted.read()
        assert listener.recv(8) == bytes([signal.SIGUSR1])
    signal.raise_signal(signal.SIGUSR1)
    assert listener.recv(8) == bytes([signal.SIGUSR1])


def test_outside_of_the_main_thread_nothing_changes():
    noted, found = SignalBytes(), []

    def listen():
        with noted.listening(SIGNALS):
            found.append(noted.read())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [None]


def test_a_fit_inside_of_another_leaves_it_listening(heard):
    noted = SignalBytes()
    with noted.listening(SIGNALS):
        with noted.listening([signal.SIGUSR1]):
            signal.raise_signal(signal.SIGUSR1)
            assert noted.read()[:2] == (signal.SIGUSR1, 1)
        signal.raise_signal(signal.SIGINT)
        assert noted.read()[:2] == (signal.SIGUSR1, 1)  # the outer one heard it too
    assert noted.read() is None


def test_a_forked_process_tells_its_parent_of_no_signal(heard):
    """As a worker of a DataLoader on Ctrl-C, which the whole process group receives."""
    noted = SignalBytes()
    with noted.listening(SIGNALS):
        pid = os.fork()
        if pid == 0:
            signal.raise_signal(signal.SIGINT)
            os._exit(0)
        os.waitpid(pid, 0)
        assert noted.read() is None


def test_who_listened_before_hears_what_nobody_has_read_at_the_end(heard, listener):
    with SignalBytes().listening(SIGNALS):
        signal.raise_signal(signal.SIGUSR1)
    assert listener.recv(8) == bytes([signal.SIGUSR1])


def test_who_began_to_listen_inside_still_hears(heard, listener):
    """As asyncio.run in a hook."""
    own = signal.set_wakeup_fd(-1)
    with SignalBytes().listening(SIGNALS):
        signal.set_wakeup_fd(own)
    assert signal.set_wakeup_fd(own) == own


def test_who_listened_before_may_have_closed_inside(heard):
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        with reader, SignalBytes().listening(SIGNALS):
            writer.close()
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(before)
