"""SignalBytes: the signals that a process received, also while its main thread runs no Python."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

_own_fds: set[int] = set()


class SignalBytes:
    """Receives the number of each signal from the interpreter's C handler.

    Python's own handlers run in the main thread between two operations: never while it waits in a
    collective.
    """

    def __init__(self) -> None:
        self._listeners: list[_Listener] = []  # of a fit, and of one that its hooks call

    @contextmanager
    def listening(self, signals: Iterable[int]) -> Iterator[None]:
        """Inside ``with`` note these signals; they must have handlers. Only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)
            own, others = writer.fileno(), signal.set_wakeup_fd(-1)
            self._listeners.append(_Listener(reader, frozenset(signals), others))
            _own_fds.add(own)
            signal.set_wakeup_fd(own, warn_on_full_buffer=False)
            try:
                yield
            finally:
                current = signal.set_wakeup_fd(-1)
                with suppress(OSError, ValueError):  # it was closed
                    # the program may have begun to listen inside
                    signal.set_wakeup_fd(others if current in (own, -1) else current)
                self._listeners.pop().read()
                _own_fds.discard(own)

    def read(self) -> tuple[int, int, float] | None:
        """The signal in force, how often it was sent, and the seconds since; SIGINT gives way."""
        listener = self._listeners[-1:]  # the main thread may remove it at any time
        return listener[0].read() if listener else None


class _Listener:
    """Notes signals, and passes all on to ``others``, a file descriptor as of asyncio, or -1."""

    def __init__(self, reader: socket.socket, numbers: frozenset[int], others: int) -> None:
        self._reader, self._numbers, self._others = reader, numbers, others
        self._first: tuple[int, float] | None = None
        self._times = 0

    def read(self) -> tuple[int, int, float] | None:
        with suppress(OSError):  # there is none, or the main thread has just closed the socket
            for number in self._reader.recv(4096):
                self._note(number)
        if self._first is None:
            return None
        return self._first[0], self._times, time.monotonic() - self._first[1]

    def _note(self, number: int) -> None:
        if self._others >= 0:
            with suppress(OSError):
                os.write(self._others, bytes([number]))
        if number not in self._numbers:
            return
        if self._first is None or (self._first[0] == signal.SIGINT != number):
            self._first, self._times = (number, time.monotonic()), 0
        if self._first[0] == number:
            self._times += 1


def _stop_in_child() -> None:
    """A forked process shares the socket: its signals would count as those of its parent."""
    if _own_fds:
        signal.set_wakeup_fd(-1)
        _own_fds.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_stop_in_child)
