"""``fitkit report``: a run's folder as one page."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.checkpointing import files
from fitkit.cli.group import main
from fitkit.core.errors import CheckpointNotFoundError
from fitkit.reporting.gather import gather_folder
from fitkit.reporting.page import render


@main.command(
    examples=["report runs/digits", "report runs/digits -o digits.html --no-verify"],
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The page; report.html in FOLDER unless given.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Check the checksums of all tensors, which reads every checkpoint as a whole.",
)
def report(folder: Path, output: Path | None, verify: bool) -> None:
    """Write a run's curves, checkpoints and configuration as one page.

    FOLDER is what the run saves to, with all folders below it: its checkpoints, and the files of
    CSVLogger and JSONLinesLogger. The page is a file of its own that needs no network.
    """
    if not folder.is_dir():
        raise CheckpointNotFoundError(
            f"{str(folder)!r} is no folder: pass the folder that the run saves to."
        )
    page = render(gather_folder(folder, verify=verify))
    output = folder / "report.html" if output is None else output
    files.replace(output, lambda file: file.write(page.encode("utf-8")))
    click.echo(f"wrote {output}")
