"""Saver: the base class of ModelCheckpoint and AutoSaver."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fitkit.checkpointing.savers.filenames import require_inside
from fitkit.checkpointing.savers.overhead import OverheadBudget
from fitkit.checkpointing.savers.retention import Retention
from fitkit.checkpointing.savers.save_request import SaveRequest
from fitkit.checkpointing.storage import is_checkpoint
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import CheckpointError, ConfigurationError, Preempted

PREEMPTED_NAME = "preempted.pth"
# These attributes have other keys in a checkpoint.
CHECKPOINT_KEYS = {"requested": "asked", "in_flight": "writing", "to_delete": "dropping"}
_ATTRIBUTES = {key: attribute for attribute, key in CHECKPOINT_KEYS.items()}


class Saver(BuiltinCallback):
    """Base class of ModelCheckpoint and AutoSaver: requests saves and remembers its files.

    Files are remembered relative to ``folder``, so that a run's folder can be moved.

    Args:
        on_error: ``"raise"``: a save that fails ends training with a ``SaveError``; ``"warn"``: it
            is a warning, and training goes on. In both cases earlier files stay whole, and the
            saver's state is as it was before the save.
        background: write behind training, which waits only until the state is copied in memory. One
            save is in flight at a time; training waits for it before the next save. ``fit``
            returns when all files are durable.
        max_overhead: the largest share of wall time, in ``(0, 1)``, that saving may cost.

    Attributes:
        retention: which files are kept; ``None``: all of them.

    Raises:
        ConfigurationError: an argument cannot be used.
    """

    order = 60
    spans_fits = True
    writes_files = True
    has_fixed_state_types = True
    state_fields: ClassVar[tuple[str, ...]] = (
        "last_path",
        "last_step",
        "preempted_path",
        "kept",
        "requested",
        "in_flight",
        "to_delete",
    )
    # The fields that describe files: rolled back when a save fails, else shared with all ranks.
    file_fields: ClassVar[tuple[str, ...]] = tuple(n for n in state_fields if n != "requested")

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
        self._overhead_budget = None if max_overhead is None else OverheadBudget(max_overhead)
        self.last_path: str | None = None
        self.last_step = -1
        self.preempted_path: str | None = None
        self.kept: list[list[Any]] = []  # [name, rank] of each file, the oldest first
        # A snapshot holds what is not done yet: the requests, the files of this save, and the files
        # to delete after it. So a resume from one file of a save finishes the others.
        self.requested: tuple[dict[str, Any], ...] = ()
        self.in_flight: tuple[str, ...] = ()
        self.to_delete: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder below which this saver writes."""
        raise NotImplementedError

    @property
    def folders(self) -> list[Path]:
        """``folder``, and those below it that hold files of this saver."""
        return [self.folder]

    # ---- requests -------------------------------------------------------------------------------

    def request_save(
        self,
        path: Path,
        *,
        score: float | None = None,
        logs: Mapping[str, float] | None = None,
        epochs_done: int | None = None,
        preempted: bool = False,
    ) -> None:
        """Request that ``path`` is written once all callbacks have handled the current event.

        The same file is written at most once per step.

        Args:
            path: the file.
            score: the monitored value that led to the save.
            logs: values for ranking.
            epochs_done: at the end of an epoch, its number from 1.
            preempted: the process is about to be ended.
        """
        rank = self._rank(logs or {}, at_end=epochs_done is not None)
        is_lasting = self.retention is not None and self.retention.is_lasting(epochs_done)
        details = {"score": score, "rank": rank, "is_lasting": is_lasting, "preempted": preempted}
        self._request(path, details)

    def _request(self, path: Path, details: dict[str, Any]) -> None:
        step = self.handler.state.global_step
        name = self._relative(path)
        if (self.last_step, self.last_path) == (step, name):
            return
        self.requested = (*self.requested, {"name": name, **details})
        self.handler.saves.add(SaveRequest(self, path, step, **details))

    def _rank(self, logs: Mapping[str, float], *, at_end: bool) -> float | None:
        comparator = None if self.retention is None else self.retention.comparator
        if comparator is None:
            return None
        if at_end:
            return comparator.read(logs, self.params, self.name)
        return logs.get(comparator.name)

    def resubmit(self) -> None:
        """After a restart, request again what was not done when the checkpoint was made."""
        step = self.handler.state.global_step
        for name in self.in_flight:
            if self._may_rewrite(name):
                self.handler.saves.add(SaveRequest(self, self.folder / name, step, again=True))
        requested, self.requested = self.requested, ()
        for request in requested:
            if self._may_rewrite(request["name"]):
                details = {key: value for key, value in request.items() if key != "name"}
                self._request(self.folder / request["name"], details)

    def _may_rewrite(self, name: str) -> bool:
        # the name comes from a checkpoint: an altered one must not overwrite somebody else's file
        path = self.folder / name
        if self.saves_weights_only and path.resolve() == self.handler.saves.protected:
            return False
        return not path.exists() or is_checkpoint.is_torch_file(path)

    def on_exception(self, error: BaseException) -> None:
        """Withdraw requests; before the process is ended, one saver saves the whole state."""
        # not all callbacks have handled the event of the error: no exact resume from its state
        self.handler.saves.withdraw(self)
        self.requested = ()
        can_resume = isinstance(error, Preempted) and not self.saves_weights_only
        if can_resume:  # all ranks raise for the same signal at the same batch
            self.handler.saves.sync_point()
        if can_resume and not len(self.handler.saves):
            self.request_save(self.folder / PREEMPTED_NAME, preempted=True)

    def begin_measuring(self) -> None:
        """Start to count the costs of saving for a call of ``fit``."""
        if self._overhead_budget is not None:
            # optimizers keep up to two values for each weight
            num_bytes = 3 * sum(weight.nbytes for weight in self.model.parameters())
            self._overhead_budget.begin(num_bytes)

    def fits_into_overhead(self) -> bool:
        """Whether ``max_overhead`` allows a save now."""
        budget, saves = self._overhead_budget, self.handler.saves
        return budget is None or (budget.is_due(saves.stats) and not saves.is_busy)

    def measure_batch(self) -> None:
        """Measure by how much a save in flight slows training down; called after each batch."""
        if self._overhead_budget is not None:
            saves = self.handler.saves
            self._overhead_budget.count_batch(saves.stats, is_busy=saves.is_busy)

    # ---- files ----------------------------------------------------------------------------------

    def file_state(self) -> dict[str, Any]:
        """The part of the state that describes files, by the keys of a checkpoint."""
        return {CHECKPOINT_KEYS.get(name, name): getattr(self, name) for name in self.file_fields}

    def rollback(self, file_state: Mapping[str, Any]) -> None:
        """Set the part of the state that ``file_state`` returned."""
        for key, value in file_state.items():
            setattr(self, _ATTRIBUTES.get(key, key), value)

    def mark_written(self, request: SaveRequest) -> None:
        """Describe the files as they are once ``request`` is written, for the snapshot in it.

        Containers must not be changed in place: ``rollback`` restores them if the write fails.
        """
        name = self._relative(request.path)
        self.in_flight = (*self.in_flight, name)
        if self.preempted_path is not None:
            self.to_delete = (*self.to_delete, self.preempted_path)
        self.preempted_path = name if request.preempted else None
        if request.preempted:
            return
        self.last_path = name
        self.last_step = request.step
        if self.retention is None:
            return
        kept = [*(entry for entry in self.kept if entry[0] != name), [name, request.rank]]
        self.to_delete = (*self.to_delete, *self.retention.obsolete(kept))
        gone = (*self.to_delete, name) if request.is_lasting else self.to_delete
        self.kept = [entry for entry in kept if entry[0] not in gone]

    def commit(self, protected: Path | None) -> list[Path]:
        """Clear what a snapshot holds as not done, once it is taken or loaded by a new ``fit``.

        Args:
            protected: a file that must not be deleted yet.

        Returns:
            the files to delete once the new ones are durable.
        """
        obsolete = {name: self.folder / name for name in self.to_delete}
        self.requested, self.in_flight = (), ()
        self.to_delete = tuple(n for n, path in obsolete.items() if path.resolve() == protected)
        return [path for name, path in obsolete.items() if name not in self.to_delete]

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state, by the keys of a checkpoint."""
        return {
            CHECKPOINT_KEYS.get(name, name): value for name, value in super().state_dict().items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint.

        Raises:
            CheckpointError: keys are missing or unknown, or a file name would leave the folder;
                nothing was changed.
        """
        state = {_ATTRIBUTES.get(key, key): value for key, value in state_dict.items()}
        require_inside(_names_in(state, self.name), self.name)
        super().load_state_dict(state)

    def _relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()


def _names_in(state: Mapping[str, Any], saver_name: str) -> list[Any]:
    """All file names in a saved state."""
    try:
        return [
            *filter(None, (state.get(k) for k in ("last_path", "preempted_path", "best_path"))),
            *(entry["name"] for entry in state.get("requested", ())),
            *(name for name, _ in state.get("kept", ())),
            *state.get("in_flight", ()),
            *state.get("to_delete", ()),
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the saved state of callback {saver_name!r} cannot be read: {error!r}."
        ) from error
