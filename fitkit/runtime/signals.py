"""SignalWatch: records signals for the loop, which checks them after each batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

_CAN_TELL_SENDERS = hasattr(signal, "sigwaitinfo")  # not on macOS and Windows


class SignalWatch:
    """Records SIGINT, SIGTERM or the given signals inside ``with``.

    Python handlers that the program installed still run, and all handlers are restored at the end.
    A second Ctrl-C raises ``KeyboardInterrupt`` at once. Signals that are ignored, or whose handler
    was not installed from Python and could not be restored, are not watched; nor are any outside of
    the main thread, where Python allows no handlers.

    Attributes:
        received: the first signal, or the one that replaced SIGINT; ``None`` before any.
        is_answered: whether the run has ended for it. A signal that comes too late for that is sent
            again when the program's own handlers are back.
    """

    def __init__(self, signals: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self._signals = tuple(signals)
        self._previous: dict[signal.Signals, Any] = {}
        self._owner = os.getpid()
        self.received: signal.Signals | None = None
        self.is_answered = False

    def __enter__(self) -> SignalWatch:
        self._owner = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                previous = signal.getsignal(number)
                if previous is not None and previous is not signal.SIG_IGN:
                    self._previous[number] = previous
                    signal.signal(number, self._record)
        return self

    def __exit__(self, error_type: type[BaseException] | None, *exc_info: object) -> None:
        previous, self._previous = self._previous, {}
        for number, handler in previous.items():
            signal.signal(number, handler)
        if self.received is None or self.is_answered or error_type is not None:
            return
        if previous[self.received] in (signal.SIG_DFL, signal.default_int_handler):
            signal.raise_signal(self.received)  # a handler of the program was called at once

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            self._act_as_child(number)
            return
        repeated = self.received is not None
        # SIGTERM takes precedence
        if not repeated or (self.received is signal.SIGINT and number != signal.SIGINT):
            self.received, self.is_answered = signal.Signals(number), False
        previous = self._previous.get(signal.Signals(number))
        if callable(previous) and previous is not signal.default_int_handler:
            previous(number, frame)
        elif number == signal.SIGINT and repeated:
            self.is_answered = self.received is signal.SIGINT
            raise KeyboardInterrupt

    def _act_as_child(self, number: int) -> None:
        """A forked data-loading worker inherits the handler, but must react as by default."""
        if number != signal.SIGINT:  # the parent receives Ctrl-C too and ends its workers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def watched_signals() -> list[signal.Signals]:
    """The signals that a ``SignalWatch`` of this process records now."""
    handlers = {number: signal.getsignal(number) for number in signal.Signals}
    return [
        number
        for number, handler in handlers.items()
        if isinstance(getattr(handler, "__self__", None), SignalWatch)
    ]


@contextmanager
def signals_blocked(signals: Iterable[int]) -> Iterator[None]:
    """Inside ``with`` these signals wait, also in the processes that are started."""
    if not _CAN_TELL_SENDERS:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent(signals: Iterable[int]) -> None:
    """In a worker: of these signals heed only those that the process that started it sends.

    A signal to a whole process group reaches the workers too, but the parent needs them until it
    has finished its batch. When it is done, it ends them; when it is gone, torch does.
    """
    ended_by = set(signals) - {signal.SIGINT}
    # Ctrl-C has a handler, because programs that a worker starts would inherit SIG_IGN
    signal.signal(signal.SIGINT, _leave_ctrl_c_to_parent)
    if _CAN_TELL_SENDERS:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        signal.pthread_sigmask(signal.SIG_BLOCK, ended_by)
        unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, ended_by)
        os.register_at_fork(after_in_child=unblock)
        # a handler could not tell who sent the signal, and would wait for the end of an operation
        threading.Thread(target=_obey_parent, args=(ended_by,), daemon=True).start()


def _obey_parent(signals: set[int]) -> None:
    parent, started_by = multiprocessing.parent_process(), os.getppid()
    while True:
        sender = signal.sigwaitinfo(signals).si_pid
        # a fork server starts workers for another process, which is their parent
        is_orphan = parent is None or (started_by == parent.pid and os.getppid() != started_by)
        if parent is None or is_orphan or sender == parent.pid:
            os._exit(0)  # as the handler that torch installs


def _leave_ctrl_c_to_parent(number: int, frame: FrameType | None) -> None:
    """The parent receives it too, and ends its workers."""
