"""What a fit says when it begins: averages, losses and buffers that no one takes care of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fitkit
from fitkit import CheckpointError, DataError, NNHandler


class Loss(nn.Module):
    """Has a learned scale."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, outputs, targets):
        return (outputs - targets).square().mean() * self.scale.exp() + self.scale.square()


class Counting(nn.Linear):
    """Counts its batches in a buffer that is not saved."""

    def __init__(self):
        super().__init__(3, 1)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.count += float(self.training)
        return super().forward(x)


X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
DATA = (X, X.sum(1, keepdim=True))


def make(loss=None, params=None, model=None):
    arguments = {"in_features": 3, "out_features": 1} if model is None else {}
    handler = NNHandler(nn.Linear if model is None else model, "cpu", seed=0, **arguments)
    handler.set_loss_fn(nn.MSELoss() if loss is None else loss)
    handler.set_optimizer(torch.optim.SGD, lr=0.05, params=params)
    return handler


def fit(handler, epochs=2, **options):
    return handler.fit(DATA, epochs=epochs, batch_size=4, progress_bar=False, **options)


# ---- averages -----------------------------------------------------------------------------------


def test_a_second_fit_without_averaging_drops_the_average(tmp_path):
    handler, path = make(), tmp_path / "w.pth"
    fit(handler, ema_decay=0.9)
    saver = fitkit.ModelCheckpoint(path, save_weights_only=True)
    with pytest.warns(UserWarning, match=r"\(EMA\) of earlier training was dropped.*ema_decay="):
        history = fit(handler, validation_data=DATA, callbacks=[saver])
    assert handler.ema is None
    own = float(nn.functional.mse_loss(handler.module(DATA[0]).detach(), DATA[1]))
    assert history.history["val_loss"][-1] == pytest.approx(own)
    assert torch.equal(torch.load(path)["weight"], handler.module.weight)


@pytest.mark.parametrize("how", ["resume", "load"])
def test_a_file_with_an_average_goes_on_without_it(tmp_path, how):
    fit(make(), ema_decay=0.9, callbacks=[fitkit.ModelCheckpoint(tmp_path / "{epoch}.pth")])
    saver = fitkit.ModelCheckpoint(tmp_path / "{epoch}.pth")
    resume, handler = tmp_path, make()
    if how == "load":
        resume, handler = None, NNHandler.load(tmp_path / "2.pth")
        outputs = handler.predict(DATA[0])  # of the average
        handler.module.load_state_dict(handler.ema.weights())
        assert torch.equal(outputs, handler.module(DATA[0]).detach())
        handler = NNHandler.load(tmp_path / "2.pth")
    with pytest.warns(UserWarning, match="was dropped"):
        fit(handler, 3, resume=resume, validation_data=DATA, callbacks=[saver])
    assert handler.ema is None
    assert handler.get_state_dict()["ema_state_dict"] is None


def test_a_fit_that_fails_to_begin_leaves_the_average(tmp_path):
    handler = make()
    fit(handler, ema_decay=0.9, callbacks=[fitkit.ModelCheckpoint(tmp_path / "{epoch}.pth")])
    before = handler.get_state_dict()["ema_state_dict"]

    class Refuses(fitkit.Callback):
        state_fields = ("count",)
        count = 0

        def reset(self):
            raise ValueError("on purpose")

    handler.add_callback(Refuses())
    with (
        pytest.warns(UserWarning, match="was dropped"),
        pytest.raises(CheckpointError, match="purpose"),
    ):
        fit(handler, resume=tmp_path / "1.pth")
    found = handler.get_state_dict()["ema_state_dict"]
    assert torch.equal(found["weights"]["weight"], before["weights"]["weight"])


@pytest.mark.filterwarnings("error")
def test_a_trial_neither_drops_nor_says_so():
    handler = make()
    fit(handler, ema_decay=0.9)
    before = {name: value.clone() for name, value in handler.ema.weights().items()}
    handler.find_learning_rate(DATA, num_steps=5, batch_size=4)
    fit(handler, fast_dev_run=True)
    assert all(torch.equal(handler.ema.weights()[name], value) for name, value in before.items())


# ---- the loss -----------------------------------------------------------------------------------


def test_parameters_of_the_loss_that_nobody_trains():
    with pytest.warns(UserWarning, match=r"of the loss Loss are not trained.*params=lambda m"):
        fit(make(Loss()))


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_losses_that_are_trained_or_frozen():
    loss = Loss()
    fit(make(loss, lambda m: [*m.parameters(), *loss.parameters()]))
    fit(make(Loss().requires_grad_(False)))
    fit(make(nn.CrossEntropyLoss(weight=torch.ones(1))), epochs=0)


def test_parameters_that_no_checkpoint_holds():
    loss = Loss()
    handler = make(lambda o, t: loss(o, t), lambda m: [*m.parameters(), *loss.parameters()])
    with pytest.warns(UserWarning, match="neither to the model nor to a loss module"):
        fit(handler)


# ---- buffers ------------------------------------------------------------------------------------


def test_unsaved_buffers_that_training_changes_are_told_of_once():
    handler = make(model=Counting())
    with pytest.warns(UserWarning, match="changes the buffers 'count'") as caught:
        fit(handler, epochs=4)
    assert len(caught) == 1
    assert [callback.name for callback in handler.callbacks] == ["history"]


@pytest.mark.filterwarnings("error")
def test_no_callback_watches_a_model_without_such_buffers():
    names = []
    look = fitkit.LambdaCallback(
        on_train_end=lambda logs: names.extend(c.name for c in handler.callbacks)
    )
    handler = make(model=nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)))
    fit(handler, callbacks=[look])
    assert sorted(names) == ["LambdaCallback", "history"]


# ---- data without a batch -----------------------------------------------------------------------

NONE = TensorDataset(X[:0], X[:0, :1])
FEW = DataLoader(TensorDataset(*(part[:3] for part in DATA)), batch_size=8, drop_last=True)


@pytest.mark.parametrize("empty", [NONE, (X[:0], X[:0, :1]), FEW, []])
def test_data_without_a_batch_is_refused_before_the_first_epoch(empty):
    seen = []
    look = fitkit.LambdaCallback(
        on_train_begin=lambda logs: seen.append("begin"),
        on_train_batch_end=lambda batch, logs: seen.append(batch),
    )
    handler = make()
    with pytest.raises(DataError, match=r"the validation data yields no batch: check .* drop_last"):
        fit(handler, validation_data=empty, callbacks=[look])
    with pytest.raises(DataError, match="the training data yields no batch"):
        handler.fit(empty, callbacks=[look], progress_bar=False)
    handler.set_val_loader(empty)
    with pytest.raises(DataError, match="the validation data yields no batch"):
        fit(handler, callbacks=[look])
    assert seen == []


def test_a_fit_of_no_epoch_needs_no_batch():
    make().fit([], epochs=0, progress_bar=False)
