"""HangDetector: finds ranks that wait for each other, and where a rank is that others wait for."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from fitkit.core.errors import DeadlockError, Preempted, RankError
from fitkit.distributed import failures
from fitkit.distributed.activity import Activity, stack_of_main_thread
from fitkit.distributed.limited_store import StoreSilentError
from fitkit.distributed.rank_statuses import RankStatuses
from fitkit.distributed.signal_bytes import SignalBytes

_SECONDS_TO_LOOK = 2.5
# A rank that is asked where it is answers when its watch looks into the store the next time, twice
# a second. One that does not answer within this time, also on a busy machine, is stopped or gone.
_SECONDS_TO_ANSWER = 1.5
_SECONDS_BETWEEN_READS = 0.05
# After a signal that ends the run a rank that waits for others gives up after this time, unless one
# is at work, as for its last save: then it waits, and the launcher decides how long that may take.
_SECONDS_AFTER_SIGNAL = 2.0
# ... and one that may itself be at work outside of a training step while no other answers.
_SECONDS_AFTER_SIGNAL_ALONE = 20.0
# gloo does not end each transfer whose connection breaks, as when the other process is killed.
_SECONDS_WITHOUT_CONNECTION = 0.5


class HangDetector:
    """Called by the watch of a rank, now and then.

    Ranks that wait in different collectives with the same number will wait for ever.

    Args:
        store: a ``LimitedStore``.
        rank: this rank.
        size: the number of ranks.
        activity: what this rank does.
        signals: signals that this process has received.
        is_served_by_main: the store is in the process of rank 0, not in that of the launcher.
        is_connected: whether all connections to the other ranks are open.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        activity: Activity,
        signals: SignalBytes,
        *,
        is_served_by_main: bool = True,
        is_connected: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self.activity, self.signals = activity, signals
        self._is_served_by_main, self._is_connected = is_served_by_main, is_connected
        self._has_store = True
        self._statuses = RankStatuses(store, rank, size, activity)
        self.progress, self._since = -1, 0.0

    def find_failure(self) -> RankError | None:
        """The failure of another rank, or a deadlock of all; ``None`` if there is none so far."""
        now, activity = time.monotonic(), self.activity
        if activity.progress != self.progress:
            self.progress, self._since = activity.progress, now
        seconds, signaled = now - self._since, self.signals.read()
        waits = bool(activity.verbs) and (activity.operation is not None or activity.in_step)
        if waits and seconds >= _SECONDS_WITHOUT_CONNECTION and not self._is_connected():
            return self.explain(is_timeout=False)
        if not self._has_store:
            return None
        others: dict[int, dict[str, Any]] = {}
        try:
            failure = self._look(seconds)
            if failure is not None or signaled is None or not activity.verbs:
                return failure
            if not self._statuses.has_asked():
                self._statuses.ask()
            others = self._statuses.answers()
        except StoreSilentError:  # then no other rank answers
            if signaled is None or not activity.verbs:
                return None
        except RuntimeError:  # the process that served the store has ended, perhaps normally
            self._has_store = False
            return None
        if not self._must_end_for(*signaled, seconds, others):
            return None
        silent = [r for r in range(self._size) if r not in others and r != self._rank]
        for_whom = f"rank {silent[0]}, which does not answer" if silent else "the other ranks"
        told = f"it received {signal.Signals(signaled[0]).name} while it waited for {for_whom}"
        return failures.publish_found(self._store, self._rank, RankError(self._rank, told))

    def _look(self, seconds: float) -> RankError | None:
        """Look into the store, and write into it; ``seconds``: since the last progress."""
        failure = failures.failure_of_another(self._store, self._rank)
        if failure is not None:
            failures.acknowledge(self._store, self._rank)
            return failure
        self._statuses.tell(seconds)
        waits = self.activity.verbs and self.activity.operation is not None
        deadlock = self._find_deadlock() if waits and seconds >= _SECONDS_TO_LOOK else None
        if deadlock is None:
            return None
        return failures.publish_found(self._store, self._rank, DeadlockError(deadlock))

    def end_after_signal(self) -> BaseException | None:
        """How a rank ends that has received a signal and heard of a failure."""
        signaled = self.signals.read()
        if signaled is None:
            return None
        return KeyboardInterrupt() if signaled[0] == signal.SIGINT else Preempted(signaled[0])

    def explain(self, *, is_timeout: bool) -> RankError | None:
        """Publish which rank ended a collective of this rank, or did not come to it in time.

        A rank that fails publishes that before its connections close; one that does not answer has
        ended without that.
        """
        rank, size, place = self._rank, self._size, self.activity.place()
        try:
            others = self._ask_all()
            if isinstance(others, RankError):
                return others
            statuses = {**others, rank: self._statuses.own()}
        except RuntimeError:  # the process that serves the store has ended, or is stopped
            if rank == 0 or not self._is_served_by_main:
                return None
            statuses = {}
        absent = find_absent(statuses, rank, size, place, is_timeout=is_timeout)
        return absent and failures.publish_found(self._store, rank, absent)

    def _ask_all(self) -> dict[int, dict[str, Any]] | RankError:
        """What the ranks say that answer in time, or the failure that one has published."""
        deadline, has_asked = time.monotonic() + _SECONDS_TO_ANSWER, False
        while True:
            is_over = time.monotonic() > deadline
            try:
                failure = failures.failure_of_another(self._store, self._rank)
                if failure is not None:
                    return failure
                if not has_asked:
                    self._statuses.ask()
                    has_asked = True
                self._statuses.tell(0.0)  # another rank may ask at the same time
                others = self._statuses.answers()
                if is_over or len(others) == self._size - 1:
                    return others
            except StoreSilentError:
                if is_over:
                    raise
            time.sleep(_SECONDS_BETWEEN_READS)

    def _find_deadlock(self) -> str | None:
        """Look at all ranks, unless a lower one that waits does so: statuses are read by few."""
        for rank in range(self._rank):
            status = self._statuses.of(rank)
            if status is not None and status["operation"] and self._statuses.is_fresh(rank):
                return None
        return find_deadlock(self._statuses.read())

    def _must_end_for(
        self,
        number: int,
        times: int,
        seconds_since: float,
        still: float,
        others: dict[int, dict[str, Any]],
    ) -> bool:
        """Whether this rank has waited long enough for a common end with ``others``."""
        if number == signal.SIGINT and times > 1:
            return still > 1.0
        activity, stays = self.activity, min(seconds_since, still)
        if activity.operation is None and not activity.in_step:
            return not others and stays >= _SECONDS_AFTER_SIGNAL_ALONE
        do_all_answer = len(others) == self._size - 1
        are_all_in_it = all(status["begun"] == activity.begun for status in others.values())
        if do_all_answer and (activity.operation is None or are_all_in_it):
            return False
        for status in others.values():
            # a step needs all ranks, so it does not end where one does not answer
            is_doomed = status["in_step"] and not do_all_answer
            if status["verb"] and status["operation"] is None and not is_doomed:
                return False  # it is at work
        return stays >= _SECONDS_AFTER_SIGNAL


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


