"""Calls of ``fit`` in one script: what is finished returns at once, what is not goes on."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from torch import nn

from fitkit import Accuracy, Callback, EarlyStopping, ModelCheckpoint, NNHandler
from fitkit.testing import differences

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(4, 4), nn.Dropout(0.2), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(self.drop(self.body(inputs).relu()))


class Trouble(Callback):
    """Raises at the end of a batch, once, or sends Ctrl-C."""

    order = 200

    def __init__(self, step=None, error=RuntimeError):
        self.step = step
        self.error = error

    def on_train_batch_end(self, batch, logs):
        if self.handler.state.global_step == self.step:
            self.step = None
            if self.error is KeyboardInterrupt:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise self.error


def pretrain_and_finetune(folder, trouble=None, keep=None, resume=True, between=lambda h: None):
    """Two calls that share nothing but the model: optimizer, schedule, metric, data, callbacks."""
    handler = NNHandler(Net, "cpu", seed=0)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    more = [] if trouble is None else [trouble]

    def savers():
        return [
            ModelCheckpoint(folder / "{global_step:02d}.pth", save_freq=2, max_to_keep=keep),
            ModelCheckpoint(folder / "epoch-{epoch}.pth", max_to_keep=keep),
        ]

    handler.set_optimizer(torch.optim.Adam, lr=0.01, params=lambda m: m.head.parameters())
    first = handler.fit(
        (X, Y),
        epochs=2,
        batch_size=5,
        callbacks=[*savers(), EarlyStopping("loss", patience=9), *more],
        progress_bar=False,
        resume=resume,
    )
    seen = (list(first.epoch), dict(first.history))
    between(handler)
    handler.set_optimizer(torch.optim.SGD, lr=0.05, momentum=0.9)
    handler.set_scheduler(
        torch.optim.lr_scheduler.OneCycleLR, interval="step", max_lr=0.1, total_steps=12
    )
    if "accuracy" not in handler.parts.metrics:
        handler.add_metric("accuracy", Accuracy())
    handler.fit(
        (X[:16], Y[:16]),
        epochs=3,
        batch_size=4,
        callbacks=[*savers(), *more],
        progress_bar=False,
        resume=resume,
    )
    return handler, seen


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    handler, seen = pretrain_and_finetune(tmp_path_factory.mktemp("whole"))
    return handler.get_state_dict(), seen


@pytest.mark.parametrize("keep", [None, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "step",
    [
        *range(2, 21, 3),
        *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 21) if n % 3 != 2),
    ],
)
def test_two_calls_interrupted_after_any_batch(tmp_path, expected, step, keep):
    with pytest.raises(RuntimeError):
        pretrain_and_finetune(tmp_path, Trouble(step), keep)
    handler, seen = pretrain_and_finetune(tmp_path, keep=keep)
    ignored = ("kept", "lasting", "dropping", "'config'")  # these differ with ``keep``
    found = [
        path
        for path, *_ in differences(expected[0], handler.get_state_dict())
        if not any(word in path for word in ignored)
    ]
    assert found == []
    assert seen == expected[1], "the history that the finished call returns"


def test_a_finished_call_has_its_own_weights_if_its_file_is_there(tmp_path):
    weights = []

    def note(handler):
        weights.append(handler.module.head.weight.detach().clone())

    pretrain_and_finetune(tmp_path, between=note)
    pretrain_and_finetune(tmp_path, between=note)
    assert torch.equal(weights[0], weights[1])


def test_if_its_file_is_gone_it_has_the_newest_weights_history_and_counters(tmp_path, capsys):
    whole, _ = pretrain_and_finetune(tmp_path, keep=1)
    for path in tmp_path.iterdir():
        if path.name not in ("20.pth", "epoch-5.pth"):
            path.unlink()
    found = []

    def note(handler):
        found.append((handler.module.head.weight.detach().clone(), handler.state.counters()))

    capsys.readouterr()
    pretrain_and_finetune(tmp_path, keep=1, between=note)
    weight, counters = found[0]
    assert torch.equal(weight, whole.module.head.weight)
    assert (counters["epoch"], counters["global_step"]) == (2, 8)
    lines = capsys.readouterr().err.splitlines()
    assert "call 1 of fit is finished, 2 epochs done; nothing is left to do" in lines[0]
    assert "5 of 5 epochs done; nothing is left to do" in lines[1]


def test_a_model_that_is_changed_between_the_calls(tmp_path):
    def widen(handler):
        torch.manual_seed(3)
        handler.module.head = nn.Linear(4, 5)

    whole, _ = pretrain_and_finetune(tmp_path / "a", between=widen)
    with pytest.raises(RuntimeError):
        pretrain_and_finetune(tmp_path / "b", Trouble(15), keep=1, between=widen)
    again, _ = pretrain_and_finetune(tmp_path / "b", keep=1, between=widen)
    assert torch.equal(whole.module.head.weight, again.module.head.weight)


# ---- one process --------------------------------------------------------------------------------


def cell(handler, folder, trouble, **options):
    return handler.fit(
        (X, Y),
        epochs=3,
        batch_size=5,
        callbacks=[trouble, EarlyStopping("loss", patience=9)],
        progress_bar=False,
        resume=folder,
        **options,
    )


def in_notebook(folder, interval=1):
    handler = NNHandler(Net, "cpu", seed=0)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.set_optimizer(torch.optim.Adam, lr=0.01)
    handler.auto_save(interval, folder, "{epoch:02d}")
    return handler


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("interval", [1, pytest.param(9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", range(1, 13))
def test_a_cell_that_is_run_again_goes_on(tmp_path, step, interval, error):
    """With a checkpoint from it, else from memory, in which an error leaves whole batches."""
    whole = in_notebook(tmp_path / "whole", interval)
    expected = cell(whole, tmp_path / "whole", Trouble())
    handler = in_notebook(tmp_path / "run", interval)
    trouble = Trouble(step, error)
    try:
        history = cell(handler, tmp_path / "run", trouble)
    except RuntimeError:
        assert error is RuntimeError
    else:
        assert history.interrupted
    history = cell(handler, tmp_path / "run", trouble)
    assert history.history == expected.history
    assert (handler.state.call, handler.state.global_step) == (1, 12)
    assert torch.equal(whole.module.head.weight, handler.module.head.weight)


def test_without_resume_a_second_call_trains_its_own_epochs(tmp_path):
    handler = in_notebook(tmp_path)
    with pytest.raises(RuntimeError):
        cell(handler, None, Trouble(5))
    history = cell(handler, None, Trouble())
    assert (handler.state.call, history.epoch) == (2, [0, 1, 2, 3])


def test_a_finished_cell_that_is_run_again_is_a_new_call(tmp_path):
    handler = in_notebook(tmp_path)
    cell(handler, tmp_path, Trouble())
    cell(handler, tmp_path, Trouble())
    assert (handler.state.call, handler.state.epoch) == (2, 6)


# ---- data ---------------------------------------------------------------------------------------


def stream(first, number):
    for batch in range(first, first + number):
        yield torch.full((2, 4), float(batch)), torch.zeros(2, dtype=torch.long)


def seen_by(handler):
    seen = []
    handler.set_train_step(
        lambda h, batch: seen.append(int(batch[0][0, 0])) or 0.0 * h.model(batch[0]).sum()
    )
    return seen


def test_a_second_call_reads_its_own_data_from_the_beginning():
    handler = in_notebook("nowhere", None)
    seen = seen_by(handler)
    handler.fit(stream(0, 4), epochs=1, progress_bar=False)
    handler.fit(stream(10, 6), epochs=1, progress_bar=False)
    assert seen == [0, 1, 2, 3, *range(10, 16)]


def test_the_very_same_iterator_goes_on_where_it_was():
    handler = in_notebook("nowhere", None)
    seen, data = seen_by(handler), stream(0, 8)
    for _ in range(2):
        handler.fit(data, epochs=1, steps_per_epoch=4, progress_bar=False)
    assert seen == list(range(8))
