"""LimitedStore: a store whose calls end also where the process that serves it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any


class StoreSilentError(RuntimeError):
    """The process that serves the store does not answer: it is stopped, or its machine is lost."""


class LimitedStore:
    """Those calls of a store that do not wait for other ranks, each with a limit.

    torch limits how long it waits for a key, and not for the server: one that is stopped keeps the
    connection open and never answers. So each call runs in a thread. While one is overdue, others
    raise at once; when the server goes on, so does this.

    Args:
        store: a connection that nobody else waits in.
        seconds: after which a call raises ``StoreSilentError``.
    """

    def __init__(self, store: Any, seconds: float = 1.0) -> None:
        self._store, self._seconds = store, seconds
        self._overdue: futures.Future[Any] | None = None

    def check(self, keys: list[str]) -> bool:
        """Whether all ``keys`` are there."""
        return bool(self._call(self._store.check, keys))

    def get(self, key: str) -> bytes:
        """The value of a key that is there."""
        return bytes(self._call(self._store.get, key))

    def set(self, key: str, value: str) -> None:
        """Set a value."""
        self._call(self._store.set, key, value)

    def add(self, key: str, amount: int) -> int:
        """Add to a counter, which begins at 0; its new value."""
        return int(self._call(self._store.add, key, amount))

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        """Set a value if the present one is as expected, ``""`` for none; the value then."""
        return bytes(self._call(self._store.compare_set, key, expected, value))

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._overdue is None or self._overdue.done():
            self._overdue = None
            answer: futures.Future[Any] = futures.Future()
            # a daemon, because the end of the program must not wait for it
            threading.Thread(target=_answer, args=(answer, function, args), daemon=True).start()
            try:
                return answer.result(self._seconds)
            except futures.TimeoutError:
                self._overdue = answer
        raise StoreSilentError("the process that serves the store of the ranks does not answer.")


def _answer(answer: futures.Future[Any], function: Callable[..., Any], args: Any) -> None:
    try:
        answer.set_result(function(*args))
    except BaseException as error:  # noqa: BLE001  raised by the caller
        answer.set_exception(error)
