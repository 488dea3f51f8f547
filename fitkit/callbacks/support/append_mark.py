"""AppendMark: remembers what a file held before a run began to append to it.

A run that is killed before its first checkpoint starts anew, and would append its rows once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from fitkit.checkpointing.storage import atomic_write


class AppendMark:
    """A hidden file beside ``path``, from the beginning of a run until a checkpoint holds the text.

    Args:
        path: the file to which rows are appended.

    Attributes:
        is_set: whether this run has set the mark.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(f".{path.name}.fitkit-begin")
        self.is_set = False

    def set(self, text: str, folders: Iterable[Path]) -> None:
        """Remember ``text``, for a run that saves into ``folders``; raises ``SaveError``."""
        content = json.dumps({"folders": _names(folders), "text": text}).encode("utf-8")
        atomic_write.replace(self._path, lambda file: file.write(content))
        self.is_set = True

    def read(self, folders: Iterable[Path]) -> str | None:
        """The text that a run with the same ``folders`` remembered, or ``None``."""
        try:
            content = json.loads(self._path.read_bytes())
            is_own = content["folders"] == _names(folders)
            return str(content["text"]) if is_own else None
        except (OSError, ValueError, LookupError, TypeError):  # no file, or no mark
            return None

    def remove(self) -> None:
        """Remove the mark of this run, or one that an earlier run left."""
        self.is_set = False
        self._path.unlink(missing_ok=True)


def _names(folders: Iterable[Path]) -> list[str]:
    return sorted(folder.resolve().as_posix() for folder in folders)
