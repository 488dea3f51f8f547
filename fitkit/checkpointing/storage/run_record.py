"""The run record in a file: which run wrote it, on which branch, and at which position.

It is a small record of its own in the zip archive of the file and not part of the pickled content,
so two runs of one script write equal states. torch ignores it. Files of earlier versions have none.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from fitkit.checkpointing.storage import torch_archive

_NAME = "fitkit-run"
_MOST_BYTES = 1000
_RUN_ID = re.compile("[0-9a-f]{32}")


class RunRecord(NamedTuple):
    """What a file says about the run that wrote it.

    Attributes:
        run_id: the run.
        branch: counts how often a run began on files that are not its own past; later is greater.
        position: where in the run the file was written.
    """

    run_id: str
    branch: int
    position: tuple[int, ...]

    @property
    def key(self) -> tuple[int, tuple[int, ...]]:
        """Sorts files: those of the line that was begun last are greatest."""
        return self.branch, self.position


@dataclass
class RunIdentity:
    """Which run a handler belongs to; its files carry it.

    Attributes:
        run_id: the run; ``None`` until it is needed.
        branch: its branch.
    """

    run_id: str | None = None
    branch: int = 0

    def adopt(self, record: RunRecord | None) -> None:
        """Go on with the run that wrote ``record``; for ``None`` (no record) a new one is begun."""
        self.run_id, self.branch = (None, 0) if record is None else record[:2]

    def at(self, position: tuple[int, ...]) -> RunRecord:
        """The record of a file that is written at ``position``."""
        if self.run_id is None:
            self.run_id = uuid4().hex
        return RunRecord(self.run_id, self.branch, position)


def as_records(record: RunRecord | None) -> dict[str, bytes]:
    """What ``torch_archive.write`` adds to a file that ``record`` describes."""
    return {} if record is None else {_NAME: json.dumps(record._asdict()).encode()}


def read(path: Path) -> RunRecord | None:
    """The record of the file ``path``; ``None`` if it has none or cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(torch_archive.FOLDER + _NAME)
            if info.file_size > _MOST_BYTES:
                return None
            return _checked(json.loads(archive.read(info)))
    # zipfile and json raise many kinds for a file that is something else, or damaged
    except (OSError, ValueError, KeyError, EOFError, RecursionError, NotImplementedError,
            RuntimeError, zipfile.BadZipFile):  # fmt: skip
        return None


def _checked(content: Any) -> RunRecord | None:
    if not isinstance(content, dict) or set(content) != set(RunRecord._fields):
        return None
    run_id, branch, position = (content[name] for name in RunRecord._fields)
    is_valid = (
        isinstance(run_id, str)
        and _RUN_ID.fullmatch(run_id) is not None
        and isinstance(position, list)
        and all(type(number) is int and number >= 0 for number in (branch, *position))
    )
    return RunRecord(run_id, branch, tuple(position)) if is_valid else None
