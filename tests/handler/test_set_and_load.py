"""Setters of optimizer and scheduler before and after a load, and what waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, LinearLR

from fitkit import CheckpointError, ConfigurationError, NNHandler
from fitkit.handler.set_and_load import (
    drop_missing_scheduler,
    load_optimizer_part,
    load_scheduler_part,
    require_optimizer,
    set_optimizer,
    set_scheduler,
)

DATA = (torch.randn(16, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(16, 1))


class Scaled(nn.Module):
    """A loss with a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, outputs, targets):
        return ((outputs - targets) * self.scale + 1 - self.scale).square().mean()


def make(cls=Adam, lr=0.1, gamma=None):
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1, seed=0)
    handler.set_loss_fn(nn.MSELoss())
    handler.set_optimizer(cls, lr=lr)
    if gamma is not None:
        handler.set_scheduler(ExponentialLR, gamma=gamma)
    return handler


def trained_state(**how):
    handler = make(**how)
    handler.fit(DATA, epochs=2, progress_bar=False)
    return handler.get_state_dict()


def rate(handler):
    return handler.optimizer.param_groups[0]["lr"]


def test_another_class_is_refused_before_anything_is_loaded():
    state = trained_state(cls=SGD)
    with pytest.raises(CheckpointError, match=r"SGD'.*skip_optimizer=True"):
        require_optimizer(make().parts, state)
    require_optimizer(NNHandler(nn.Linear(2, 1), "cpu").parts, state)
    require_optimizer(make().parts, {**state, "optimizer_state_dict": None})


def test_an_older_file_has_no_groups_and_loads_as_it_is():
    state = trained_state(gamma=0.5)
    del state["optimizer_groups"], state["scheduler_initial_state"]
    handler = make(lr=0.7, gamma=0.9)
    require_optimizer(handler.parts, state)
    load_optimizer_part(handler, state)
    load_scheduler_part(handler, state)
    assert handler.session.changes == []
    assert (rate(handler), handler.scheduler.gamma) == (0.025, 0.5)


def test_optimizer_and_scheduler_wait_until_they_are_set():
    state = trained_state(gamma=0.5)
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1, seed=0)
    load_optimizer_part(handler, state)
    load_scheduler_part(handler, state)
    assert set(handler.session.pending) == {"optimizer", "schedule"}
    set_scheduler(handler, ExponentialLR, {"gamma": 0.5}, "epoch", None)
    set_optimizer(handler, Adam, {"lr": 0.1}, None)
    assert (rate(handler), handler.scheduler.last_epoch) == (0.025, 2)
    assert handler.optimizer.state[handler.module.weight]["step"] == 2
    assert handler.session.changes == []
    handler.set_loss_fn(nn.MSELoss())
    handler.fit(DATA, progress_bar=False)
    assert not {"optimizer", "schedule"} & set(handler.session.pending)


def test_an_optimizer_that_replaces_the_loaded_one_goes_on_with_the_rates_of_the_run():
    handler, state = make(gamma=0.5), trained_state(gamma=0.5)
    load_optimizer_part(handler, state)
    load_scheduler_part(handler, state)
    set_optimizer(handler, Adam, {"lr": 0.1}, None)
    assert (rate(handler), handler.scheduler.last_epoch) == (0.025, 2)
    set_optimizer(handler, Adam, {"lr": 1.0}, None)
    assert (rate(handler), handler.scheduler.last_epoch) == (0.25, 2)
    assert not handler.optimizer.state


def test_a_scheduler_that_is_gone_leaves_the_rate_of_the_script():
    handler, state = make(), trained_state(gamma=0.5)
    load_optimizer_part(handler, state)
    load_scheduler_part(handler, state)
    assert rate(handler) == 0.025
    drop_missing_scheduler(handler)
    assert rate(handler) == 0.1
    assert "initial_lr" not in handler.optimizer.param_groups[0]
    assert handler.session.changes == ["scheduler: ExponentialLR -> none"]
    drop_missing_scheduler(handler)
    assert "schedule" not in handler.session.pending


def test_a_scheduler_that_cannot_be_set_changes_nothing():
    handler = make(gamma=0.5)
    other = make().optimizer
    with pytest.raises(ConfigurationError, match="schedulers of another optimizer"):
        handler.set_scheduler(
            torch.optim.lr_scheduler.SequentialLR, schedulers=[LinearLR(other)], milestones=[]
        )
    assert type(handler.scheduler) is ExponentialLR


