"""How a rank tells the others that it failed: in the store, and in torchrun's error file."""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

from fitkit.core.errors import RankError

_FAILURE = "failure"
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def publish(store: Any, rank: int, error: BaseException) -> RankError | None:
    """Publish that ``rank`` failed with ``error``; the failure of another that came before it."""
    try:
        first = store.compare_set(_FAILURE, "", f"{rank} {describe(error)}").decode()
    except RuntimeError:  # the store ended with the launcher
        return None
    return _parse(first, rank)


def failure_of_another(store: Any, rank: int) -> RankError | None:
    """The first published failure if another rank than ``rank`` has failed; does not wait."""
    if not store.check([_FAILURE]):
        return None
    return _parse(store.get(_FAILURE).decode(), rank)


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


def _parse(published: str, own_rank: int) -> RankError | None:
    rank, _, message = published.partition(" ")
    return None if int(rank) == own_rank else RankError(int(rank), message)
