"""Signals: the handler only notes that one came; the loop acts at the next batch's end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any


class SignalWatch:
    """Inside ``with``, notes SIGINT and SIGTERM (and others asked for).

    A handler that the program had installed still runs, and every handler is put back at the end.
    A second Ctrl-C interrupts at once. A signal that is ignored, or whose handler was not installed
    from Python and so could not be put back, is left alone. Outside the main thread, where Python
    allows no handlers, it watches nothing.

    Attributes:
        received: the first signal that came, one that ends the process before Ctrl-C; or ``None``.
    """

    def __init__(self, signals: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self._signals = tuple(signals)
        self._previous: dict[signal.Signals, Any] = {}
        self._owner = os.getpid()
        self.received: signal.Signals | None = None

    def __enter__(self) -> SignalWatch:
        self._owner = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                previous = signal.getsignal(number)
                if previous is not None and previous is not signal.SIG_IGN:
                    self._previous[number] = previous
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            self._act_as_child(number)
            return
        repeated = self.received is not None
        if not repeated or self.received is signal.SIGINT:  # the end of the process goes first
            self.received = signal.Signals(number)
        previous = self._previous.get(signal.Signals(number))
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)
        elif number == signal.SIGINT and repeated:
            raise KeyboardInterrupt

    def _act_as_child(self, number: int) -> None:
        """A forked worker inherits this handler but none of its meaning."""
        if number != signal.SIGINT:  # Ctrl-C reaches the parent, which ends its workers itself
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
