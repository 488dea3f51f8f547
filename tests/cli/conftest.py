"""Runs whose files the command line is tried on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import fitkit
from fitkit.cli.all_commands import main


@pytest.fixture
def cli(monkeypatch):
    """Calls the command line; checks the exit code, and that an error is one sentence."""
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments, code=0):
        result = CliRunner().invoke(main, [str(one) for one in arguments], catch_exceptions=False)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return call


@pytest.fixture
def as_json(cli):
    """What a command prints with ``--json``: one document of plain JSON."""

    def call(*arguments, code=0):
        def refuse(constant):
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(cli(*arguments, "--json", code=code).stdout, parse_constant=refuse)

    return call


@pytest.fixture(scope="session")
def make_run():
    """Trains four epochs of four batches; files of several savers are in the folder."""

    def run(folder, lr=0.05, seed=3, epochs=4):
        inputs = torch.arange(48.0).reshape(16, 3).sin()
        targets = (inputs.sum(1) > 0).long()
        handler = fitkit.NNHandler(nn.Linear, in_features=3, out_features=2, seed=seed)
        handler.set_optimizer(torch.optim.AdamW, lr=lr)
        handler.set_loss_fn(nn.CrossEntropyLoss())
        handler.add_metric("accuracy", fitkit.Accuracy())
        savers = [
            fitkit.ModelCheckpoint(folder / "epochs" / "{epoch:02d}.pth"),
            fitkit.ModelCheckpoint(folder / "best.pth", "val_loss", save_best_only=True),
            fitkit.ModelCheckpoint(folder / "weights.pth", save_weights_only=True),
            fitkit.ModelCheckpoint(folder / "steps" / "{global_step}.pth", save_freq=6),
        ]
        options = {"batch_size": 4, "progress_bar": False, "callbacks": savers}
        handler.fit((inputs, targets), epochs=epochs, validation_data=(inputs, targets), **options)
        return handler

    return run


@pytest.fixture(scope="session")
def original(tmp_path_factory, make_run):
    folder = tmp_path_factory.mktemp("cli") / "run"
    make_run(folder)
    return folder


@pytest.fixture
def run(original, tmp_path):
    """The folder of a run: ``epochs/01.pth`` to ``04.pth``, ``best.pth``, steps 6 and 12, weights.

    ``best.pth`` is another name of ``epochs/04.pth``.
    """
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    (folder / "best.pth").unlink()
    (folder / "best.pth").hardlink_to(folder / "epochs" / "04.pth")
    return folder


@pytest.fixture
def damage():
    """Turns one bit in the first tensor of a file: only its checksum tells."""

    def turn(path: Path) -> None:
        content = bytearray(path.read_bytes())
        weight = torch.load(path, weights_only=True)["model_state_dict"]["weight"]
        content[content.index(weight.numpy().tobytes())] ^= 1
        path.unlink()  # other names of the file stay whole
        path.write_bytes(content)

    return turn
