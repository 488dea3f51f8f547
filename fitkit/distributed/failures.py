"""How a rank tells the others that it failed: in the store, and in torchrun's error file."""

from __future__ import annotations

import json
import os
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from fitkit.core.errors import DeadlockError, RankError

_FAILURE = "failure"
_SECONDS_TO_ACKNOWLEDGE = 0.8
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def publish(store: Any, rank: int, error: BaseException) -> RankError | None:
    """Publish that ``rank`` failed with ``error``; the failure that another published before."""
    failure = RankError(rank, describe(error))
    try:
        first = store.compare_set(_FAILURE, "", _text_of(failure, rank)).decode()
    except RuntimeError:  # the store ended with the launcher
        return None
    return _parse(first, but_by=rank)


def publish_found(store: Any, rank: int, failure: RankError) -> RankError:
    """Publish a failure of any rank that ``rank`` has found; the first failure."""
    try:
        first = store.compare_set(_FAILURE, "", _text_of(failure, rank)).decode()
    except RuntimeError:  # the process that serves the store has ended, or is stopped
        return failure
    return _parse(first, but_by=rank) or failure


def failure_of_another(store: Any, rank: int) -> RankError | None:
    """The first failure if another rank than ``rank`` has published it; does not wait."""
    if not store.check([_FAILURE]):
        return None
    return _parse(store.get(_FAILURE).decode(), but_by=rank)


def later(failure: RankError, verb: str) -> RankError:
    """The error of a call after ``failure``."""
    told = (
        f"{failure.told}; {verb} needs all ranks, and they can no longer communicate: start the "
        f"program again."
    )
    return DeadlockError(told) if failure.rank < 0 else RankError(failure.rank, told)


def acknowledge(store: Any, rank: int) -> None:
    """Note that ``rank`` knows of the failure."""
    with suppress(RuntimeError):  # the store ended with the launcher
        store.set(f"acknowledged/{rank}", "")


def wait_until_acknowledged(store: Any, size: int) -> None:
    """Wait a little until all ranks know of the failure; some may have been killed."""
    deadline = time.monotonic() + _SECONDS_TO_ACKNOWLEDGE
    keys = [f"acknowledged/{rank}" for rank in range(size)]
    with suppress(RuntimeError):
        while not store.check(keys) and time.monotonic() < deadline:
            time.sleep(0.02)


def describe(error: BaseException) -> str:
    """The type and the message of an error.

    >>> describe(ValueError("boom")), describe(KeyboardInterrupt())
    ('ValueError: boom', 'KeyboardInterrupt')
    """
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def all_ranks_raised(store: Any, where: str, size: int, seconds: float) -> bool:
    """Whether all ``size`` ranks call this with the same ``where`` within ``seconds``.

    It does not wait if one has failed.
    """
    try:
        if store.add(f"raised/{where}", 1) == size:
            store.set(f"all raised/{where}", "")
        deadline = time.monotonic() + seconds
        while not store.check([f"all raised/{where}"]):
            if store.check([_FAILURE]) or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    except RuntimeError:  # the store ended with the launcher
        return False
    return True


def write_error_file(error: BaseException) -> None:
    """Write the file from which torchrun reads what the error was; without torchrun nothing.

    torchrun takes the earliest for the cause, in whole seconds: that of a rank which only heard of
    another's failure is dated later. A file that the script has written itself stays.
    """
    path = Path(os.environ.get(_ERROR_FILE, ""))
    if _ERROR_FILE not in os.environ or path.exists():
        return
    when = int(time.time()) + (2 if isinstance(error, RankError) else 0)
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    details = {"py_callstack": "".join(lines), "timestamp": str(when)}
    message = {"message": describe(error), "extraInfo": details}
    try:
        path.write_text(json.dumps({"message": message}))
    except OSError:  # torchrun then says that there is none
        return


def _text_of(failure: RankError, publisher: int) -> str:
    return json.dumps([publisher, failure.rank, failure.told])


def _parse(published: str, but_by: int) -> RankError | None:
    publisher, rank, told = json.loads(published)
    if publisher == but_by:
        return None
    return DeadlockError(told) if rank < 0 else RankError(rank, told)
