"""Saver: what ModelCheckpoint and AutoSaver share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from fitkit.checkpointing import files
from fitkit.checkpointing.cadence import Cadence
from fitkit.checkpointing.naming import require_inside
from fitkit.checkpointing.retention import Retention
from fitkit.checkpointing.save_job import SaveRequest
from fitkit.core.callback import Callback
from fitkit.core.errors import CheckpointError, ConfigurationError, Preempted

PREEMPTED_NAME = "preempted.pth"


class Saver(Callback):
    """What ModelCheckpoint and AutoSaver share: asking, and remembering what was written.

    Files are remembered relative to ``folder``, so that a run's folder can be moved.

    Args:
        on_error: ``"raise"``: a save that fails ends training with a ``SaveError``; ``"warn"``: it
            is a warning, and training goes on. In both cases earlier files are whole, and this
            saver is as it was before.
        background: write behind training, which waits only for a copy of the state in memory. While
            one save is under way another may wait; a newer one takes the waiting one's place
            unless that was a better or a lasting one. ``fit`` returns when all are done.
        max_overhead: the largest share of wall time, in ``(0, 1)``, that saving may cost.

    Attributes:
        retention: which files are kept; ``None``: all of them.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    order = 60
    spans_fits = True
    writes_files = True
    state_fields: ClassVar[tuple[str, ...]] = (
        "last_path",
        "last_step",
        "preempted_path",
        "kept",
        "asked",
        "writing",
        "dropping",
    )
    # The part of the state that describes files; it is put back when a save fails.
    planned_fields: ClassVar[tuple[str, ...]] = state_fields

    saves_weights_only: bool = False

    def __init__(
        self,
        *,
        on_error: str = "raise",
        background: bool | None = None,
        max_overhead: float | None = None,
    ) -> None:
        if on_error not in ("raise", "warn"):
            raise ConfigurationError(f"on_error must be 'raise' or 'warn', received {on_error!r}.")
        if background not in (None, True, False):
            raise ConfigurationError(f"background must be True or False, received {background!r}.")
        self.retention: Retention | None = None
        self.on_error = on_error
        self.background = bool(background)
        self._cadence = None if max_overhead is None else Cadence(max_overhead)
        self.last_path: str | None = None
        self.last_step = -1
        self.preempted_path: str | None = None
        self.kept: list[list[Any]] = []  # [name, rank] of each file, the oldest first
        # What was asked for and not yet answered, and what the save under way writes and lets go.
        # A snapshot holds it, so that a resume from one file finishes what was left undone.
        self.asked: tuple[dict[str, Any], ...] = ()
        self.writing: tuple[str, ...] = ()
        self.dropping: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder below which this saver writes."""
        raise NotImplementedError

    @property
    def folders(self) -> list[Path]:
        """``folder``, and those below it that hold files of this saver."""
        return [self.folder]

    # ---- asking ---------------------------------------------------------------------------------

    def ask(
        self,
        path: Path,
        *,
        score: float | None = None,
        logs: Mapping[str, float] | None = None,
        epochs_done: int | None = None,
        preempted: bool = False,
    ) -> None:
        """Ask for ``path`` to be written when all callbacks have heard the current event.

        The same file is written at most once per step.

        Args:
            path: the file.
            score: the monitored value that led to it.
            logs: values for ranking.
            epochs_done: at the end of an epoch, its number from 1.
            preempted: the process is about to be ended.
        """
        details = {
            "score": score,
            "rank": self._rank(logs or {}, at_end=epochs_done is not None),
            "is_lasting": self.retention is not None and self.retention.is_lasting(epochs_done),
            "preempted": preempted,
        }
        self._request(path, details)

    def _request(self, path: Path, details: dict[str, Any]) -> None:
        step = self.handler.state.global_step
        if self.last_step == step and self._absolute(self.last_path) == path:
            return
        self.asked = (*self.asked, {"name": self._relative(path), **details})
        self.handler.saves.add(SaveRequest(self, path, step, **details))

    def _rank(self, logs: Mapping[str, float], *, at_end: bool) -> float | None:
        judge = None if self.retention is None else self.retention.judge
        if judge is None:
            return None
        return judge.read(logs, self.params, self.name) if at_end else logs.get(judge.name)

    def ask_again(self) -> None:
        """After a restart, ask for what was asked for, or being written, when the file was made."""
        step = self.handler.state.global_step
        for name in self.writing:
            if self._may_write_again(name):
                self.handler.saves.add(SaveRequest(self, self.folder / name, step, again=True))
        asked, self.asked = self.asked, ()
        for details in asked:
            if self._may_write_again(details["name"]):
                kept = {key: value for key, value in details.items() if key != "name"}
                self._request(self.folder / details["name"], kept)

    def _may_write_again(self, name: str) -> bool:
        """A checkpoint decided on this name: it must not cost a file of somebody else's."""
        path = self.folder / name
        if self.saves_weights_only and self.handler.saves.is_origin(path):
            return False
        return not path.exists() or files.is_checkpoint_like(path)

    def on_exception(self, error: BaseException) -> None:
        """Before the process is ended, one saver writes where the run stands."""
        # an event that an error cut short was not heard by all: nobody could resume from it exactly
        self.handler.saves.withdraw(self)
        self.asked = ()
        can_resume = isinstance(error, Preempted) and not self.saves_weights_only
        if can_resume:  # every process has the same signal
            self.handler.saves.meet()
        if can_resume and not len(self.handler.saves):
            self.ask(self.folder / PREEMPTED_NAME, preempted=True)

    def begin_measuring(self) -> None:
        """A call of ``fit`` begins; costs are counted from here."""
        if self._cadence is not None:
            # optimizers keep up to two values for each weight
            self._cadence.begin(3 * sum(one.nbytes for one in self.model.parameters()))

    def fits_into_overhead(self) -> bool:
        """Whether ``max_overhead`` allows a save now."""
        if self._cadence is None:
            return True
        return self._cadence.is_due(self.handler.saves) and not self.handler.saves.is_busy

    # ---- what is on disk ------------------------------------------------------------------------

    def planned(self) -> dict[str, Any]:
        """The part of the state that describes files."""
        return {name: getattr(self, name) for name in self.planned_fields}

    def put_back(self, planned: Mapping[str, Any]) -> None:
        """Describe files as ``planned`` was returned."""
        for name, value in planned.items():
            setattr(self, name, value)

    def plan(self, request: SaveRequest) -> None:
        """Become what this saver is once the file is there.

        It must not change containers in place: the state before is put back if the write fails.
        """
        name = self._relative(request.path)
        self.writing = (*self.writing, name)
        self._drop(self.preempted_path)
        self.preempted_path = name if request.preempted else None
        if request.preempted:
            return
        self.last_path = name
        self.last_step = request.step
        if self.retention is None:
            return
        kept = [*(entry for entry in self.kept if entry[0] != name), [name, request.rank]]
        for obsolete in self.retention.obsolete(kept):
            self._drop(obsolete)
        gone = {*self.dropping, *((name,) if request.is_lasting else ())}
        self.kept = [entry for entry in kept if entry[0] not in gone]

    def _drop(self, name: str | None) -> None:
        """Let a file go that this saver wrote, once the new one is durable."""
        if name is not None:
            self.dropping = (*self.dropping, name)

    def answered(self, spared: Path | None) -> list[Path]:
        """What was asked for is on its way.

        Args:
            spared: a file that has to stay for now.

        Returns:
            the files to remove once it is durable.
        """
        obsolete = {name: self.folder / name for name in self.dropping}
        self.asked, self.writing = (), ()
        self.dropping = tuple(name for name, path in obsolete.items() if path.resolve() == spared)
        return [path for name, path in obsolete.items() if name not in self.dropping]

    def supersedes(self, newer: SaveRequest, older: SaveRequest) -> bool:
        """Whether a file that waits to be written is not worth it any more."""
        judge = None if self.retention is None else self.retention.judge
        if older.is_lasting or judge is None or older.rank is None or not isfinite(older.rank):
            return not older.is_lasting
        if newer.rank is None or not isfinite(newer.rank):
            return False
        return not judge.is_better(older.rank, newer.rank)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over progress from a checkpoint.

        Raises:
            CheckpointError: keys are missing or unknown, or a file name would leave the folder;
                nothing was changed.
        """
        require_inside(_names_in(state_dict, self.name), self.name)
        super().load_state_dict(state_dict)

    def _relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def _absolute(self, name: str | None) -> Path | None:
        return None if name is None else self.folder / name


def _names_in(state: Mapping[str, Any], owner: str) -> list[Any]:
    """The file names in a saved state: a file decides on them."""
    try:
        return [
            *filter(None, (state.get(k) for k in ("last_path", "preempted_path", "best_path"))),
            *(entry["name"] for entry in state.get("asked", ())),
            *(name for name, _ in state.get("kept", ())),
            *state.get("writing", ()),
            *state.get("dropping", ()),
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the saved state of callback {owner!r} cannot be read: {error!r}."
        ) from error
