"""What ``fit`` says on the screen when it resumes."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import nn

from fitkit import Callback, EarlyStopping, ModelCheckpoint, NNHandler

X = torch.ones(10, 2)


class StopsAt(Callback):
    """Ends the call with an error at an event."""

    order = 200

    def __init__(self, event, step):
        self.step = step
        setattr(self, event, self._check)

    def _check(self, *args):
        if self.handler.state.global_step == self.step:
            raise RuntimeError


def fit(folder, *callbacks, epochs=3, logger_mode=None, **options):
    handler = NNHandler(nn.Linear, "cpu", logger_mode, seed=0, in_features=2, out_features=1)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    savers = [
        ModelCheckpoint(folder / "{global_step}.pth", save_freq=1),
        ModelCheckpoint(folder / "epoch-{epoch}.pth"),
    ]
    handler.fit(
        (X, X[:, :1]),
        epochs=epochs,
        batch_size=4,
        validation_data=(X, X[:, :1]),
        callbacks=[*savers, *callbacks],
        progress_bar=False,
        resume=folder,
        **options,
    )
    return handler


def said(capsys):
    return capsys.readouterr().err.strip().splitlines()


def test_a_start_that_finds_nothing(tmp_path, capsys):
    fit(tmp_path / "not there")
    assert said(capsys) == ["fit found no checkpoint to resume from: training begins anew."]


@pytest.mark.parametrize("bar", [False, True])
@pytest.mark.parametrize(
    ("event", "step", "text"),
    [
        (
            "on_train_batch_begin",
            4,
            "1 of 3 epochs done; it goes on in epoch 2, after batch 1 of 3",
        ),
        ("on_train_batch_begin", 3, "1 of 3 epochs done; it goes on in epoch 2, 2 epochs left"),
        ("on_test_batch_end", 6, "1 of 3 epochs done; it goes on in epoch 2, after batch 3 of 3"),
        ("on_train_batch_begin", 6, "2 of 3 epochs done; it goes on in epoch 3, 1 epoch left."),
    ],
)
def test_where_a_resumed_run_goes_on(tmp_path, capsys, event, step, text, bar):
    with pytest.raises(RuntimeError):
        fit(tmp_path, StopsAt(event, step))
    capsys.readouterr()
    handler = fit(tmp_path)
    lines = said(capsys)
    assert len(lines) == 1
    assert lines[0].startswith(f"fit resumes from {tmp_path}/")
    assert text in lines[0]
    assert handler.state.epoch == 3


def test_nothing_is_left_to_do(tmp_path, capsys):
    fit(tmp_path)
    capsys.readouterr()
    fit(tmp_path)
    path = tmp_path / "epoch-3.pth"
    assert said(capsys) == [f"fit resumes from {path}: 3 of 3 epochs done; nothing is left to do."]


def test_the_reason_of_an_early_stop_is_said(tmp_path, capsys):
    stop = [EarlyStopping("loss", patience=1, min_delta=9.0) for _ in range(2)]
    fit(tmp_path, stop[0], epochs=9)
    capsys.readouterr()
    fit(tmp_path, stop[1], epochs=9)
    (line,) = said(capsys)
    assert "2 of 9 epochs done; nothing is left to do. Training was stopped: EarlyStopping:" in line


def test_each_difference_is_a_line(tmp_path, capsys):
    fit(tmp_path, epochs=2)
    capsys.readouterr()
    fit(tmp_path, epochs=3, precision="bf16", gradient_clipping_norm=1.0)
    lines = said(capsys)
    assert len(lines) == 4
    expected = [
        "  epochs: 2 -> 3",
        "  precision: None -> bf16",
        "  gradient clipping norm: None -> 1.0",
    ]
    assert sorted(lines[1:]) == sorted(expected)


@pytest.mark.parametrize("mode", ["console", "both", "file"])
def test_a_handler_that_logs_to_the_console_says_it_once(tmp_path, capsys, monkeypatch, mode):
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, logger_mode=mode)
    assert capsys.readouterr().err.count("training begins anew") == 1
    log = tmp_path / "NNHandler.log"
    assert (mode != "console") == (log.exists() and "training begins anew" in log.read_text())


def test_a_program_that_shows_the_logger_reads_it_once(tmp_path, capsys):
    logger = logging.getLogger("fitkit")
    shown = logging.StreamHandler(sys.stderr)
    logger.addHandler(shown)
    level, logger.level = logger.level, logging.INFO
    try:
        fit(tmp_path)
    finally:
        logger.removeHandler(shown)
        logger.level = level
    assert capsys.readouterr().err.count("training begins anew") == 1


def test_a_program_without_stderr(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert fit(tmp_path).state.epoch == 3
