"""The run that ``fit`` builds: data, limits, steps, and what callbacks are told."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fitkit import Callback, ConfigurationError, ModelCheckpoint, NNHandler
from fitkit.core.errors import Preempted
from fitkit.core.state import FitState
from fitkit.data.spec import is_batched_by_fitkit
from fitkit.engine.run import RankSync
from fitkit.runtime.signals import SignalWatch
from fitkit.training.build_run import HandlerLifecycle, build_run, run_params, training_specs
from fitkit.training.options import FitOptions

X, Y = torch.ones(10, 2), torch.zeros(10, 1)
DATASET = TensorDataset(X, Y)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATASET)


@pytest.fixture
def handler():
    handler = NNHandler(nn.Linear, "cpu", in_features=2, out_features=1, seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def build(handler, first_epoch=0, first_step=0, **options):
    options = FitOptions(**{"train_data": (X, Y), "batch_size": 3, **options})
    specs = training_specs(handler, options)
    run = build_run(
        handler,
        options,
        specs,
        RankSync(FitState(), SignalWatch(())),
        first_epoch=first_epoch,
        first_step=first_step,
        continues=False,
    )
    return run, run_params(handler, run, options, specs[0], first_epoch, resumed=False)


def specs_of(handler, **options):
    return training_specs(handler, FitOptions(**options))


def test_without_training_data(handler):
    with pytest.raises(ConfigurationError, match=r"no training data: pass it to fit, or call"):
        specs_of(handler)


def test_the_data_that_was_set_with_the_options_of_fit(handler):
    handler.set_train_loader(DATASET, batch_size=4, shuffle=False, num_workers=2)
    handler.set_val_loader((X, Y), batch_size=7)
    train, validation = specs_of(handler, batch_size=5)
    assert (train.data, train.batch_size, train.shuffle) == (DATASET, 5, False)
    assert train.loader_kwargs == {"num_workers": 2}
    assert validation[""].batch_size == 7
    train, _ = specs_of(handler, shuffle=True)
    assert (train.batch_size, train.shuffle) == (4, True)


def test_data_of_fit_goes_before_what_was_set(handler):
    handler.set_train_loader(DATASET, batch_size=4)
    handler.set_val_loader(DATASET)
    given, held_out = (X, Y), (X[:2], Y[:2])
    train, validation = specs_of(handler, train_data=given, validation_data=held_out, batch_size=6)
    assert (train.data, train.batch_size) == (given, 6)
    assert (validation[""].data, validation[""].batch_size) == (held_out, 6)
    assert specs_of(handler, train_data=given)[1][""].data is DATASET


def test_a_split_goes_before_the_validation_data_that_was_set(handler):
    handler.set_val_loader((X, Y))
    train, validation = specs_of(handler, train_data=(X, Y), validation_split=0.2)
    assert (len(train.data[0]), len(validation[""].data[0])) == (8, 2)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ((X, Y), True),
        ((X.numpy(), Y.numpy()), True),
        (DATASET, True),
        (Stream(), True),
        (DataLoader(DATASET), False),
        ([(X, Y)], False),
        (iter([(X, Y)]), False),
    ],
    ids=["tensors", "arrays", "dataset", "stream", "loader", "list", "iterator"],
)
def test_who_makes_the_batches(handler, data, expected):
    assert is_batched_by_fitkit(data) is expected
    _, validation = specs_of(handler, train_data=(X, Y), validation_data=data, batch_size=5)
    assert validation[""].batch_size == (5 if expected else None)


@pytest.mark.parametrize("max_steps", [None, 7])
def test_limits_count_from_the_start_of_the_call(handler, max_steps):
    run, _ = build(handler, first_epoch=2, first_step=10, epochs=3, max_steps=max_steps)
    assert run.last_epoch == 5
    assert run.last_step == (None if max_steps is None else 17)


@pytest.mark.parametrize(
    ("options", "train", "validation"),
    [
        ({}, 4, None),
        ({"validation_data": (X, Y)}, 4, 4),
        ({"validation_data": (X, Y), "steps_per_epoch": 2, "validation_steps": 1}, 2, 1),
        ({"validation_data": (X, Y), "overfit_batches": 2}, 2, 2),
        ({"validation_data": (X, Y), "overfit_batches": 3, "validation_steps": 1}, 3, 1),
        ({"validation_data": (X, Y), "overfit_batches": 0.01}, 1, 1),
        ({"overfit_batches": 1.0}, 4, None),
        ({"overfit_batches": 9}, 4, None),
    ],
)
def test_batches_of_an_epoch(handler, options, train, validation):
    run, params = build(handler, **options)
    assert len(list(run.train.batches())) == run.train.num_batches == train
    assert (params["steps"], params["validation_steps"]) == (train, validation)
    assert params["validation"] is (validation is not None)
    if validation is not None:
        assert len(list(run.validation[""].batches())) == validation


def test_what_callbacks_are_told(handler):
    handler.add_metric("mean", lambda outputs, targets: outputs.mean())
    _, params = build(handler, first_epoch=2, epochs=3, precision="bf16", ema_decay=0.5)
    assert (params["first_epoch"], params["epochs"], params["last_epoch"]) == (2, 3, 5)
    assert (params["batch_size"], params["metrics"], params["loader"]) == (3, ["mean"], None)
    assert (params["precision"], params["ema_decay"], params["resumed"]) == ("bf16", 0.5, False)


@pytest.mark.parametrize(("precision", "compiles"), [(None, True), ("bf16", True), ("fp16", False)])
def test_the_optimizer_is_compiled_unless_a_scaler_reads_values(
    handler, monkeypatch, precision, compiles
):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    handler.set_optimizer(torch.optim.Adam)
    build(handler, precision=precision, compile=True)
    compiled = vars(handler.parts)["_compiled_optimizer"]
    assert (compiled is not None) is compiles
    assert handler.parts.model is handler.model


def test_an_event_in_which_the_checkpoint_was_made_is_finished_once(handler):
    heard = []

    class Hears(Callback):
        def on_epoch_end(self, epoch, logs):
            heard.append((epoch, dict(logs)))

    handler.add_callback(callback := Hears())
    listeners = [{"name": callback.name, "identity": "", "config": {}, "waits": True}]
    event = {"event": "on_epoch_end", "args": [4, {"loss": 1.0}], "listeners": listeners}
    handler.session.pending_event = event
    handler.state.epoch_logs = {"loss": 1.0}
    handler.log("score", 2.0)
    for _ in range(2):
        lifecycle_of(handler, continues=True).replay_interrupted_event()
    assert heard == [(4, {"loss": 1.0, "score": 2.0})]


@pytest.mark.parametrize("continues", [True, False])
def test_saves_of_an_interrupted_call_are_resubmitted_only_by_it(handler, tmp_path, continues):
    class Spy(ModelCheckpoint):
        def resubmit(self):
            calls.append("resubmit")

    calls = []
    handler.add_callback(Spy(tmp_path / "a.pth", monitor="loss"))
    lifecycle_of(handler, continues=continues).replay_interrupted_event()
    assert calls == (["resubmit"] if continues else [])


def lifecycle_of(handler, received=None, *, continues=False):
    """With the end that all ranks agreed on, if a signal was received."""
    rank_sync = RankSync(FitState(), SimpleNamespace(received=received))
    with suppress(Preempted, KeyboardInterrupt):
        rank_sync.check()
    return HandlerLifecycle(handler, rank_sync, continues=continues)


@pytest.mark.parametrize("received", [signal.SIGINT, signal.SIGTERM])
def test_the_end_that_all_agreed_on_is_not_an_error_of_a_rank(handler, received):
    lifecycle = lifecycle_of(handler, received)
    handler.world = None  # it would be told
    agreed = lifecycle._rank_sync.agreed_end
    assert agreed is not None
    assert lifecycle.first_error(agreed) is agreed


@pytest.mark.parametrize("error", [Preempted(15), KeyboardInterrupt(), SystemExit(1)])
def test_an_end_of_one_rank_is_told_to_the_others(handler, error, monkeypatch):
    told = []
    monkeypatch.setattr(
        handler.world, "first_error", lambda error: told.append(error), raising=False
    )
    lifecycle_of(handler, signal.SIGINT).first_error(error)
    assert told == [error]


def test_other_ranks_are_told_of_an_error(handler, monkeypatch):
    other = KeyError()
    monkeypatch.setattr(handler.world, "first_error", lambda error: other, raising=False)
    lifecycle = lifecycle_of(handler)
    assert lifecycle.first_error(ValueError()) is other
    assert lifecycle.learning_rate() == 0.1


def collate(samples):
    return tuple(torch.stack(part) for part in zip(*samples, strict=True))


def test_arguments_of_the_loader_given_to_fit(handler):
    given = {"drop_last": True, "collate_fn": collate}
    train, validation = specs_of(
        handler, train_data=DATASET, validation_data=DATASET, batch_size=4, **given
    )
    assert train.loader_kwargs == given
    assert validation[""].loader_kwargs == {"collate_fn": collate}
    assert validation[""].batch_size == 4
    assert (
        specs_of(handler, train_data=DATASET, validation_data=(X, Y), **given)[1][""].loader_kwargs
        == {}
    )
    handler.set_train_loader(DATASET, batch_size=4, drop_last=False, num_workers=1)
    train, _ = specs_of(handler, drop_last=True)
    assert train.loader_kwargs == {"drop_last": True, "num_workers": 1}
    assert handler.parts.train_data.loader_kwargs == {"drop_last": False, "num_workers": 1}
    train, validation = specs_of(
        handler, train_data=DATASET, validation_split=0.2, batch_size=4, **given
    )
    assert train.loader_kwargs == given
    assert validation[""].loader_kwargs == {"collate_fn": collate}


def test_fit_leaves_out_a_last_batch_that_is_not_full(handler):
    seen = []
    handler.set_train_step(lambda h, batch: seen.append(len(batch[0])) or h.model(batch[0]).sum())
    for data in ((X, Y), DATASET, Stream()):
        handler.fit(data, batch_size=4, drop_last=True, progress_bar=False)
    assert seen == [4, 4] * 3
    for ready in (DataLoader(DATASET), [(X, Y)]):
        with pytest.raises(ConfigurationError, match="drop_last cannot be set for"):
            handler.fit(ready, drop_last=True, progress_bar=False)
    with pytest.raises(ConfigurationError, match="takes no collate_fn: pass a Dataset for that"):
        handler.fit((X, Y), collate_fn=collate, progress_bar=False)
