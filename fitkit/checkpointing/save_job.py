"""SaveRequest and SaveJob: what a saver wishes for, and the wishes of one event on their way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitkit.checkpointing import checkpoint, files
from fitkit.checkpointing.plain import to_plain
from fitkit.runtime.host_copy import HostCopies

if TYPE_CHECKING:
    from fitkit.checkpointing.saver import Saver


Write = Callable[[Any, Path, list[Path]], None]


def write_alone(content: Any, path: Path, also: list[Path]) -> None:
    """Write what one process has all of."""
    files.write(content, path, also)


@dataclass(frozen=True)
class SaveRequest:
    """A saver's wish for one file.

    Attributes:
        saver: who asks.
        path: the file to write.
        step: training batches done.
        score: the monitored value that led to it, or ``None``.
        rank: the value that retention ranks it by, or ``None``.
        is_lasting: retention keeps it for good.
        preempted: the process is about to be ended.
        again: the request was made before a restart, and may have been answered then.
    """

    saver: Saver
    path: Path
    step: int
    score: float | None = None
    rank: float | None = None
    is_lasting: bool = False
    preempted: bool = False
    again: bool = False

    @property
    def weights_only(self) -> bool:
        """Only the model's weights, as they were scored."""
        return self.saver.saves_weights_only

    @property
    def may_wait(self) -> bool:
        """Whether the file may be written behind training."""
        return self.saver.background and not self.preempted and not self.again


@dataclass
class SaveJob:
    """The requests of one event on their way to files.

    Attributes:
        requests: what was asked for.
        before: what each saver knew of its files before.
        write: writes a content to a path, and to further names of it.
        snapshot: the whole state, if a request wants it.
        weights: the model's weights as they were scored, if a request wants them.
        here: a file that holds the whole state already.
        obsolete: files to remove when all others are durable.
        copies: the memory that the state is copied in, if it is.
        taken_at: when the state was taken, in seconds of the monotonic clock.
        written: the files that are durable.
        problems: sentences about files that could not be removed.
        error: why it failed.
        seconds: how long writing took.
    """

    requests: list[SaveRequest]
    before: list[tuple[Saver, dict[str, Any]]]
    write: Write = write_alone
    snapshot: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None
    here: Path | None = None
    obsolete: list[Path] = field(default_factory=list)
    copies: HostCopies | None = None
    taken_at: float = field(default_factory=time.monotonic)
    written: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    error: BaseException | None = None
    seconds: float = 0.0

    def paths(self, *, weights_only: bool) -> list[Path]:
        """Each file of one kind once."""
        same = (one.path for one in self.requests if one.weights_only == weights_only)
        return list(dict.fromkeys(same))

    @property
    def weights_paths(self) -> list[Path]:
        """The files that hold only weights."""
        whole = self.paths(weights_only=False)
        return [path for path in self.paths(weights_only=True) if path not in whole]

    @property
    def wants(self) -> tuple[bool, bool]:
        """Whether a whole state has to be written, and whether weights alone."""
        return bool(self.paths(weights_only=False)) and self.here is None, bool(self.weights_paths)

    def put_back(self) -> None:
        """The savers know of their files what they knew before."""
        for saver, planned in reversed(self.before):
            saver.put_back(planned)

    def take_over(self, old: SaveJob, savers: Mapping[str, Saver]) -> None:
        """Hold the state of another job.

        Args:
            old: the other one.
            savers: those who may know something else of their files now, by their keys in it.
        """
        self.snapshot, self.weights, self.copies = old.snapshot, old.weights, old.copies
        self.taken_at = old.taken_at
        if self.snapshot is None:
            return
        for key, saver in savers.items():
            self.snapshot["callback_states"][key]["state"].update(to_plain(saver.planned()))

    def run(self) -> None:
        """Write every file, then remove what is obsolete; what goes wrong is left in ``error``."""
        began = time.perf_counter()
        try:
            if self.copies is not None:
                self.copies.wait()
            self._write()
            for path in self.obsolete:
                problem = None if path in self.written else checkpoint.remove(path)
                self.problems += [] if problem is None else [problem]
        except BaseException as error:  # noqa: BLE001  raised where training can hear it
            self.error = error
        self.seconds = time.perf_counter() - began

    def _write(self) -> None:
        """Each content is serialized once; further names of it are links or copies."""
        whole = self.paths(weights_only=False)
        if self.here is not None:
            for path in whole:
                checkpoint.duplicate(self.here, path)
        elif whole:
            self.write(self.snapshot, whole[0], whole[1:])
        self.written += whole
        weights = self.weights_paths
        if weights:
            self.write(self.weights, weights[0], weights[1:])
        self.written += weights
