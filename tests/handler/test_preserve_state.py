"""A trial is undone completely, whatever the handler has and however the trial ends."""

from __future__ import annotations

import copy
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitkit
from fitkit.runtime.rng import capture_streams
from fitkit.testing import differences

pytestmark = [
    pytest.mark.no_cover,
    pytest.mark.filterwarnings("ignore:training changes the buffers:UserWarning"),
]


@pytest.fixture
def tmp_path(fast_scratch):
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class Model(nn.Module):
    """Draws, counts in a buffer that is not saved, and may fail."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2)
        )
        self.frozen = nn.Linear(2, 2)
        self.register_buffer("num_calls", torch.zeros(()), persistent=False)
        self.fails_after = None

    def forward(self, x):
        self.num_calls = self.num_calls + 1  # a new tensor, not the same one changed
        if self.fails_after is not None and self.num_calls > self.fails_after:
            raise RuntimeError("the model fails")
        return self.frozen(self.layers(x)) + random.random() + np.random.rand()


class CentredLoss(nn.Module):
    """A loss with a memory of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, outputs, targets):
        self.mean.mul_(0.9).add_(outputs.detach().mean(0), alpha=0.1)
        return nn.functional.cross_entropy(outputs - self.mean, targets)


class Counter(fitkit.Callback):
    state_fields = ("batches",)

    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, batch, logs):
        self.batches.append(batch)


def data(size=20):
    x = torch.randn(size, 3, generator=torch.Generator().manual_seed(1))
    return x, (x.sum(1) > 0).long()


GENERATED = "a loader with a generator"


def make(tmp_path, *, seed=3, loader=None):
    torch.manual_seed(0)
    handler = fitkit.NNHandler(Model(), "cpu", seed=seed)
    handler.module.frozen.requires_grad_(False)
    handler.set_optimizer(torch.optim.AdamW, lr=0.05)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=2, interval="step")
    handler.set_loss_fn(CentredLoss())
    handler.add_metric("accuracy", fitkit.Accuracy())
    handler.set_val_loader(data(12))
    handler.add_callback(Counter())
    handler.auto_save(1, tmp_path / "auto")
    if loader == GENERATED:
        generator = torch.Generator().manual_seed(5)
        handler.set_train_loader(
            DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True, generator=generator)
        )
    else:
        handler.set_train_loader(data(), batch_size=8)
    return handler


def everything(handler):
    """Everything that a trial could change; reading it changes nothing."""
    module = handler.module
    streams, before = capture_streams(), dict(vars(handler))
    state = handler.get_state_dict()
    vars(handler).update(before)
    seen = {
        "state": copy.deepcopy({**state, "data_seed": 0, "rng": 0}),
        "streams": streams,
        "later": handler.session.pending.get("rng"),
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "trainable": [p.requires_grad for p in module.parameters()],
        "modes": [part.training for part in module.modules()],
        "buffers": [buffer.clone() for buffer in module.buffers()],
        "loss": handler.parts.loss.function.mean.clone(),
        "callbacks": [callback.name for callback in handler.callbacks],
        "restored": handler.callbacks.unclaimed,
        "accumulation": handler.gradient_accumulation_steps,
        "calls": handler.session.call_is_open,
        "interrupted": handler.history.interrupted,
        "metrics": list(handler.parts.metrics),
    }
    if isinstance(handler.parts.train_data.data, DataLoader):
        seen["generator"] = handler.parts.train_data.data.generator.get_state()
    capture = capture_streams()
    assert not list(differences(streams, capture)) or handler.seed is None
    torch.set_rng_state(streams["torch"])
    return seen


TRIALS = {
    "find_learning_rate": lambda handler: handler.find_learning_rate(num_steps=8),
    "with more of fit": lambda handler: handler.find_learning_rate(
        num_steps=6, gradient_accumulation_steps=2, ema_decay=0.5, gradient_clipping_norm=1.0
    ),
    "find_batch_size": lambda handler: handler.find_batch_size(num_steps=2),
    "fast_dev_run": lambda handler: handler.fit(fast_dev_run=3, epochs=4, progress_bar=False),
    "summary": lambda handler: handler.summary(data(4)),
}
BEFORE = {
    "new": lambda handler: None,
    "trained": lambda handler: handler.fit(epochs=2, progress_bar=False, ema_decay=0.9),
    "interrupted": lambda handler: handler.fit(
        callbacks=[fitkit.LambdaCallback(on_train_batch_end=interrupt)], progress_bar=False
    ),
    "with gradients": lambda handler: handler.module.layers(data()[0]).sum().backward(),
    "in parts of evaluation": lambda handler: handler.module.layers.eval(),
}


def interrupt(batch, logs):
    if batch == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize("trial", TRIALS)
