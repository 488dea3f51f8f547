"""The program ``fitkit``; the file of a command is imported when the command is asked for."""

from __future__ import annotations

import signal

from fitkit.cli.command_group import main

__all__ = ["main", "run"]

main.modules.update(
    convert="fitkit.cli.convert",
    diff="fitkit.cli.diff",
    export="fitkit.cli.export",
    history="fitkit.cli.show_history",
    inspect="fitkit.cli.inspect",
    ls="fitkit.cli.ls",
    merge="fitkit.cli.split_and_merge",
    prune="fitkit.cli.prune",
    report="fitkit.cli.report",
    split="fitkit.cli.split_and_merge",
    verify="fitkit.cli.verify",
)


def run() -> None:
    """Run the command line in a process of its own."""
    if hasattr(signal, "SIGPIPE"):  # end without an error when the reader of a pipe has closed it
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main(prog_name="fitkit")
