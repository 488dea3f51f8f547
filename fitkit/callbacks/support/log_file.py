"""LogFile: a text file that is replaced or extended as a whole, and what an error there means."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fitkit.checkpointing.storage import atomic_write
from fitkit.core.argument_checks import require_on_error
from fitkit.core.errors import SaveError

_MISSING = (FileNotFoundError, NotADirectoryError)


class LogFile:
    """The file of a logger.

    Args:
        path: the file; its folder is created with it.
        on_error: ``"raise"`` or ``"warn"`` when it cannot be written.

    Attributes:
        is_behind: whether the file lacks what could not be written.
    """

    def __init__(self, path: Path, on_error: str) -> None:
        require_on_error(on_error)
        self.path = path
        self.is_behind = False
        self.warns = on_error == "warn"
        self.has_warned = False

    @contextmanager
    def errors_handled(self) -> Iterator[None]:
        """Inside ``with`` something is written; an error is a warning, said once, or raised."""
        try:
            with atomic_write.as_save_error(self.path):
                yield
        except SaveError as error:
            self.is_behind = True
            if not self.warns:
                raise
            if not self.has_warned:
                self.has_warned = True
                sentence = f"{error} Training goes on; until then the rows are kept in memory."
                warnings.warn(sentence, RuntimeWarning, stacklevel=2)

    def read(self) -> str | None:
        """The content; ``None`` without a file.

        Raises:
            SaveError: it cannot be read; whatever ``on_error`` says, it is not overwritten unread.
        """
        try:
            return self.path.read_bytes().decode("utf-8", errors="replace")
        except _MISSING:
            return None
        except OSError as error:
            raise SaveError(
                f"cannot read {str(self.path)!r} to go on with it: {error.strerror}. Make it "
                f"readable, or choose another file.",
                self.path,
            ) from error

    def is_gone(self) -> bool:
        """Whether the file was moved away or emptied."""
        try:
            return self.path.stat().st_size == 0
        except OSError as error:
            return isinstance(error, _MISSING)

    def replace(self, text: str) -> None:
        """Write the whole file."""
        with self.errors_handled():
            atomic_write.replace(self.path, lambda file: file.write(text.encode("utf-8")))
            self.is_behind = False

    def append(self, line: str) -> None:
        """Add a whole line, or nothing."""
        rest = line.encode("utf-8")
        with self.errors_handled(), self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                file.truncate(size)
                raise
