"""A run's folder as people leave it, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import fitkit


def _make_handler():
    handler = fitkit.NNHandler(nn.Linear, in_features=3, out_features=2, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.5, momentum=0.9)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=3)
    handler.set_loss_fn(nn.CrossEntropyLoss(label_smoothing=0.1))
    handler.add_metric("accuracy", fitkit.Accuracy())
    inputs = torch.arange(48, dtype=torch.float32).reshape(16, 3) / 48
    targets = torch.arange(16) % 2
    handler.set_train_loader((inputs, targets), batch_size=4)
    handler.set_val_loader((inputs[:6], targets[:6]), batch_size=3)
    return handler


def callbacks_for(folder: Path):
    return [
        fitkit.EarlyStopping("val_loss", mode="max", patience=4),
        fitkit.ModelCheckpoint(folder / "best.pth", monitor="val_loss", save_best_only=True),
        fitkit.ModelCheckpoint(folder / "all" / "{epoch:02d}.pth"),
        fitkit.CSVLogger(folder / "log.csv"),
        fitkit.JSONLinesLogger(folder / "log.jsonl"),
    ]


@pytest.fixture
def make_handler():
    """Makes handlers with all their parts."""
    return _make_handler


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a run; not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    _make_handler().fit(epochs=8, callbacks=callbacks_for(folder), progress_bar=False)
    return folder


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished_run, tmp_path / "run")
