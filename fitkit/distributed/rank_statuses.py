"""RankStatuses: where the ranks are, as each of them writes it into the store."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from fitkit.distributed.activity import Activity

_QUESTIONS = "questions"  # the key that counts them
_SECONDS_TO_TELL = 1.5
_SECONDS_BETWEEN_STATUSES = 1.0
_FRESH_SECONDS = 3 * _SECONDS_BETWEEN_STATUSES


class RankStatuses:
    """Writes the status of this rank, and reads those of others.

    A rank that is in the same place for some seconds tells where it is; one that is asked does so
    at once, whatever it does. Whoever does not answer is stopped, or its process is gone.

    Args:
        store: a ``LimitedStore``.
        rank: this rank.
        size: the number of ranks.
        activity: what this rank does.
    """

    def __init__(self, store: Any, rank: int, size: int, activity: Activity) -> None:
        self._store, self._rank, self._size, self._activity = store, rank, size, activity
        self._told_at = 0.0
        self._beats: dict[int, tuple[int, float]] = {}
        self._beat = 0
        self._heard = 0  # the last question that this rank has answered
        self._asked: int | None = None  # the number of its own last question

    def tell(self, seconds: float) -> None:
        """Tell where this rank is, if it is asked or has been there for many ``seconds``."""
        heard, now = self._store.add(_QUESTIONS, 0), time.monotonic()
        is_due = bool(self._activity.verbs) and seconds >= _SECONDS_TO_TELL
        if heard > self._heard or (is_due and now - self._told_at >= _SECONDS_BETWEEN_STATUSES):
            self._heard, self._told_at, self._beat = heard, now, self._beat + 1
            self._store.set(f"status/{self._rank}", json.dumps(self.own()))

    def ask(self) -> None:
        """Ask the other ranks where they are."""
        self._asked = self._store.add(_QUESTIONS, 1)

    def has_asked(self) -> bool:
        """Whether this rank has asked before."""
        return self._asked is not None

    def answers(self) -> dict[int, dict[str, Any]]:
        """What the other ranks say that answer the last question and go on to tell; by rank."""
        question = self._asked or 0
        return {
            rank: status
            for rank, status in self.read().items()
            if rank != self._rank and status["heard"] >= question and self.is_fresh(rank)
        }

    def read(self) -> dict[int, dict[str, Any]]:
        """What ranks have told last, those excepted that never did; by rank, this one included."""
        told = {rank: self.of(rank) for rank in range(self._size) if rank != self._rank}
        others = {rank: status for rank, status in told.items() if status is not None}
        return {self._rank: self.own(), **others}

    def own(self) -> dict[str, Any]:
        """What this rank tells."""
        return {**self._activity.status(), "beat": self._beat, "heard": self._heard}

    def of(self, rank: int) -> dict[str, Any] | None:
        """What another rank has told last, if it has."""
        if not self._store.check([f"status/{rank}"]):
            return None
        status: dict[str, Any] = json.loads(self._store.get(f"status/{rank}").decode())
        now, is_answer = time.monotonic(), self.has_asked() and status["heard"] >= self._asked
        unknown = -math.inf
        beat, _ = self._beats.setdefault(rank, (status["beat"], now if is_answer else unknown))
        if beat != status["beat"]:
            self._beats[rank] = status["beat"], now
        return status

    def is_fresh(self, rank: int) -> bool:
        """Whether ``of`` has lately seen that the rank goes on to tell."""
        return time.monotonic() - self._beats[rank][1] < _FRESH_SECONDS
