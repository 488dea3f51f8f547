"""What happens before the first hook and after the last one: signals, streams, stops, warnings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from fitkit import EarlyStopping, ModelCheckpoint, NNHandler

DATA = (torch.ones(8, 2), torch.ones(8, 1))

SCRIPT = """
import os, signal, sys
import torch, fitkit
from fitkit.training import prepare

moment = sys.argv[1]

class Ends(fitkit.Callback):
    def on_train_end(self, logs):
        if moment in ("on_train_end", "Ctrl-C, then SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, batch, logs):
        for _ in range({"Ctrl-C twice": 2, "Ctrl-C, then SIGTERM": 1}.get(moment, 0)):
            os.kill(os.getpid(), signal.SIGINT)

def late(function):
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return result
    return call

if moment == "lookup":
    prepare.resume = late(prepare.resume)
if moment == "cleanup":
    from fitkit.training import fit
    fit._leave_streams = late(fit._leave_streams)

handler = fitkit.NNHandler(torch.nn.Linear, seed=0, in_features=2, out_features=1)
handler.set_loss_fn(torch.nn.MSELoss())
for lr in (0.1, 0.2):
    handler.set_optimizer(torch.optim.SGD, lr=lr)
    handler.fit((torch.ones(8, 2), torch.ones(8, 1)), epochs=1, resume="run", progress_bar=False,
                callbacks=[fitkit.ModelCheckpoint("run/{epoch}.pth"), Ends()])
print("end")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which both calls are finished."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(folder, "none")[:2] == (0, "end")
    return folder


def run(folder, moment):
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, moment], cwd=folder, capture_output=True, text=True
    )
    return done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("moment", "code"),
    [
        pytest.param("lookup", 143, marks=pytest.mark.slow),
        pytest.param("on_train_end", 143, marks=pytest.mark.slow),
        ("cleanup", -signal.SIGTERM),
    ],
)
def test_a_signal_is_not_lost(finished, moment, code):
    """While a finished call is looked up, in the last hook, and after the last check."""
    assert run(finished, moment)[:2] == (code, "")


@pytest.mark.slow
def test_ctrl_c_ends_the_call_of_fit_alone_and_sigterm_after_it_the_program(tmp_path):
    code, out, err = run(tmp_path / "a", "Ctrl-C twice")
    assert (code, out) == (0, "end"), err
    code, out, err = run(tmp_path / "b", "Ctrl-C, then SIGTERM")
    assert (code, out) == (-signal.SIGTERM, ""), err


def make(lr=0.1):
    handler = NNHandler(nn.Linear, "cpu", seed=0, in_features=2, out_features=1)
    handler.set_optimizer(torch.optim.SGD, lr=lr)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def test_the_streams_of_the_program_are_put_back_if_the_run_cannot_begin(tmp_path):
    handler = make()
    handler.fit(DATA, epochs=1, callbacks=[ModelCheckpoint(tmp_path / "a.pth")], progress_bar=False)
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    other = NNHandler(nn.Linear, "cpu", seed=0, in_features=3, out_features=1)
    other.set_optimizer(torch.optim.SGD, lr=0.1)
    other.set_loss_fn(nn.MSELoss())
    with pytest.raises(Exception, match="do not fit") as error:
        other.fit(DATA, epochs=1, resume=tmp_path, progress_bar=False)
    assert "raised while fit resumed from" in error.value.__notes__[0]
    assert torch.rand(()) == expected
    assert not other.session.call_is_open


def test_a_withdrawn_stop_is_said_and_the_run_goes_on(tmp_path, capsys):
    def fit(patience, epochs=9):
        handler = make(lr=0.0)
        stop = EarlyStopping("loss", patience=patience)
        saver = ModelCheckpoint(tmp_path / "{epoch}.pth")
        handler.fit(
            DATA, epochs=epochs, callbacks=[stop, saver], progress_bar=False, resume=tmp_path
        )
        return handler.state.epoch, stop.stopped_epoch

    assert fit(2) == (3, 2)
    capsys.readouterr()
    assert fit(5) == (6, 5)
    said = capsys.readouterr().err
    assert "EarlyStopping patience: 2 -> 5" in said
    assert "the stop is withdrawn: EarlyStopping:" in said
    assert fit(5, epochs=12) == (7, 6), "with more epochs it goes on to the next check"


def test_the_missing_auto_save_is_named_after_a_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handler = make()
    handler.auto_save(2, "run", "{epoch:02d}", overwrite=True)
    handler.fit(DATA, epochs=2, progress_bar=False)
    loaded = NNHandler.load("run/02.pth")
    text = (
        r"not attached: 'AutoSaver'.*handler\.auto_save\(2, 'run', '\{epoch:02d\}', True\) before"
    )
    with pytest.warns(UserWarning, match=text):
        loaded.fit(DATA, epochs=1, progress_bar=False)
    loaded.auto_save(2, "run", "{epoch:02d}", overwrite=True)
    loaded.fit(DATA, epochs=1, progress_bar=False)
    assert sorted(os.listdir("run")) == ["04.pth"], "auto-saving goes on as it was set"
