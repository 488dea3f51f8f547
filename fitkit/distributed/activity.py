"""Activity: what this rank does, as its watch tells the other ranks."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

_NUM_REMEMBERED = 256
# The innermost frames say where a rank is; those of the launcher and the loop do not help.
_NUM_FRAMES = 12


class Activity:
    """The verbs and collectives that this rank is in; ``with operation(...)`` surrounds one.

    Written by the thread that trains, and read by the watch.

    Args:
        count: how many collectives this rank has begun in the group of the operations; ``None``:
            torch does not count them, so operations are counted.

    Attributes:
        verbs: the methods of a handler that are being called, such as ``fit``.
        position: describes where the run is, such as its step.
        progress: grows with each verb and operation that begins or ends.
        operation: the collective that this rank waits in, or ``None``.
        begun: the collectives that it has begun before that.
        in_step: it computes a training step, or waits in a collective of torch that belongs to it.
    """

    def __init__(self, count: Callable[[], int] | None = None) -> None:
        self.verbs: list[str] = []
        self.position: Callable[[], str] = lambda: ""
        self.progress = 0
        self.operation: str | None = None
        self.begun = 0
        self.in_step = False
        self._num_operations = 0
        self._count = count or self._operations_begun
        self._known: dict[int, str] = {}

    def inside(self, operation: str) -> Activity:
        """Begin an operation, which ``with`` ends."""
        self.begun = self._count()
        name = f"{self.verbs[-1]} ({operation})" if self.verbs else operation
        self._known[self.begun] = name
        if len(self._known) > _NUM_REMEMBERED:
            del self._known[next(iter(self._known))]
        self.operation = name
        self._num_operations += 1
        self.progress += 1
        return self

    def _operations_begun(self) -> int:
        return self._num_operations

    def __enter__(self) -> Activity:
        return self

    def __exit__(self, *error: object) -> None:
        self.operation = None
        self.progress += 1

    def status(self) -> dict[str, Any]:
        """What the other ranks may read."""
        return {
            "operation": self.operation,
            "begun": self.begun,
            "count": self._count(),
            "known": {str(index): name for index, name in list(self._known.items())},
            "verb": bool(self.verbs),
            "in_step": self.in_step,
            "place": self.place(),
            "stack": stack_of_main_thread(),
        }

    def place(self) -> str:
        """Where the run is, such as ``fit, epoch 0, step 4``."""
        return ", ".join([*self.verbs[-1:], *filter(None, [self.position()])]) or "no verb"

    def step(self) -> AbstractContextManager[None]:
        """Inside ``with`` it is in a training step."""
        return _InStep(self)


class _InStep:
    """Enters twice in each training step, so it is no generator, which takes longer."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity

    def __enter__(self) -> None:
        self._activity.in_step = True

    def __exit__(self, *exc_info: object) -> None:
        self._activity.in_step = False


def stack_of_main_thread() -> str:
    """The innermost Python frames of the main thread."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
    lines = traceback.format_stack(frame)[-_NUM_FRAMES:] if frame is not None else []
    return "".join(lines)
