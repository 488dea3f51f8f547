"""``fitkit verify``: all checksums."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing.catalogue import catalogue, look_at
from fitkit.cli.group import IMPOSSIBLE, NO, main
from fitkit.cli.printing import count_text, json_option, painted, print_json
from fitkit.core.errors import CheckpointError, DamagedCheckpointError


@main.command(
    examples=["verify runs/best.pth", "verify runs && rsync -a runs backup:"],
    no="at least one file is damaged, or holds more than tensors and plain types",
)
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True)
@json_option
@click.pass_context
def verify(ctx: click.Context, paths: tuple[Path, ...], as_json: bool) -> None:
    """Check every checksum of files and folders.

    Of a folder, all checkpoints below it are checked. torch itself checks none when it reads. The
    sentence for a damaged file names the record.
    """
    found = [answer for path in paths for answer in _answers(path)]
    if as_json:
        print_json([{"path": p, "result": r, "problem": problem} for p, r, problem in found])
    else:
        for path, result, problem in found:
            color = "green" if result == "whole" else "red"
            click.echo(f"{painted(f'{result:<8}', fg=color)}{path if problem is None else problem}")
        whole = sum(result == "whole" for _, result, _ in found)
        click.echo(f"{whole} of {count_text(len(found), 'file')} whole")
    results = {result for _, result, _ in found}
    ctx.exit(NO if "damaged" in results else IMPOSSIBLE if "unread" in results else 0)


def _answers(path: Path) -> list[tuple[Path, str, str | None]]:
    """Each file with ``whole``, ``damaged`` or ``unread``, and the sentence for the latter two."""
    if path.is_dir():
        entries = catalogue(path, verify=True)
        if not entries:
            return [(path, "unread", f"there is no checkpoint below {str(path)!r}.")]
        return [
            (one.path, "whole" if one.problem is None else "damaged", one.problem)
            for one in entries
        ]
    try:
        look_at(path, verify=True)
    except DamagedCheckpointError as error:
        return [(path, "damaged", str(error))]
    except CheckpointError as error:
        return [(path, "unread", str(error))]
    return [(path, "whole", None)]
