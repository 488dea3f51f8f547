"""The command line as a whole: importing a verb's file adds the verb."""

from __future__ import annotations

import signal

from fitkit.cli import (  # noqa: F401  each adds itself to the group
    convert,
    diff,
    export,
    history,
    inspect,
    ls,
    prune,
    report,
    split,
    verify,
)
from fitkit.cli.group import main

__all__ = ["main", "run"]


def run() -> None:
    """The program ``fitkit``: the group in a process of its own."""
    if hasattr(signal, "SIGPIPE"):  # end quietly when the reader of a pipe has seen enough
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main(prog_name="fitkit")
