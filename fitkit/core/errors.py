"""The few kinds of error that fitkit raises, and how their sentences are made.

Every message says what was expected, what was received, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class FitkitError(Exception):
    """The parent of every error that fitkit raises on purpose."""


class ConfigurationError(FitkitError, ValueError):
    """An argument, a missing part, or a combination of them that cannot work."""


class DataError(FitkitError, ValueError):
    """Data that cannot be turned into batches, or a batch that cannot be used."""


class SamplingError(FitkitError, ArithmeticError):
    """Samples or likelihoods that became NaN or infinite, or an ODE that cannot be solved."""


class MonitorError(ConfigurationError):
    """A monitored name or mode that cannot be resolved against the logs."""


class CheckpointError(FitkitError, RuntimeError):
    """A checkpoint that cannot be used as asked."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint path that does not exist."""


class DamagedCheckpointError(CheckpointError):
    """A file that is truncated, altered, or no checkpoint at all."""


class UnsafeCheckpointError(DamagedCheckpointError):
    """A file that holds something other than tensors and plain types."""


class SaveError(CheckpointError, OSError):
    """A checkpoint that could not be written; every earlier file is as it was.

    Attributes:
        path: the file, if it is known.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class RankError(FitkitError, RuntimeError):
    """Another process of the run failed, so this one cannot go on.

    Attributes:
        rank: the process that failed first.
        told: what it raised, as text.
    """

    def __init__(self, rank: int, told: str) -> None:
        super().__init__(f"rank {rank} failed, and with it the run: {told}")
        self.rank = rank
        self.told = told

    def __reduce__(self) -> tuple[type[RankError], tuple[int, str]]:
        return (RankError, (self.rank, self.told))


class Preempted(SystemExit):
    """The process was asked to end (SIGTERM); its exit code is 128 plus the signal's number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


def add_note(error: BaseException, note: str) -> None:
    """Attach a line to an error, as ``BaseException.add_note`` does from Python 3.11 on."""
    notes = list(getattr(error, "__notes__", ()))
    if note not in notes:
        error.__notes__ = [*notes, note]  # type: ignore[attr-defined]


def missing_package(user: str, *packages: str) -> ConfigurationError:
    """The error for an optional package that cannot be imported.

    Args:
        user: what needs it, as the sentence names it.
        *packages: their names on the package index.

    >>> print(missing_package("History.plot", "matplotlib"))
    History.plot needs a package that is not installed: pip install matplotlib
    """
    return ConfigurationError(
        f"{user} needs a package that is not installed: pip install {' '.join(packages)}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the closest known name, or an empty string.

    >>> did_you_mean("val_los", ["loss", "val_loss"])
    " Did you mean 'val_loss'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Names as they stand in a sentence: sorted, quoted, ``none`` if there are none.

    >>> listed({"b", "a"})
    "'a', 'b'"
    """
    return ", ".join(repr(name) for name in sorted(names)) or "none"
