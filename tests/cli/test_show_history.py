"""``fitkit history``: a table, a picture, CSV or JSON out of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fitkit
from fitkit.cli.all_commands import main
from fitkit.reporting.log_files import read_log


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    data = (torch.ones(8, 2), torch.zeros(8, 1))
    saver = fitkit.ModelCheckpoint("run/{epoch}.pth")
    log = fitkit.CSVLogger("log.csv")
    options = {"validation_data": data, "validate_every": 2, "callbacks": [saver, log]}
    handler.fit(data, epochs=4, batch_size=4, progress_bar=False, **options)
    return Path("run")


def run(*arguments):
    return CliRunner().invoke(main, ["history", *map(str, arguments)])


def test_a_table_of_the_newest_in_a_folder(folder):
    lines = run(folder).stdout.splitlines()
    assert lines[0].split() == ["epoch", "loss", "lr", "val_loss"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    assert [line.split()[-1] == "-" for line in lines[1:]] == [True, False, True, False]
    assert len(run(folder / "2.pth").stdout.splitlines()) == 3


def rows_of(path):
    """Rows in which NaN equals NaN."""
    return [(epoch, sorted(map(repr, row.items()))) for epoch, row in read_log(Path(path)).rows()]


def test_csv_is_what_the_logger_writes(folder):
    printed = run(folder, "--csv")
    assert printed.exit_code == 0
    written = run(folder, "--csv", "sub/a.csv")
    assert written.exit_code == 0
    assert Path("sub/a.csv").read_text() == printed.stdout
    assert rows_of("sub/a.csv") == rows_of("log.csv")


def test_json_has_null_where_there_is_no_value(folder):
    found = json.loads(run(folder, "--json").stdout)
    assert found["path"] == "run/4.pth"
    assert found["epoch"] == [0, 1, 2, 3]
    assert [value is None for value in found["history"]["val_loss"]] == [True, False, True, False]


@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture(folder, suffix, begin):
    assert run(folder, "--plot", f"pictures/a.{suffix}").exit_code == 0
    assert Path(f"pictures/a.{suffix}").read_bytes().startswith(begin)


def test_a_run_without_epochs(tmp_path):
    fitkit.NNHandler(nn.Linear, in_features=1, out_features=1).save(tmp_path / "a.pth")
    assert run(tmp_path).stdout == "no epoch is done yet\n"
    assert run(tmp_path, "--csv").stdout == "epoch\n"
    plotted = run(tmp_path, "--plot", tmp_path / "a.png")
    assert plotted.exit_code == 2
    assert "no epoch yet" in plotted.stderr


def test_what_cannot_be_done_is_said(folder, tmp_path):
    both = run(folder, "--json", "--csv")
    assert (both.exit_code, "exclude each other" in both.stderr) == (2, True)
    missing = run("nowhere")
    assert (missing.exit_code, "nowhere" in missing.stderr) == (3, True)
    (tmp_path / "empty").mkdir()
    empty = run("empty")
    assert (empty.exit_code, "no checkpoint" in empty.stderr) == (3, True)
    unknown = run(folder, "--plot", "a.xyz")
    assert (unknown.exit_code, "'xyz' is not supported" in unknown.stderr) == (2, True)


def test_the_help_shows_examples():
    message = run("--help").stdout
    assert "fitkit history runs/digits --plot curves.png" in message
