"""The program ``fitkit``; importing the file of a command adds the command."""

from __future__ import annotations

import signal

from fitkit.cli import (  # noqa: F401  importing a command adds it
    convert,
    diff,
    export,
    inspect,
    ls,
    prune,
    report,
    show_history,
    split_and_merge,
    verify,
)
from fitkit.cli.command_group import main

__all__ = ["main", "run"]


def run() -> None:
    """Run the command line in a process of its own."""
    if hasattr(signal, "SIGPIPE"):  # end without an error when the reader of a pipe has closed it
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main(prog_name="fitkit")
