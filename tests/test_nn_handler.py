"""NNHandler: components in any order, isolation of handlers, read-only properties."""

from __future__ import annotations

import itertools
import logging
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fitkit import Accuracy, Callback, ConfigurationError, ModelType, NNHandler


class Net(nn.Module):
    def __init__(self, width: int = 4, dropout: float = 0.2):
        super().__init__()
        self.hidden = nn.Linear(3, width)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, 2)

    def forward(self, x):
        return self.out(self.drop(torch.relu(self.hidden(x))))


def data(size=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator)
    return x, (x.sum(1) > 0).long()


def make(seed=0, **kwargs):
    handler = NNHandler(Net, "cpu", seed=seed, **kwargs)
    handler.set_optimizer(torch.optim.Adam, lr=0.01)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    return handler


def fit(handler, epochs=2, **options):
    return handler.fit(data(), epochs=epochs, **{"progress_bar": False, "batch_size": 8, **options})


def flat(handler):
    return torch.cat([p.detach().flatten().clone() for p in handler.module.parameters()])


def same(one, other):
    """Whether two nested states are equal, bit by bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


# ---- setters ------------------------------------------------------------------------------------


SETTERS = {
    "optimizer": lambda h: h.set_optimizer(torch.optim.SGD, lr=0.5),
    "scheduler": lambda h: h.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
    "loss": lambda h: h.set_loss_fn(nn.CrossEntropyLoss()),
    "data": lambda h: h.set_train_loader(TensorDataset(*data()), batch_size=8),
    "validation": lambda h: h.set_val_loader(TensorDataset(*data(seed=1)), batch_size=8),
    "metric": lambda h: h.add_metric("accuracy", Accuracy()),
}


def test_the_order_of_the_setters_does_not_matter():
    results = []
    orders = list(itertools.permutations(SETTERS))
    for order in [orders[0], orders[-1], *random.Random(0).sample(orders, 6)]:
        handler = NNHandler(Net, "cpu", seed=0)
        for name in order:
            SETTERS[name](handler)
        results.append((handler.train(2, progress_bar=False).history, flat(handler)))
    assert all(same(results[0], result) for result in results)
    assert set(results[0][0]) == {"loss", "accuracy", "val_loss", "val_accuracy", "lr"}


@pytest.mark.parametrize("missing", ["optimizer", "loss", "data"])
def test_a_missing_part_names_its_setter(missing):
    setter = {"optimizer": "set_optimizer", "loss": "set_loss_fn", "data": "set_train_loader"}
    handler = NNHandler(Net, "cpu")
    for name in SETTERS.keys() - {missing}:
        SETTERS[name](handler)
    with pytest.raises(ConfigurationError, match=rf"call handler\.{setter[missing]}\(") as caught:
        handler.train(1, progress_bar=False)
    assert "\n" not in str(caught.value)
    SETTERS[missing](handler)
    handler.train(1, progress_bar=False)


def test_setting_the_optimizer_again_takes_the_schedule_along():
    handler = make()
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    fit(handler)
    handler.set_optimizer(torch.optim.SGD, lr=8.0)
    assert handler.scheduler.optimizer is handler.optimizer
    fit(handler, epochs=1)
    assert handler.history.history["lr"] == [0.01, 0.005, 8.0]


def test_a_loss_class_is_built_with_its_arguments():
    handler = make()
    handler.set_loss_fn(nn.CrossEntropyLoss, label_smoothing=0.3)
    x, y = data()
    expected = nn.functional.cross_entropy(handler.module.eval()(x), y, label_smoothing=0.3)
    assert handler.evaluate((x, y))["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_parameter_groups():
    handler = NNHandler(Net, "cpu", seed=0)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    handler.set_optimizer(
        torch.optim.SGD,
        params=lambda module: [
            {"params": module.hidden.parameters(), "lr": 0.0},
            {"params": module.out.parameters()},
        ],
        lr=0.1,
    )
    hidden = handler.module.hidden.weight.clone()
    out = handler.module.out.weight.clone()
    fit(handler)
    assert torch.equal(handler.module.hidden.weight, hidden)
    assert not torch.equal(handler.module.out.weight, out)


def test_global_batch_size_is_that_of_one_process():
    handler = make()
    steps = []
    handler.set_train_loader(TensorDataset(*data()), global_batch_size=10)
    handler.train(1, progress_bar=False)
    steps.append(handler.state.global_step)
    handler.set_train_loader(TensorDataset(*data()), batch_size=10)
    handler.train(1, progress_bar=False)
    assert [*steps, handler.state.global_step] == [2, 4]


def test_a_ready_module_is_taken_as_it_is():
    module = Net()
    handler = NNHandler(module, "cpu")
    assert handler.module is handler.model is module


def test_read_only_properties():
    handler = make()
    for name in (
        "model",
        "module",
        "optimizer",
        "scheduler",
        "callbacks",
        "history",
        "state",
        "device",
        "train_losses",
        "val_losses",
        "train_metrics_history",
        "val_metrics_history",
    ):
        getattr(handler, name)
        with pytest.raises(AttributeError):
            setattr(handler, name, None)


def test_the_histories_of_the_seed_spelling():
    handler = make()
    handler.add_metric("accuracy", Accuracy())
    history = fit(handler, epochs=4, validation_split=0.25, validate_every=2).history
    assert handler.train_losses == history["loss"]
    assert handler.val_losses == [history["val_loss"][1], history["val_loss"][3]]
    assert handler.train_metrics_history == {"accuracy": history["accuracy"]}
    values = history["val_accuracy"]
    assert handler.val_metrics_history == {"accuracy": [values[1], values[3]]}


# ---- model types --------------------------------------------------------------------------------


class Auto(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 3)

    def forward(self, x, *conditions):
        return self.body(x) + sum(c.sum() * 0 for c in conditions)


@pytest.mark.parametrize("spelling", [ModelType.GENERATIVE, "generative", "GENERATIVE"])
@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: (x, torch.ones(len(x)))])
def test_a_generative_model_is_compared_with_its_inputs(spelling, form):
    handler = NNHandler(Auto(), "cpu", model_type=spelling)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.MSELoss())
    x, _ = data()
    expected = (handler.module(x) - x).square().mean().item()
    assert handler.evaluate(form(x))["loss"] == pytest.approx(expected, rel=1e-5)
    losses = handler.fit(form(x), epochs=3, progress_bar=False).history["loss"]
    assert losses[2] < losses[0]


@pytest.mark.parametrize("conditions", [0, 1, 2])
def test_a_score_based_loss_gets_the_model_and_all_of_the_batch(conditions):
    calls = []

    def loss(model, x, *rest):
        calls.append((model, len(rest)))
        return (model(x, *rest) - x).square().mean()

    handler = NNHandler(Auto(), "cpu", model_type="score_based")
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(loss)
    x, _ = data()
    batch = (x, *[torch.ones(len(x))] * conditions)
    handler.fit(batch if conditions else x, progress_bar=False, validation_data=batch)
    assert calls == [(handler.model, conditions)] * 2


def test_dicts_as_batches_fill_the_model_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, ids, mask):
            return self.linear(ids * mask)

    handler = NNHandler(Two(), "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    x, y = data()
    columns = {"ids": x, "mask": torch.ones_like(x), "labels": y}
    history = handler.fit(columns, epochs=3, progress_bar=False, validation_split=0.2).history
    assert history["loss"][2] < history["loss"][0]
    assert handler.predict(columns).shape == (20, 2)
    assert handler.predict({"ids": x, "mask": torch.ones_like(x)}).shape == (20, 2)


def test_several_inputs_fill_the_model_in_order():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, first, second):
            return self.linear(first - second)

    handler = NNHandler(Two(), "cpu", seed=0)
    handler.set_optimizer(torch.optim.SGD, lr=0.1)
    handler.set_loss_fn(nn.CrossEntropyLoss())
    x, y = data()
    handler.fit(((x, x / 2), y), progress_bar=False, batch_size=8)
    expected = handler.module(x, x / 2).detach()
    torch.testing.assert_close(handler.predict(((x, x / 2), y)), expected)
    torch.testing.assert_close(handler.predict(((x, x / 2),)), expected)


# ---- isolation ----------------------------------------------------------------------------------


def test_two_handlers_share_nothing():
    alone = make(seed=1)
    fit(alone, epochs=3, ema_decay=0.9)
    first, second = make(seed=1), make(seed=2)
    first.add_metric("accuracy", Accuracy())
    first.auto_save(None)
    assert second.parts.metrics == {}
    assert len(second.callbacks) == 1
    for _ in range(3):  # in turns
        fit(first, epochs=1, ema_decay=0.9)
        fit(second, epochs=1)
    assert torch.equal(flat(first), flat(alone))
    assert first.history.history["loss"] == alone.history.history["loss"]
    assert second.ema is None
    assert second.history.history["loss"] != first.history.history["loss"]
    first.stop_training = True
    assert not second.stop_training


def test_a_handler_inside_another_s_hook():
    inner_alone, outer_alone = make(seed=1), make(seed=2)
    fit(inner_alone)
    fit(outer_alone)
    inner, outer = make(seed=1), make(seed=2)

    class Trains(Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 0:
                fit(inner)

    fit(outer, callbacks=[Trains()])
    assert torch.equal(flat(inner), flat(inner_alone))
    assert torch.equal(flat(outer), flat(outer_alone))


@pytest.mark.parametrize("verb", ["build", "fit", "evaluate", "predict", "fail", "workers"])
def test_a_seeded_handler_leaves_the_program_s_streams_alone(draw, verb):
    def use():
        handler = make(seed=7)
        if verb == "fit":
            fit(handler, validation_split=0.25)
        elif verb == "evaluate":
            handler.evaluate(data())
        elif verb == "predict":
            handler.predict(data())
        elif verb == "fail":

            class Boom(Callback):
                def on_train_batch_end(self, batch, logs):
                    torch.rand(3), random.random(), np.random.rand()
                    raise RuntimeError

            with pytest.raises(RuntimeError):
                fit(handler, callbacks=[Boom()])
        elif verb == "workers":
            handler.set_train_loader(TensorDataset(*data()), batch_size=8, num_workers=1)
            handler.train(1, progress_bar=False)

    expected = draw()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    use()
    assert draw() == expected


def test_a_seed_decides_everything():
    results = []
    for noise in range(2):
        torch.manual_seed(noise)
        random.seed(noise)
        handler = make(seed=7)
        fit(handler, epochs=3)
        results.append((flat(handler), handler.history.history))
    assert same(*results)
    other = make(seed=8)
    fit(other, epochs=3)
    assert not torch.equal(flat(other), results[0][0])


def test_without_a_seed_torch_s_generator_decides():
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        handler = make(seed=None)
        fit(handler)
        results.append(flat(handler))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_seed_of_fit_counts_from_this_call_on():
    first, second = make(seed=1), make(seed=1)
    fit(first)
    fit(second, seed=5)
    assert not torch.equal(flat(first), flat(second))
    third = make(seed=1)
    fit(third, seed=5)
    assert torch.equal(flat(third), flat(second))


def test_order_is_new_in_each_epoch_and_shuffling_can_be_left_out():
    class Sees(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.seen = []

        def forward(self, x):
            self.seen.extend(x.flatten().tolist())
            return x * self.weight

    def epochs(**options):
        handler = NNHandler(Sees(), "cpu", model_type="generative", seed=0)
        handler.set_optimizer(torch.optim.SGD, lr=0.1)
        handler.set_loss_fn(nn.MSELoss())
        x = torch.arange(10.0).unsqueeze(1)
        handler.fit(x, epochs=2, batch_size=3, progress_bar=False, **options)
        seen = handler.module.seen
        return seen[:10], seen[10:]

    first, second = epochs()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert first != list(range(10))
    assert epochs(shuffle=False) == (list(range(10)), list(range(10)))


# ---- trying out ---------------------------------------------------------------------------------


def test_a_fast_dev_run_leaves_everything_as_it_was(tmp_path):
    from fitkit import ModelCheckpoint

    handler = make(seed=1)
    handler.add_metric("accuracy", Accuracy())
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1, interval="step")
    handler.auto_save(1, tmp_path / "auto")
    fit(handler, ema_decay=0.9)
    before = handler.get_state_dict()
    saver = ModelCheckpoint(tmp_path / "x.pth")
    files = sorted(tmp_path.rglob("*"))
    tried = fit(
        handler, epochs=50, fast_dev_run=True, validation_split=0.5, callbacks=[saver]
    ).history
    assert len(tried["loss"]) == 3
    assert tried["val_loss"][2] > 0
    assert same(handler.get_state_dict(), before)
    assert sorted(tmp_path.rglob("*")) == files
    plain = make(seed=1)
    plain.add_metric("accuracy", Accuracy())
    plain.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=1, interval="step")
    plain.auto_save(1, tmp_path / "other")
    for one in (handler, plain):
        fit(one, epochs=2, ema_decay=0.9)
    fit(plain, epochs=2, ema_decay=0.9)
    assert handler.history.epoch == [0, 1, 2, 3] == plain.history.epoch
    assert torch.equal(flat(handler), flat(plain))


def test_a_fast_dev_run_before_anything_else():
    tried, plain = make(seed=1), make(seed=1)
    fit(tried, fast_dev_run=True)
    for handler in (tried, plain):
        fit(handler, callbacks=[Remembers()])
    assert torch.equal(flat(tried), flat(plain))


class Remembers(Callback):
    state_fields = ("count",)

    def __init__(self):
        self.count = 0

    def on_epoch_end(self, epoch, logs):
        self.count += 1


def test_a_fast_dev_run_does_not_orphan_the_callbacks_of_earlier_fits():
    handler = make()
    fit(handler, callbacks=[Remembers()])
    fit(handler, fast_dev_run=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(handler)


def test_a_fast_dev_run_shows_errors(tmp_path):
    handler = make()
    handler.add_metric("bad", lambda outputs, targets: 1 / 0)
    before = handler.get_state_dict()
    with pytest.raises(ZeroDivisionError):
        fit(handler, fast_dev_run=True)
    assert same(handler.get_state_dict(), before)


# ---- callbacks of a call ------------------------------------------------------------------------


def test_callbacks_of_the_call_and_of_the_handler():
    handler = make()
    own, passing = Remembers(), Remembers()
    handler.add_callback(own)
    fit(handler, callbacks=[passing])
    fit(handler, callbacks=iter([passing]))
    fit(handler, callbacks=passing)
    fit(handler)
    assert (own.count, passing.count) == (2, 2)  # each fit begins anew
    handler.remove_callback(own)
    assert own not in handler.callbacks


# ---- logging ------------------------------------------------------------------------------------


def test_log_lines_go_where_they_are_sent(tmp_path, capsys):
    path = tmp_path / "logs" / "run.log"
    handler = NNHandler(Net, "cpu", logger_mode="both", logger_filename=str(path))
    assert not path.exists()
    handler.logger.info("hello")
    assert "hello" in path.read_text()
    assert "hello" in capsys.readouterr().err
    for one in list(handler.logger.handlers):
        one.close()


def test_without_a_mode_the_program_s_logging_decides(caplog):
    handler = make()
    with caplog.at_level(logging.INFO, logger="fitkit"):
        handler.stop_training = True
        fit(handler, callbacks=[Stops()])
    assert any("training was stopped: because" in line for line in caplog.messages)


class Stops(Callback):
    def on_train_batch_end(self, batch, logs):
        self.handler.state.stop("because")


def test_the_source_of_the_model_is_kept_for_reading(tmp_path):
    handler = make(save_model_code=True)
    assert "class Net(nn.Module)" in handler.get_state_dict()["model_code"]
    with pytest.warns(UserWarning, match="source of Made cannot be found"):
        NNHandler(type("Made", (nn.Linear,), {"__module__": "nowhere"})(1, 1), save_model_code=True)


def test_a_handler_saved_before_its_first_fit_draws_from_its_own_seed(tmp_path):
    plain = make(seed=1)
    plain.save(tmp_path / "new.pth")
    loaded = NNHandler.load(tmp_path / "new.pth", "cpu")
    torch.manual_seed(99)  # the program's streams do not matter
    fit(plain)
    fit(loaded)
    assert torch.equal(flat(plain), flat(loaded))
