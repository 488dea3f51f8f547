"""FileVersion: tells a file from the one that replaces it under its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class FileVersion(NamedTuple):
    """Differs from that of every other file, and of the same one if it was changed."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> FileVersion | None:
        """That of ``path``; ``None`` if there is no such file."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