def find_absent(
    statuses: dict[int, dict[str, Any]], rank: int, size: int, place: str, *, is_timeout: bool
) -> RankError | None:
    """The failure of the rank that ``rank`` waited for; ``None`` if it cannot be told.

    Args:
        statuses: of the ranks that answer.
        rank: this rank.
        size: the number of ranks.
        place: where it waited.
        is_timeout: it waited too long; else a connection broke.
    """
    waited = f"rank {rank} waited for it in {place}"
    silent = next((one for one in range(size) if one not in statuses), None)
    if silent is not None and is_timeout:
        told = f"{waited} too long; it does not answer: it is stopped or its machine is lost."
        return RankError(silent, told)
    if silent is not None:
        told = "its process has ended without an error, as when it is killed or its script is over"
        return RankError(silent, f"{told}, or its machine is lost; {waited}.")
    for other, status in statuses.items():
        if is_timeout and status["count"] < statuses[rank]["count"]:
            where = f"it is in {status['place']}, at\n{status['stack']}"
            return RankError(other, f"{waited} too long; {where}")
    return None


def end_process(detector: HangDetector, failure: RankError) -> None:
    """End a rank whose main thread does not come back after a failure, as from its data set."""
    activity = detector.activity
    if not activity.verbs or activity.progress != detector.progress:
        return  # it is not in a call, or has noticed
    told, stack = str(failure).rstrip("."), stack_of_main_thread()
    sys.stderr.write(f"{told}. This rank did not notice and ends; it was at\n{stack}")
    sys.stderr.flush()
    failures.write_error_file(failure)
    signaled = detector.end_after_signal()
    os._exit(1 if signaled is None else getattr(signaled, "code", 130))
