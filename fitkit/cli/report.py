"""``fitkit report``: an HTML page about a run."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing.storage import atomic_write
from fitkit.cli.command_group import main
from fitkit.cli.printing import echo
from fitkit.core.errors import CheckpointNotFoundError
from fitkit.reporting.gather import gather_folder
from fitkit.reporting.page import render


@main.command(examples=["report runs/digits", "report runs/digits -o digits.html --no-verify"])
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The page. Default: report.html in FOLDER.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Verify the checksums of all tensors, which reads every checkpoint completely.",
)
def report(folder: Path, output: Path | None, verify: bool) -> None:
    """Write an HTML page with a run's curves and checkpoints.

    FOLDER and the folders below it hold the checkpoints of the run, and the files of CSVLogger and
    JSONLinesLogger. The page is one file that needs no network.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError(
            f"{str(folder)!r} is not a folder: pass the folder that the run saves to."
        )
    page = render(gather_folder(folder, verify=verify))
    output = folder / "report.html" if output is None else output
    atomic_write.replace(output, lambda file: file.write(page.encode("utf-8")))
    echo(f"wrote {output}")
