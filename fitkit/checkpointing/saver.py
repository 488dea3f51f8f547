"""Savers ask; at the end of the event one snapshot is taken, and it serves them all."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fitkit.checkpointing import files
from fitkit.core.callback import Callback
from fitkit.core.errors import Preempted, add_note

PREEMPTED_NAME = "preempted.pth"


@dataclass(frozen=True)
class SaveRequest:
    """A saver's wish for one file.

    Attributes:
        saver: who asks.
        path: the file to write.
        weights_only: only the model's weights, as they were scored.
        score: the monitored value that led to it, or ``None``.
        preempted: the process is about to be ended.
        again: the request was made before a restart, and may have been answered then.
    """

    saver: Saver
    path: Path
    weights_only: bool = False
    score: float | None = None
    preempted: bool = False
    again: bool = False


class Saver(Callback):
    """What ModelCheckpoint and AutoSaver share: asking, and remembering what was written.

    Files are remembered relative to ``folder``, so that a run's folder can be moved.
    """

    order = 60
    spans_fits = True
    writes_files = True
    state_fields: ClassVar[tuple[str, ...]] = (
        "last_path",
        "last_step",
        "preempted_path",
        "asked",
        "writing",
        "dropping",
    )

    last_path: str | None = None
    last_step: int = -1
    preempted_path: str | None = None
    # What was asked for and not yet answered, and what the save under way writes and lets go. A
    # snapshot holds it, so that a resume from one file finishes what was left undone.
    asked: tuple[tuple[str, float | None, bool], ...] = ()
    writing: tuple[str, ...] = ()
    dropping: tuple[str, ...] = ()
    saves_weights_only: bool = False

    @property
    def folder(self) -> Path:
        """The folder below which this saver writes."""
        raise NotImplementedError

    @property
    def folders(self) -> list[Path]:
        """``folder``, and those below it that hold files of this saver."""
        return [self.folder]

    def ask(self, path: Path, *, score: float | None = None, preempted: bool = False) -> None:
        """Ask for ``path`` to be written when all callbacks have heard the current event.

        The same file is written at most once per step.
        """
        if (
            self.last_step == self.handler.state.global_step
            and self._absolute(self.last_path) == path
        ):
            return
        self.asked = (*self.asked, (self._relative(path), score, preempted))
        self.handler.request_save(
            SaveRequest(self, path, self.saves_weights_only, score, preempted)
        )

    def ask_again(self) -> None:
        """After a restart, ask for what was asked for, or being written, when the file was made."""
        for name in self.writing:
            path = self.folder / name
            self.handler.request_save(SaveRequest(self, path, self.saves_weights_only, again=True))
        asked, self.asked = self.asked, ()
        for name, score, preempted in asked:
            self.ask(self.folder / name, score=score, preempted=preempted)

    def plan(self, request: SaveRequest) -> None:
        """Become what this saver is once the file is there.

        It must not change containers in place: the state before is put back if the write fails.
        """
        name = self._relative(request.path)
        self.writing = (*self.writing, name)
        self._drop(self.preempted_path)
        self.preempted_path = name if request.preempted else None
        if not request.preempted:
            self.last_path = name
            self.last_step = self.handler.state.global_step

    def _drop(self, name: str | None) -> None:
        """Let a file go that this saver wrote, once the new one is durable."""
        if name is not None:
            self.dropping = (*self.dropping, name)

    def finish(self, written: Collection[Path]) -> None:
        """The files are durable: let go of what is obsolete."""
        for name in self.dropping:
            if self.folder / name not in written:
                files.remove(self.folder / name)
        self.asked, self.writing, self.dropping = (), (), ()

    def on_exception(self, error: BaseException) -> None:
        """Before the process is ended, one saver writes where the run stands."""
        # an event that an error cut short was not heard by all: nobody could resume from it exactly
        self.handler.withdraw_saves(self)
        can_resume = isinstance(error, Preempted) and not self.saves_weights_only
        if can_resume and not self.handler.save_is_requested:
            self.ask(self.folder / PREEMPTED_NAME, preempted=True)

    def _relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def _absolute(self, name: str | None) -> Path | None:
        return None if name is None else self.folder / name


class SaveQueue:
    """The requests of one event, and how they become files.

    Args:
        take_snapshot: the whole state, as it is written.
        take_weights: the model's weights as they were scored.
        is_current: whether a file holds the handler's state at the place where it stands now.
        announce: told each path once it is durable.
    """

    def __init__(
        self,
        take_snapshot: Callable[[], dict[str, Any]],
        take_weights: Callable[[], dict[str, Any]],
        is_current: Callable[[Path], bool],
        announce: Callable[[Path], None],
    ) -> None:
        self._take_snapshot = take_snapshot
        self._take_weights = take_weights
        self._is_current = is_current
        self._announce = announce
        self._requests: list[SaveRequest] = []

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: SaveRequest) -> None:
        """Take a request; ``settle`` answers it."""
        self._requests.append(request)

    def withdraw(self, saver: Saver) -> None:
        """Forget what ``saver`` has asked for."""
        self._requests = [request for request in self._requests if request.saver is not saver]

    def settle(self) -> None:
        """Write what was asked for, then let obsolete files go, then tell everybody.

        Raises:
            SaveError: a file could not be written; the savers are as they were before they asked.
        """
        if not self._requests:
            return
        requests, self._requests = self._requests, []
        for request in requests:
            request.saver.asked = ()
        before = [(request.saver, request.saver.state_dict()) for request in requests]
        try:
            for request in requests:
                if not request.again:
                    request.saver.plan(request)
            written = self._write(requests)
        except BaseException as error:
            for saver, state in reversed(before):
                saver.load_state_dict(state)
            add_note(error, "the savers' own state is as it was before this save")
            raise
        for request in requests:
            request.saver.finish(written)
        for path in written:
            self._announce(path)

    def _write(self, requests: list[SaveRequest]) -> list[Path]:
        """Each content is serialized once; further names of it are links or copies."""
        written: list[Path] = []
        for weights_only, take in ((False, self._take_snapshot), (True, self._take_weights)):
            same = [r for r in requests if r.weights_only == weights_only]
            paths = [p for p in dict.fromkeys(r.path for r in same) if p not in written]
            here = [
                r.path for r in same if r.again and not weights_only and self._is_current(r.path)
            ]
            missing = [path for path in paths if path not in here]
            if missing and not here:
                files.write(take(), missing[0])
                here = [missing.pop(0)]
            for path in missing:
                files.duplicate(here[0], path)
            written += paths
        return written
