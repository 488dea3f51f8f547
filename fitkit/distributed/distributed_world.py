"""DistributedWorld: several ranks, connected by torch's process group."""
# ruff: noqa: D102  the methods are documented in World

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from fitkit.core.errors import ConfigurationError, DeadlockError, Preempted, RankError, add_note
from fitkit.distributed import failures, group_sockets, process_group
from fitkit.distributed.activity import Activity
from fitkit.distributed.alone import require_company
from fitkit.distributed.failure_watch import FailureWatch
from fitkit.distributed.group_world import GroupWorld
from fitkit.distributed.hang_detector import HangDetector, different_calls
from fitkit.distributed.rank_info import RankInfo

_HOST = torch.device("cpu")
# How long a rank that raised waits for the others to raise too, as for a wrong argument.
_SECONDS_TO_RAISE = 1.0


class DistributedWorld(GroupWorld):
    """The ranks of a run that a launcher has started.

    Args:
        store: where the first failure is published.
        info: this rank among the others.
        sockets: the connections of the group for host tensors.
        group: that group; ``None``: the default group.
        timeout: of later groups; ``None``: torch's default.
        watch: detects failures of other ranks while this one waits for them.
        detector: knows where the ranks are, for errors.
        is_side: it is the side group of another.

    Attributes:
        failure: that of the rank that failed first; ``None``: all may go on.
    """

    def __init__(
        self,
        store: Any,
        info: RankInfo,
        sockets: dict[int, str],
        group: Any = None,
        timeout: timedelta | None = None,
        watch: FailureWatch | None = None,
        detector: HangDetector | None = None,
        *,
        is_side: bool = False,
    ) -> None:
        self.rank, self.size, self.local_rank = info.rank, info.size, info.local_rank
        self.group = group
        self._info, self._store, self._sockets = info, store, sockets
        self._detector, self._is_side = detector, is_side
        self._activity = Activity() if detector is None else detector.activity
        self._timeout, self._watch = timeout, watch
        self._side_group: DistributedWorld | None = None
        self._default_group = dist.group.WORLD
        self.failure: RankError | None = None
        self._agreed: BaseException | None = None  # what this rank raised when all did
        self._num_agreed = 0
        self._subgroups: list[Any] = []

    def group_for(self, device: torch.device) -> Any:
        """As in ``World``; raises a ``RankError`` after a failure, and in a call of one rank."""
        self._require_whole("communication")
        require_company("communication")
        if self._watch is not None and self._watch.failure is not None:
            raise self._watch.failure
        return super().group_for(device)

    def _waiting_in(self, name: str) -> AbstractContextManager[Any]:
        return self._activity.inside(name)

    def has_group(self) -> bool:
        """Whether torch's default group is still the one that this world joined."""
        return dist.group.WORLD is self._default_group

    def set_timeout(self, timeout: timedelta) -> None:
        for group in (None, self.group, *self._subgroups):
            process_group.set_timeout(timeout, group)
        if self._side_group is not None:
            self._side_group.set_timeout(timeout)
        self._timeout = timeout

    def subgroup(self, ranks: list[list[int]]) -> Any:
        groups = [process_group.new_host_group(self._timeout, self._sockets, it) for it in ranks]
        (own,) = (group for group, row in zip(groups, ranks, strict=True) if self.rank in row)
        self._subgroups.append(own)
        return own

    def side_group(self) -> DistributedWorld:
        if self._side_group is None:
            sockets: dict[int, str] = {}
            group = process_group.new_host_group(self._timeout, sockets)
            self._side_group = DistributedWorld(
                self._store, self._info, sockets, group, self._timeout, self._watch, is_side=True
            )
            self._sockets.update(sockets)
        return self._side_group

    @contextmanager
    def call(self, verb: str, *, meets: bool = True) -> Iterator[None]:
        self._require_whole(verb)
        require_company(verb)
        self._activity.verbs.append(verb)
        try:
            if meets:
                # a barrier cannot be mixed up with what ranks do that do not call the verb
                self._communicate("barrier", dist.barrier)
                self._require_same(verb)
            yield
        except (Preempted, GeneratorExit):  # agreed on by all ranks; or the caller takes no more
            raise
        except BaseException as error:
            first = self.first_error(error)
            if first is error:
                raise
            raise first from error
        finally:
            self._activity.verbs.remove(verb)  # a generator may end after a later call began
            if not self._activity.verbs:
                self._agreed = None  # its traceback holds what the call has made

    def _require_same(self, verb: str) -> None:
        """Raise ``DeadlockError`` on all ranks if they have come together in different calls."""
        code = zlib.crc32(verb.encode())
        largest, smallest = self.largest([code, -code])
        if largest != -smallest:
            verbs = enumerate(self.gather_all(verb))
            listed = "; ".join(f"rank {rank} waits in {name} (barrier)" for rank, name in verbs)
            raise DeadlockError(different_calls(listed))

    def first_error(self, error: BaseException) -> BaseException:
        if self.is_broken or error is self._agreed:
            return error
        try:
            if not process_group.is_raised_by_group(error) and self._all_have_raised():
                self._agreed = error
                return error
        except BaseException as later:  # noqa: BLE001  as a second Ctrl-C, or another's failure
            add_note(error, f"then {failures.describe(later)}")
        return self.fail(error)

    def _all_have_raised(self) -> bool:
        """Whether all ranks raise at this point; none waits for long for one that does not."""
        if self._watch is not None and self._watch.failure is not None:
            return False
        where = repr((process_group.sequence_numbers(self.group), self._num_agreed))
        if not failures.all_ranks_raised(self._store, where, self.size, _SECONDS_TO_RAISE):
            return False
        self._num_agreed += 1
        self._communicate("barrier", dist.barrier)  # shows that the group is whole
        return True

    def locate(self, position: Callable[[], str]) -> None:
        self._activity.position = position

    def listening(self, signals: Iterable[int]) -> AbstractContextManager[None]:
        detector = self._detector
        return nullcontext() if detector is None else detector.signals.listening(signals)

    def in_step(self) -> AbstractContextManager[None]:
        self.group_for(_HOST)  # raises after a failure
        return self._activity.step()

    def fail(self, error: BaseException) -> BaseException:
        """Publish the failure and close the connections, which ends collectives of other ranks.

        They learn of it within milliseconds instead of after the timeout.
        """
        if self.is_broken:
            return error
        self.is_broken = True
        first = error if isinstance(error, RankError) else self._cause_of(error)
        if first is None:
            first = failures.publish(self._store, self.rank, error)
        elif first is error:
            failures.publish_found(self._store, self.rank, first)
        # before another thread of this rank wakes and asks for it
        self.failure = first or RankError(self.rank, failures.describe(error))
        failures.acknowledge(self._store, self.rank)
        self._disconnect(self.failure)  # later: whoever that wakes looks for the failure
        if isinstance(error, Exception):  # Ctrl-C and sys.exit here follow from no other failure
            error = first or error
        failures.write_error_file(error)
        signaled = self._detector.end_after_signal() if first and self._detector else None
        if signaled is not None:
            add_note(signaled, str(first))
        return signaled or error

    def _disconnect(self, failure: RankError) -> None:
        """Close the connections; a thread in the side group leaves others to the one that trains.

        It may be in a collective that the others have almost finished.
        """
        if self._watch is not None and self._is_side:
            self._watch.report(failure, is_own=failure.rank == self.rank)
        elif self._watch is not None:
            self._watch.stop()
            self._watch.abort()  # else a later copy from the device would wait for the others
        group_sockets.shut_down(self._sockets)

    def _cause_of(self, error: BaseException) -> RankError | None:
        """The failure of another rank that ended a collective of this one, if so."""
        if self._watch is not None and self._watch.failure is not None:
            return self._watch.failure
        if self._side_group is not None and self._side_group.is_broken:  # in a thread of this rank
            return self._side_group.failure
        if self._detector is None or not process_group.is_raised_by_group(error):
            return None
        return self._detector.explain(is_timeout="imed out" in str(error))

    def _require_whole(self, verb: str) -> None:
        """Raise a ``RankError`` if a rank has failed, or an error if the group is gone."""
        if not self.has_group():
            raise ConfigurationError(
                f"{verb} needs all ranks, but the process group that this handler joined has been "
                f"destroyed: create a new handler after init_process_group."
            )
        if self.failure is not None:
            raise failures.later(self.failure, verb)

    def leave(self, *, is_ours: bool) -> None:
        """Destroy the process groups at the end of the program.

        Args:
            is_ours: fitkit created the default group; else it destroys only its additional groups.
        """
        if self.is_broken and self.rank == 0:  # the store may be in this process
            failures.wait_until_acknowledged(self._store, self.size)
        if self._watch is not None:
            self._watch.stop()
            if self.is_broken or self._watch.failure is not None:
                self._watch.abort()  # destroying NCCL's communicators would wait for the others
        if dist.is_initialized():
            if is_ours and self.has_group():
                dist.destroy_process_group()
            else:
                for group in self._subgroups:
                    process_group.destroy(group)
                for world in (self._side_group, self):
                    if world is not None and world.group is not None:
                        process_group.destroy(world.group)
                        world.group = None
        # an object that still holds this world must not keep the threads of its groups alive
        self.group = self._side_group = self._default_group = None
        self._subgroups.clear()
        if not self.is_broken:
            # an iterator of a DataLoader that it finds would wait five seconds for its workers,
            # which the end of the process stops at once
            gc.collect()
