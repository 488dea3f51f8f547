"""HangDetector: finds ranks that wait for each other, and where a rank is that others wait for."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from typing import Any

from fitkit.core.errors import DeadlockError, Preempted, RankError
from fitkit.distributed import failures
from fitkit.distributed.activity import Activity, stack_of_main_thread
from fitkit.distributed.signal_bytes import SignalBytes

_SECONDS_TO_TELL = 1.5
_SECONDS_BETWEEN_STATUSES = 1.0
_SECONDS_TO_LOOK = 2.5
# After a signal that ends the run a rank that waits for others gives up after this time, unless one
# is at work, as for its last save: then it waits, and the launcher decides how long that may take.
_SECONDS_AFTER_SIGNAL = 3.0
# ... and one that may itself be at work, or in a collective that nobody knows of, while no other
# answers.
_SECONDS_AFTER_SIGNAL_ALONE = 20.0
_FRESH_SECONDS = 3 * _SECONDS_BETWEEN_STATUSES


class HangDetector:
    """Called by the watch of a rank, now and then, with a connection to the store of its own.

    While the rank makes progress it does nothing. A rank that is in the same place for some seconds
    writes into the store where it is, and one that waits for others reads that. Ranks that wait in
    different collectives with the same number will wait for ever.

    Args:
        store: its own connection to the store.
        rank: this rank.
        size: the number of ranks.
        activity: what this rank does.
        signals: signals that this process has received.
        polls: look for failures of others also while there is progress, because collectives are
            kernels of a device.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        activity: Activity,
        signals: SignalBytes,
        *,
        polls: bool,
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self.activity, self.signals, self._polls = activity, signals, polls
        self.progress, self._since, self._told_at = -1, 0.0, 0.0
        self._beats: dict[int, tuple[int, float]] = {}
        self._beat = 0

    def find_failure(self) -> RankError | None:
        """The failure of another rank, or a deadlock of all; ``None`` if there is none so far."""
        now, activity = time.monotonic(), self.activity
        if activity.progress != self.progress:
            self.progress, self._since = activity.progress, now
        seconds, signaled = now - self._since, self.signals.read()
        if not self._polls and seconds < _SECONDS_TO_TELL and signaled is None:
            return None
        failure = failures.failure_of_another(self._store, self._rank)
        if failure is not None:
            failures.acknowledge(self._store, self._rank)
        if failure is not None or not activity.verbs:
            return failure
        if seconds >= _SECONDS_TO_TELL and now - self._told_at >= _SECONDS_BETWEEN_STATUSES:
            self._told_at, self._beat = now, self._beat + 1
            status = json.dumps({**activity.status(), "beat": self._beat})
            self._store.set(f"status/{self._rank}", status)
        is_waiting = activity.operation is not None and seconds >= _SECONDS_TO_LOOK
        deadlock = self._find_deadlock() if is_waiting else None
        if deadlock is not None:
            return failures.publish_found(self._store, self._rank, DeadlockError(deadlock))
        if signaled is not None and self._must_end_for(*signaled, seconds):
            name = signal.Signals(signaled[0]).name
            told = f"it received {name} while it waited for other ranks that make no progress"
            return failures.publish_found(self._store, self._rank, RankError(self._rank, told))
        return None

    def end_after_signal(self) -> BaseException | None:
        """How a rank ends that has received a signal and heard of a failure."""
        signaled = self.signals.read()
        if signaled is None:
            return None
        is_interrupt = signaled[0] == signal.SIGINT
        return KeyboardInterrupt() if is_interrupt else Preempted(signaled[0])

    def explain_timeout(self) -> RankError | None:
        """Publish which rank did not come to a collective of this rank that timed out."""
        try:
            absent = find_absent(self.statuses(), self._rank, self._size)
            return absent and failures.publish_found(self._store, self._rank, absent)
        except RuntimeError:  # the store ended with the launcher
            return None

    def statuses(self) -> dict[int, dict[str, Any]]:
        """What ranks have told last, those that make progress excepted; by rank."""
        found = {self._rank: {**self.activity.status(), "beat": self._beat}}
        for rank in range(self._size):
            if rank != self._rank and (status := self._status(rank)) is not None:
                found[rank] = status
        return found

    def _status(self, rank: int) -> dict[str, Any] | None:
        if not self._store.check([f"status/{rank}"]):
            return None
        status: dict[str, Any] = json.loads(self._store.get(f"status/{rank}").decode())
        beat, _ = self._beats.setdefault(rank, (status["beat"], -math.inf))  # of unknown age
        if beat != status["beat"]:
            self._beats[rank] = status["beat"], time.monotonic()
        return status

    def _find_deadlock(self) -> str | None:
        """Look at all ranks, unless a lower one that waits does so: statuses are read by few."""
        for rank in range(self._rank):
            status = self._status(rank)
            if status is not None and status["operation"] is not None and self._is_fresh(rank):
                return None
        return find_deadlock(self.statuses())

    def _is_fresh(self, rank: int) -> bool:
        return time.monotonic() - self._beats[rank][1] < _FRESH_SECONDS

    def _must_end_for(self, number: int, times: int, seconds_since: float, still: float) -> bool:
        """Whether this rank has waited long enough for a common end with the others."""
        if number == signal.SIGINT and times > 1:
            return still > 1.0
        activity = self.activity
        others = [
            status
            for rank, status in self.statuses().items()
            if rank != self._rank and self._is_fresh(rank)
        ]
        if activity.operation is None and not others:
            return min(seconds_since, still) >= _SECONDS_AFTER_SIGNAL_ALONE
        are_all_in_it = len(others) == self._size - 1 and all(
            status["begun"] == activity.begun for status in others
        )
        is_one_at_work = any(status["operation"] is None for status in others)
        if activity.operation is None or is_one_at_work or are_all_in_it:
            return False
        return min(seconds_since, still) >= _SECONDS_AFTER_SIGNAL


