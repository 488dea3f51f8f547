"""SavedFiles: what a saver remembers of its files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from fitkit.checkpointing.savers import filenames
from fitkit.checkpointing.savers.retention import Retention
from fitkit.checkpointing.savers.save_request import SaveRequest
from fitkit.core.callback import BuiltinCallback
from fitkit.core.errors import CheckpointError

# These attributes have other keys in a checkpoint.
CHECKPOINT_KEYS = {"requested": "asked", "in_flight": "writing", "to_delete": "dropping"}
_ATTRIBUTES = {key: attribute for attribute, key in CHECKPOINT_KEYS.items()}


class SavedFiles(BuiltinCallback):
    """The files of a saver: which are kept, which is the last, and what is yet to be done.

    They are remembered relative to ``folder``, so that a run's folder can be moved.

    Attributes:
        retention: which files are kept; ``None``: all of them.
    """

    state_fields: ClassVar[tuple[str, ...]] = (
        "last_path",
        "last_step",
        "preempted_path",
        "kept",
        "lasting",
        "requested",
        "in_flight",
        "to_delete",
    )
    # The fields that describe files: rolled back when a save fails, else shared with all ranks.
    file_fields: ClassVar[tuple[str, ...]] = tuple(n for n in state_fields if n != "requested")

    def __init__(self, *, name: str | None = None) -> None:
        super().__init__(name=name)
        self.retention: Retention | None = None
        self.last_path: str | None = None
        self.last_step = -1
        self.preempted_path: str | None = None
        self.kept: list[list[Any]] = []  # [name, rank] under retention, the oldest first
        self.lasting: list[str] = []  # files that are kept for good
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
        return filenames.folders_below(self.folder, self.template)

    @property
    def template(self) -> str:
        """The template of the file names, relative to ``folder``; "" if it is not known."""
        return ""

    @property
    def has_one_name(self) -> bool:
        """Whether the template has no placeholders, so that each file replaces the one before."""
        return not filenames.placeholders(self.template)

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
        self.supersede_preempted()
        if request.preempted:
            self.preempted_path = name
            return
        self.last_path = name
        self.last_step = request.step
        kept = [*(entry for entry in self.kept if entry[0] != name), [name, request.rank]]
        if self.retention is not None:
            self.to_delete = (*self.to_delete, *self.retention.obsolete(kept))
        is_lasting = request.is_lasting or self.retention is None
        gone = (*self.to_delete, name) if is_lasting else self.to_delete
        self.kept = [entry for entry in kept if entry[0] not in gone]
        self.lasting = [*(n for n in self.lasting if n != name), *([name] if is_lasting else [])]

    def supersede_preempted(self) -> None:
        """The whole state is about to be saved, so that the file of ``Preempted`` can go."""
        if self.preempted_path is not None:
            self.to_delete = (*self.to_delete, self.preempted_path)
            self.preempted_path = None

    def keeps(self, path: Path) -> bool:
        """Whether this saver wrote ``path`` and retains it."""
        name = self._relative(path)
        names = (self.preempted_path, *self.lasting, *(entry[0] for entry in self.kept))
        return name in names

    def files(self) -> list[Path]:
        """All files that the state names."""
        state = {name: getattr(self, name) for name in self.state_fields}
        return [self.folder / name for name in _names_in(state, self.name)]

    def forget(self, is_gone: Callable[[Path], bool]) -> None:
        """Forget the files for which ``is_gone``, because they are of another run now."""

        def stays(name: str) -> bool:
            return not is_gone(self.folder / name)

        self.kept = [entry for entry in self.kept if stays(entry[0])]
        self.lasting = [name for name in self.lasting if stays(name)]
        if self.preempted_path is not None and not stays(self.preempted_path):
            self.preempted_path = None

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
        state.setdefault("lasting", [])  # a file of an earlier version has none
        filenames.require_inside(_names_in(state, self.name), self.name)
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
            *state.get("lasting", ()),
            *state.get("in_flight", ()),
            *state.get("to_delete", ()),
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the saved state of callback {saver_name!r} cannot be read: {error!r}."
        ) from error
