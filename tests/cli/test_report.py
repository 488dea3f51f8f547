"""``fitkit report``: a folder becomes one page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fitkit
from fitkit.cli.all_commands import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    handler.auto_save(1, "run", "{epoch}")
    handler.fit((torch.ones(8, 2), torch.zeros(8, 1)), epochs=2, progress_bar=False)
    return Path("run")


def run(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_the_page_lies_in_the_folder_or_where_it_is_wanted(folder):
    assert run(folder).stdout == "wrote run/report.html\n"
    page = (folder / "report.html").read_bytes()
    assert run(folder, "-o", "sub/page.html").stdout == "wrote sub/page.html\n"
    assert Path("sub/page.html").read_bytes() == page  # the page itself is no part of the run
    assert page.startswith(b"<!doctype html>")


def test_checksums_are_left_alone_if_asked(folder):
    assert '"condition":"valid"' in run_and_read(folder)
    assert '"condition":"not verified"' in run_and_read(folder, "--no-verify")


def run_and_read(folder, *options):
    assert run(folder, *options).exit_code == 0
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "not a folder"),
        (["run/1.pth"], "not a folder"),
        (["empty"], "no checkpoint"),
        (["run", "-o", "file/page.html"], "could not save"),
    ],
)
def test_what_cannot_be_done_is_said(folder, arguments, said):
    Path("empty").mkdir()
    Path("file").write_text("")
    message = run(*arguments)
    assert message.exit_code == 3
    assert said in message.stderr
