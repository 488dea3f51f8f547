"""The exceptions of fitkit, and helpers for their messages.

Each message says what was expected, what was received, and what to do.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fitkit.core.is_tensor import is_tensor


class FitkitError(Exception):
    """Base class of fitkit's exceptions."""


class ConfigurationError(FitkitError, ValueError):
    """An argument is invalid, a part is missing, or a combination is not supported."""


class DataError(FitkitError, ValueError):
    """Data cannot be turned into batches, or a batch cannot be used."""


class SamplingError(FitkitError, ArithmeticError):
    """Samples or likelihoods became NaN or infinite, or an ODE cannot be solved."""


class MonitorError(ConfigurationError):
    """A monitored name is not in the logs, or its mode cannot be resolved."""


class CheckpointError(FitkitError, RuntimeError):
    """A checkpoint cannot be used as requested."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A checkpoint path does not exist."""


class DamagedCheckpointError(CheckpointError):
    """A file is truncated, altered, or not a checkpoint."""


class UnsafeCheckpointError(DamagedCheckpointError):
    """A file holds something other than tensors and plain types."""


class SaveError(CheckpointError, OSError):
    """A checkpoint could not be written; earlier files are unchanged.

    Attributes:
        path: the file, if known.
    """

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class RankError(FitkitError, RuntimeError):
    """Another rank of the run failed, so this one cannot continue.

    Attributes:
        rank: the rank that failed first.
        told: the exception that it raised, as text.
    """

    def __init__(self, rank: int, told: str) -> None:
        super().__init__(f"rank {rank} failed, and with it the run: {told}")
        self.rank = rank
        self.told = told

    def __reduce__(self) -> tuple[type[RankError], tuple[Any, ...]]:
        return (RankError, (self.rank, self.told))


class DeadlockError(RankError):
    """The ranks wait for each other in different calls, so none of them can continue.

    Attributes:
        rank: -1, because no rank failed first.
    """

    def __init__(self, told: str) -> None:
        super().__init__(-1, told)
        self.args = (told,)

    def __reduce__(self) -> tuple[type[RankError], tuple[Any, ...]]:
        return (DeadlockError, (self.told,))


class Preempted(SystemExit):
    """The process received SIGTERM or a similar signal; the exit code is 128 plus its number."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(128 + signal_number)
        self.signal_number = signal_number


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception once, as ``BaseException.add_note`` does from Python 3.11 on."""
    notes = list(getattr(error, "__notes__", ()))
    if note not in notes:
        error.__notes__ = [*notes, note]  # type: ignore[attr-defined]
        is_text = len(error.args) == 1 and isinstance(error.args[0], str)
        if sys.version_info < (3, 11) and is_text:  # its tracebacks show no notes
            error.args = (f"{error.args[0]}\n{note}",)


def missing_package(feature: str, *packages: str) -> ConfigurationError:
    """The exception for an optional package that is not installed.

    >>> print(missing_package("History.plot", "matplotlib"))
    History.plot needs a package that is not installed: pip install matplotlib
    """
    return ConfigurationError(
        f"{feature} needs a package that is not installed: pip install {' '.join(packages)}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the closest known name, or an empty string.

    >>> did_you_mean("val_los", ["loss", "val_loss"])
    " Did you mean 'val_loss'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """Names for a message: sorted and quoted, or ``none``.

    >>> listed({"b", "a"})
    "'a', 'b'"
    """
    return ", ".join(repr(name) for name in sorted(names)) or "none"


def describe(value: Any) -> str:
    """A short description of a value, for a message.

    >>> describe([1, 2]), describe(int), describe(None)
    ('a list of 2 elements', 'the class int', 'a NoneType')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with the keys {listed(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} elements"
    return f"a {type(value).__name__}"


@contextmanager
def always_after(*steps: Callable[[], object]) -> Iterator[None]:
    """After ``with``, also after an error, call every step, even if others raise.

    The first error is raised, with the later ones as notes: what failed is not hidden by what could
    not be put in order because of it.
    """
    errors: list[BaseException] = []
    try:
        yield
    except BaseException as error:  # noqa: BLE001  raised below
        errors.append(error)
    for step in steps:
        try:
            step()
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)
    if errors:
        raise_first(errors)


def raise_first(errors: Sequence[BaseException]) -> NoReturn:
    """Raise the first error, with the later ones as notes."""
    for later in errors[1:]:
        add_note(errors[0], f"then {type(later).__name__}: {later}")
    raise errors[0]


@contextmanager
def as_checkpoint_error(
    problem: str = "the checkpoint does not fit this handler",
    advice: str = "",
    *,
    kind: type[CheckpointError] = CheckpointError,
    keep: type[FitkitError] = FitkitError,
) -> Iterator[None]:
    """Inside ``with``, raise exceptions that are no ``keep`` as ``kind``, with their notes.

    Those that say that another rank failed stay. The message is ``problem``, the exception, and
    ``advice``.
    """
    try:
        yield
    except (keep, RankError):
        raise
    except Exception as error:
        reason = f"{str(error).rstrip('.')} ({type(error).__name__})"
        raised = kind(f"{problem}: {reason}. {advice}".rstrip())
        for note in getattr(error, "__notes__", ()):
            add_note(raised, note)
        raise raised from error
