"""SignalWatch: records signals for the loop, which checks them after each batch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any


class SignalWatch:
    """Records SIGINT, SIGTERM or the given signals inside ``with``.

    Python handlers that the program installed still run, and all handlers are restored at the end.
    A second Ctrl-C raises ``KeyboardInterrupt`` at once. Signals that are ignored, or whose handler
    was not installed from Python and could not be restored, are not watched; nor are any outside of
    the main thread, where Python allows no handlers.

    Attributes:
        received: the first signal, or the one that replaced SIGINT; ``None`` before any.
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
                    signal.signal(number, self._record)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            self._act_as_child(number)
            return
        repeated = self.received is not None
        if not repeated or self.received is signal.SIGINT:  # SIGTERM takes precedence
            self.received = signal.Signals(number)
        previous = self._previous.get(signal.Signals(number))
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)
        elif number == signal.SIGINT and repeated:
            raise KeyboardInterrupt

    def _act_as_child(self, number: int) -> None:
        """A forked data-loading worker inherits the handler, but must react as by default."""
        if number != signal.SIGINT:  # the parent receives Ctrl-C too and ends its workers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