def test_a_composed_scheduler_does_not_outlive_its_optimizer():
    handler = make()
    chain = torch.optim.lr_scheduler.ChainedScheduler
    handler.set_scheduler(chain, schedulers=[LinearLR(handler.optimizer)])
    handler.set_optimizer(SGD, lr=0.2)
    with pytest.raises(ConfigurationError, match=r"ChainedScheduler is composed .*set_scheduler"):
        handler.fit(DATA, progress_bar=False)
    handler.set_scheduler(chain, schedulers=[LinearLR(handler.optimizer)])
    handler.fit(DATA, progress_bar=False)
    assert rate(handler) > 0.2 / 3


@pytest.mark.parametrize("loss_first", [True, False])
def test_an_optimizer_with_parameters_of_the_loss_waits_after_a_load(tmp_path, loss_first):
    def complete(handler, loss):
        if loss_first:
            handler.set_loss_fn(loss)
        handler.set_optimizer(Adam, lr=0.1, params=lambda m: [*m.parameters(), loss.scale])
        handler.set_loss_fn(loss)

    whole, own = make(), Scaled()
    complete(whole, own)
    whole.set_scheduler(ExponentialLR, gamma=0.5)
    whole.fit(DATA, epochs=2, progress_bar=False)
    whole.save(tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"parameters that are not the model's: call set_optim"):
        loaded = NNHandler.load(tmp_path / "a.pth")
    assert loaded.optimizer is None
    loss = Scaled()
    loss.load_state_dict(own.state_dict())
    complete(loaded, loss)
    for handler in (whole, loaded):
        handler.fit(DATA, epochs=2, progress_bar=False)
    assert torch.equal(whole.module.weight, loaded.module.weight)
    assert torch.equal(own.scale, loss.scale)
    assert whole.history.history == loaded.history.history


def test_a_load_that_fails_leaves_the_optimizer_as_it_was(tmp_path):
    handler = make(gamma=0.5)
    handler.save(tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth")
    state["scheduler_state_dict"]["last_epoch"] = "four"
    state["optimizer_state_dict"]["param_groups"][0]["lr"] = 7.0
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="last_epoch"):
        handler.fit(DATA, resume=tmp_path / "b.pth", progress_bar=False)
    assert (rate(handler), handler.session.changes) == (0.1, [])


ROOT = str(Path(__file__).parents[2])
SCRIPT = """
import os, signal, sys
import torch
from torch import nn
from torch.optim import lr_scheduler
import fitkit

folder, epochs, length, kill_at = sys.argv[1], *map(int, sys.argv[2:])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, inputs):
        return self.head(self.body(inputs).relu())


class Unfreezes(fitkit.Callback):
    def on_epoch_begin(self, epoch, logs):
        if epoch == 1:
            body = self.handler.module.body.parameters()
            self.handler.optimizer.add_param_group({"params": body, "lr": 0.02})


class Kills(fitkit.Callback):
    order = 999

    def on_train_batch_end(self, batch, logs):
        if self.handler.state.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


handler = fitkit.NNHandler(Net, "cpu", seed=0)
handler.set_loss_fn(nn.MSELoss())
handler.set_optimizer(
    torch.optim.AdamW, lr=0.1, params=lambda m: [{"params": [m.head.weight], "amsgrad": True},
                                                  {"params": [m.head.bias], "weight_decay": 0.0}]
)
if length:
    handler.set_scheduler(lr_scheduler.CosineAnnealingLR, T_max=length, interval="step")
saver = fitkit.ModelCheckpoint(folder + "/{global_step:02d}.pth", save_freq=3)
data = (torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(32, 1))
handler.fit(data, epochs=epochs, batch_size=4, progress_bar=False, resume=folder,
            callbacks=[*([] if length else [Unfreezes()]), saver, Kills()])
print(repr([g["lr"] for g in handler.optimizer.param_groups]))
print(repr([p.double().sum().item() for p in handler.module.parameters()]))
"""


def start(tmp_path, folder, epochs, length, kill_at=-1):
    """What the script prints; ``None`` if it killed itself."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / folder), str(epochs), str(length), str(kill_at)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    if kill_at > 0:
        assert done.returncode == -signal.SIGKILL, done.stderr
        return None
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.no_cover
@pytest.mark.slow
@pytest.mark.parametrize("kills", [(5,), (8, 13)])
def test_killed_processes_with_a_group_that_a_callback_adds(tmp_path, kills):
    for kill_at in kills:
        start(tmp_path, "parts", 3, 0, kill_at)
    assert start(tmp_path, "parts", 3, 0) == start(tmp_path, "whole", 3, 0)


@pytest.mark.no_cover
@pytest.mark.slow
def test_a_killed_process_that_is_started_again_with_a_longer_schedule(tmp_path):
    start(tmp_path, "parts", 2, 16, 13)
    parts, whole = start(tmp_path, "parts", 3, 24), start(tmp_path, "whole", 3, 24)
    assert parts.splitlines()[0] == whole.splitlines()[0]
    assert parts.splitlines()[1] != whole.splitlines()[1]
