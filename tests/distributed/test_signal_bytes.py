"""Signals are noted by a thread, whatever the main thread does."""

from __future__ import annotations

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


def test_who_listened_before_still_hears(heard):
    """As asyncio does in a notebook."""
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno())
    try:
        noted = SignalBytes()
        with noted.listening(SIGNALS):
            signal.raise_signal(signal.SIGUSR1)
            noted.read()
        assert reader.recv(8) == bytes([signal.SIGUSR1])
        assert signal.set_wakeup_fd(writer.fileno()) == writer.fileno()
    finally:
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()


def test_outside_of_the_main_thread_nothing_changes():
    noted, found = SignalBytes(), []

    def listen():
        with noted.listening(SIGNALS):
            found.append(noted.read())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [None]
