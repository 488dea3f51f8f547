"""SignalBytes: the signals that a process received, also while its main thread runs no Python."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress


class SignalBytes:
    """Receives the number of each signal from the interpreter's C handler.

    Python's own handlers run in the main thread between two operations: never while it waits in a
    collective.
    """

    def __init__(self) -> None:
        self._reader: socket.socket | None = None
        self._numbers: frozenset[int] = frozenset()
        self._others = -1
        self._first: tuple[int, float] | None = None
        self._times = 0

    @contextmanager
    def listening(self, signals: Iterable[int]) -> Iterator[None]:
        """Inside ``with`` note these signals; they must have handlers. Only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._first, self._times, self._numbers = None, 0, frozenset(signals)
        self._reader, writer = socket.socketpair()
        with self._reader, writer:
            self._reader.setblocking(False)
            writer.setblocking(False)
            self._others = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(self._others)
                self._others = -1
                self._first = self._reader = None

    def read(self) -> tuple[int, int, float] | None:
        """The signal in force, how often it was sent, and the seconds since; SIGINT gives way."""
        reader = self._reader
        with suppress(OSError):  # there is none, or the main thread has just closed it
            for number in b"" if reader is None else reader.recv(4096):
                self._note(number)
        if self._first is None:
            return None
        return self._first[0], self._times, time.monotonic() - self._first[1]

    def _note(self, number: int) -> None:
        if self._others >= 0:  # as of asyncio
            with suppress(OSError):
                os.write(self._others, bytes([number]))
        if number not in self._numbers:
            return
        if self._first is None or (self._first[0] == signal.SIGINT != number):
            self._first, self._times = (number, time.monotonic()), 0
        if self._first[0] == number:
            self._times += 1