def find_deadlock(statuses: dict[int, dict[str, Any]]) -> str | None:
    """What ranks wait in that can never end, because it is different; ``None`` if it may end."""
    for rank, one in statuses.items():
        if one["operation"] is None:
            continue
        for other_rank, other in statuses.items():
            known, begun = other["known"], one["begun"]
            is_forgotten = known and begun < min(map(int, known))
            if other["count"] <= begun or is_forgotten:
                continue  # it may still come to the same collective
            name = known.get(str(begun), "a collective of torch")
            if name != one["operation"]:
                waits = {rank: one["operation"], other_rank: name}
                listed = "; ".join(
                    f"rank {r} waits in {waits.get(r) or statuses[r]['operation'] or 'no call'}, "
                    f"at {statuses[r]['place']}"
                    for r in sorted(statuses)
                )
                return different_calls(listed)
    return None


def different_calls(listed: str) -> str:
    """The message for ranks that are in different calls."""
    return (
        f"the ranks wait for each other in different calls: {listed}. Call what communicates on "
        f"all ranks; evaluate and predict work on one rank in a function of fitkit.on_rank."
    )


def find_absent(statuses: dict[int, dict[str, Any]], rank: int, size: int) -> RankError | None:
    """The failure of the rank for which ``rank`` has waited too long; ``None`` if all have come."""
    mine = statuses[rank]
    for other in range(size):
        status = statuses.get(other)
        if status is None:
            where = "it does not say where it is, so it is stopped, or its machine is lost."
        elif status["count"] < mine["count"]:
            where = f"it is in {status['place']}, at\n{status['stack']}"
        else:
            continue
        return RankError(other, f"rank {rank} waited for it in {mine['place']} too long; {where}")
    return None


def end_process(detector: HangDetector, failure: RankError) -> None:
    """End a rank whose main thread does not come back after a failure, as from its data set."""
    activity = detector.activity
    if not activity.verbs or activity.progress != detector.progress:
        return  # it is not in a call, or has noticed
    sys.stderr.write(
        f"{failure}. This rank did not notice and ends; it was at\n{stack_of_main_thread()}"
    )
    sys.stderr.flush()
    failures.write_error_file(failure)
    signaled = detector.end_after_signal()
    os._exit(1 if signaled is None else getattr(signaled, "code", 130))
