"""The logger of a handler: console, file, or both."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from tqdm.std import tqdm

from fitkit.core.errors import ConfigurationError
from fitkit.core.types import LoggingMode

_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def make_logger(mode: LoggingMode | None, filename: str, level: int) -> logging.Logger:
    """A logger for one handler, outside of ``logging``'s registry.

    Args:
        mode: where lines go; ``None``: to the ``"fitkit"`` logger, which the program configures.
        filename: file of the FILE and BOTH modes; its folder is made when a line is written.
        level: the lowest level that is written, as in ``logging``.
    """
    if isinstance(level, bool) or not isinstance(level, int):
        raise ConfigurationError(
            f"logger_level must be a level of the logging module such as logging.INFO, "
            f"received {level!r}."
        )
    logger = _HandlerLogger("fitkit", level)
    logger.arguments = (mode, filename, level)
    if mode is None:
        logger.parent = logging.getLogger("fitkit")
        return logger
    if mode in (LoggingMode.CONSOLE, LoggingMode.BOTH):
        logger.addHandler(logging.StreamHandler(sys.stderr))
    if mode in (LoggingMode.FILE, LoggingMode.BOTH):
        logger.addHandler(_LazyFileHandler(filename))
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
    return logger


def show(logger: logging.Logger, text: str) -> None:
    """Log ``text`` at INFO, and write it to stderr if no handler shows it on a console."""
    logger.info("%s", text)
    if not _is_shown(logger) and sys.stderr is not None:
        tqdm.write(text, file=sys.stderr)  # above a progress bar, if there is one


def _is_shown(logger: logging.Logger) -> bool:
    """Whether lines at INFO reach a console."""
    current: logging.Logger | None = logger
    while current is not None and logger.isEnabledFor(logging.INFO):
        for handler in current.handlers:
            is_console = getattr(handler, "stream", None) in (sys.stderr, sys.stdout)
            if is_console and handler.level <= logging.INFO:
                return True
        current = current.parent if current.propagate else None
    return False


class _HandlerLogger(logging.Logger):
    """A logger that can be copied and pickled, which ``logging`` does for registered ones only."""

    arguments: tuple[LoggingMode | None, str, int]

    def __reduce__(self) -> tuple[Any, ...]:
        return make_logger, self.arguments


class _LazyFileHandler(logging.FileHandler):
    """Makes its folder and opens its file at the first line; reopens it after ``close``."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename, mode="a", encoding="utf-8", delay=True)

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is None:
            Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        super().emit(record)


def close_files(logger: logging.Logger) -> None:
    """Close the logger's files; the next line opens them again."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()