@pytest.mark.parametrize("before", BEFORE)
def test_nothing_is_left_behind(tmp_path, trial, before):
    handler = make(tmp_path)
    BEFORE[before](handler)
    seen, files = everything(handler), sorted(tmp_path.rglob("*"))
    TRIALS[trial](handler)
    assert not list(differences(seen, everything(handler)))
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize(("seed", "loader"), [(3, None), (None, GENERATED)])
@pytest.mark.parametrize("trial", TRIALS)
def test_a_fit_afterwards_is_the_same_bit_for_bit(tmp_path, trial, seed, loader):
    tried, plain = (make(tmp_path / n, seed=seed, loader=loader) for n in "ab")
    for handler in (tried, plain):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(7)
        if handler is tried:
            TRIALS[trial](handler)
            handler.fit(epochs=1, progress_bar=False)
            TRIALS[trial](handler)
        else:
            handler.fit(epochs=1, progress_bar=False)
        handler.fit(epochs=1, progress_bar=False)
    first, second = everything(tried), everything(plain)
    paths = [path for path, *_ in differences(first, second) if "AutoSaver" not in path]
    assert paths == []
    assert plain.callbacks[0].batches == tried.callbacks[0].batches == list(range(3))


@pytest.mark.parametrize("trial", TRIALS)
def test_also_when_the_model_raises_in_the_middle(tmp_path, trial):
    handler = make(tmp_path)
    handler.fit(epochs=1, progress_bar=False)
    handler.module.fails_after = handler.module.num_calls + (0 if trial == "summary" else 1)
    seen = everything(handler)
    with pytest.raises(RuntimeError, match="the model fails"):
        TRIALS[trial](handler)
    assert not list(differences(seen, everything(handler)))


def test_a_loaded_handler_goes_on_where_it_was(tmp_path):
    first = make(tmp_path)
    first.fit(
        epochs=2,
        callbacks=[fitkit.ModelCheckpoint(tmp_path / "{global_step}.pth", save_freq=2)],
        progress_bar=False,
    )

    def loaded():
        handler = fitkit.NNHandler.load(tmp_path / "2.pth", "cpu", model_class=Model())
        handler.set_loss_fn(CentredLoss())
        handler.add_metric("accuracy", fitkit.Accuracy())
        handler.set_val_loader(data(12))
        handler.set_train_loader(data(), batch_size=8)
        handler.add_callback(Counter())
        handler.auto_save(1, tmp_path / "auto")
        return handler

    tried, plain = loaded(), loaded()
    tried.find_learning_rate(num_steps=5)
    checkpoint = [fitkit.ModelCheckpoint(tmp_path / "x.pth") for _ in "ab"]
    for handler, saver in zip((tried, plain), checkpoint, strict=True):
        with pytest.warns(UserWarning, match="begin anew"):  # a saver of other files
            handler.fit(epochs=2, callbacks=[saver], progress_bar=False)
    assert not list(differences(tried.weights.training(), plain.weights.training()))
    assert tried.callbacks[0].batches == plain.callbacks[0].batches


def test_a_position_of_the_user_s_own_is_put_back(tmp_path):
    class Stream:
        """An iterable with a position, which continues from pass to pass."""

        position = 0

        def __iter__(self):
            for _ in range(4):
                self.position += 1
                x = torch.full((2, 3), float(self.position))
                yield x, torch.zeros(2, dtype=torch.long)

        def state_dict(self):
            return {"position": self.position}

        def load_state_dict(self, state):
            self.position = state["position"]

    handler, stream = make(tmp_path), Stream()
    stream.position = 7
    handler.find_learning_rate(stream, num_steps=9)
    assert stream.position == 7


def test_what_can_be_read_only_once_is_refused(tmp_path):
    handler = make(tmp_path)
    batches = iter([data(8)])
    with pytest.raises(fitkit.ConfigurationError, match="more than once"):
        handler.find_learning_rate(batches)
    assert len(list(batches)) == 1


def test_inside_a_fit_it_is_refused(tmp_path):
    handler = make(tmp_path)
    found = []

    def look(epoch, logs):
        with pytest.raises(fitkit.ConfigurationError, match="during a fit"):
            handler.find_batch_size()
        found.append(epoch)

    handler.fit(callbacks=[fitkit.LambdaCallback(on_epoch_end=look)], progress_bar=False)
    assert found == [0]


def test_an_interrupt_ends_it_and_leaves_nothing(tmp_path, monkeypatch):
    handler = make(tmp_path)
    seen = everything(handler)

    def step(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(handler.optimizer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        handler.find_learning_rate()
    monkeypatch.undo()
    assert not list(differences(seen, everything(handler)))
