"""``fitkit history``: the values of every epoch, from a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import click

from fitkit.callbacks.csv_logger import CSVLogger
from fitkit.callbacks.support.plots import plot_history
from fitkit.checkpointing.storage import atomic_write
from fitkit.cli.command_group import main
from fitkit.cli.printing import echo, format_number, json_option, print_json, printable, table
from fitkit.core.errors import ConfigurationError, FitkitError
from fitkit.reporting.curve_data import Curves, read_curves
from fitkit.reporting.run_folder import newest_metadata

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
    help="Plot the curves, in the format of the suffix (.png, .svg, .pdf).",
)
@click.option(
    "--csv",
    "csv_file",
    is_flag=False,
    flag_value=_STDOUT,
    metavar="[FILE]",
    help="Write CSV as CSVLogger does, with epochs from 0; without FILE to stdout.",
)
@json_option
def history(path: Path, plot: Path | None, csv_file: str | None, as_json: bool) -> None:
    """Show the values of every epoch of a checkpoint.

    PATH is a checkpoint, or a folder, for the newest checkpoint in it and below. The table counts
    epochs from 1; a value that an epoch did not log is "-".
    """
    if (plot is not None) + (csv_file is not None) + as_json > 1:
        raise ConfigurationError(
            "--plot, --csv and --json exclude each other: pass only one of them."
        )
    metadata = newest_metadata(path)
    curves = read_curves(metadata.state, metadata.path)
    if plot is not None:
        _plot(curves, plot)
    elif csv_file is not None:
        _write_csv(curves, csv_file)
    elif as_json:
        print_json({"path": metadata.path, "epoch": curves.epochs, "history": curves.columns})
    else:
        echo(*_as_table(curves))


def _plot(curves: Curves, file: Path) -> None:
    try:
        plot_history(curves.columns, curves.epochs, file)
    except FitkitError:
        raise
    except ValueError as error:  # matplotlib does not know the suffix
        raise ConfigurationError(f"--plot {file}: {error}.") from error


def _write_csv(curves: Curves, file: str) -> None:
    logger = CSVLogger(file)
    names = ["epoch", *map(printable, curves.columns)]
    values = ([epoch, *row.values()] for epoch, row in curves.rows())
    rows = (logger.render_row(names, dict(zip(names, one, strict=True))) for one in values)
    text = logger.render_header(names) + "".join(rows)
    if file == _STDOUT:
        echo(*text.rstrip("\n").split("\n"))
    else:
        atomic_write.replace(Path(file), lambda opened: opened.write(text.encode("utf-8")))


def _as_table(curves: Curves) -> list[str]:
    if not curves.epochs:
        return ["no epoch is done yet"]
    header = ["epoch", *curves.columns]
    rows = [[str(epoch + 1), *map(_cell, row.values())] for epoch, row in curves.rows()]
    return table([header, *rows], right=range(len(header)))


def _cell(value: float) -> str:
    return format_number(None if math.isnan(value) else value)
