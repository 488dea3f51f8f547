"""``fitkit verify``: verifies all checksums of files."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing.catalog.scan import classify, scan_folder
from fitkit.cli.command_group import EXIT_FAILED, EXIT_NEGATIVE, main
from fitkit.cli.printing import colored, echo, format_count, json_option, print_json, show_progress
from fitkit.core.errors import CheckpointError, DamagedCheckpointError


@main.command(
    examples=["verify runs/best.pth", "verify runs && rsync -a runs backup:"],
    exit_1="at least one file is damaged, or holds more than tensors and plain types",
)
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True)
@json_option
@click.pass_context
def verify(ctx: click.Context, paths: tuple[Path, ...], as_json: bool) -> None:
    """Verify every checksum of files and folders.

    In folders, all checkpoints below are verified. torch verifies none when it loads a file. For a
    damaged file, the damaged record is named.
    """
    found = [result for path in paths for result in _results(path)]
    if as_json:
        print_json([{"path": p, "result": r, "problem": problem} for p, r, problem in found])
    else:
        for path, result, problem in found:
            color = "green" if result == "whole" else "red"
            start = colored(f"{result:<8}", color)
            echo(str(path) if problem is None else problem, start=start)
        whole = sum(result == "whole" for _, result, _ in found)
        echo(f"{whole} of {format_count(len(found), 'file')} whole")
    results = {result for _, result, _ in found}
    ctx.exit(EXIT_NEGATIVE if "damaged" in results else EXIT_FAILED if "unread" in results else 0)


def _results(path: Path) -> list[tuple[Path, str, str | None]]:
    """Each file with ``whole``, ``damaged`` or ``unread``, and the sentence for the latter two."""
    if path.is_dir():
        entries = scan_folder(path, verify=True, show_progress=show_progress)
        if not entries:
            return [(path, "unread", f"there is no checkpoint below {str(path)!r}.")]
        return [
            (file.path, "whole" if file.problem is None else "damaged", file.problem)
            for file in entries
        ]
    try:
        classify(path, verify=True)
    except DamagedCheckpointError as error:
        return [(path, "damaged", str(error))]
    except CheckpointError as error:
        return [(path, "unread", str(error))]
    return [(path, "whole", None)]
