"""``fitkit history``: the curves of a run out of its checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from fitkit.callbacks.csv_logger import CSVLogger
from fitkit.callbacks.history_plot import draw_history
from fitkit.checkpointing import files
from fitkit.cli.group import main
from fitkit.cli.printing import json_option, number_text, print_json, table
from fitkit.core.errors import ConfigurationError, FitkitError
from fitkit.reporting.curves import Curves, curves_of
from fitkit.reporting.folder import newest_metadata

_STDOUT = "-"


@main.command(
    examples=[
        "history runs/digits",
        "history runs/digits --plot curves.png",
        "history runs/digits/best.pth --csv curves.csv",
        "history runs/digits --json | jq '.history.val_loss'",
    ]
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw the curves; the suffix (.png, .svg, .pdf) decides on the format.",
)
@click.option(
    "--csv",
    "csv_file",
    is_flag=False,
    flag_value=_STDOUT,
    metavar="[FILE]",
    help="Write CSV as CSVLogger does, epochs from 0; without FILE to stdout.",
)
@json_option
def history(path: Path, plot: Path | None, csv_file: str | None, as_json: bool) -> None:
    """Show the values of every epoch, out of a checkpoint.

    PATH is a checkpoint, or a folder: the newest in it and below it. The table counts epochs from
    1; what an epoch did not log is "-".
    """
    if (plot is not None) + (csv_file is not None) + as_json > 1:
        raise ConfigurationError("--plot, --csv and --json exclude each other: pass one of them.")
    found = newest_metadata(path)
    curves = curves_of(found.state, found.path)
    if plot is not None:
        _plot(curves, plot)
    elif csv_file is not None:
        _write_csv(curves, csv_file)
    elif as_json:
        print_json({"path": found.path, "epoch": curves.epochs, "history": curves.columns})
    else:
        click.echo("\n".join(_as_table(curves)))


def _plot(curves: Curves, file: Path) -> None:
    try:
        draw_history(curves.columns, curves.epochs, file)
    except FitkitError:
        raise
    except ValueError as error:  # a suffix that matplotlib does not know
        raise ConfigurationError(f"--plot {file}: {error}.") from error


def _write_csv(curves: Curves, file: str) -> None:
    logger = CSVLogger(file)
    names = ["epoch", *curves.columns]
    rows = (logger.render_row(names, {**row, "epoch": epoch}) for epoch, row in curves.rows())
    text = logger.render_header(names) + "".join(rows)
    if file == _STDOUT:
        click.echo(text, nl=False)
    else:
        files.replace(Path(file), lambda opened: opened.write(text.encode("utf-8")))


def _as_table(curves: Curves) -> list[str]:
    if not curves.epochs:
        return ["no epoch is done yet"]
    head = ["epoch", *curves.columns]
    rows = [
        [str(epoch + 1), *(_shown(value) for value in row.values())] for epoch, row in curves.rows()
    ]
    return table([head, *rows], right=range(len(head)))


def _shown(value: float) -> str:
    return "-" if value != value else number_text(value)
