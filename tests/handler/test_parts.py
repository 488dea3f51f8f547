"""The components of a handler: setters in any order, and what training is given."""

from __future__ import annotations

from functools import partial
from itertools import permutations

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR

from fitkit import ConfigurationError
from fitkit.core.types import ModelType
from fitkit.generative import VPSDE
from fitkit.handler.parts import Parts

CPU = torch.device("cpu")
BATCH = (torch.ones(4, 2), torch.zeros(4, 1))


class TakesLabels(nn.Module):
    def forward(self, ids, labels=None):
        """Would return an object with ``.loss``."""


def make(model=nn.Linear, **arguments):
    arguments = {"in_features": 2, "out_features": 1} if model is nn.Linear else arguments
    return Parts(model, arguments, ModelType.REGRESSION, CPU)


@pytest.fixture
def compiles(monkeypatch):
    """Records what ``torch.compile`` is asked for; torch's own takes a second to import."""
    asked = []

    def compile_nothing(function, **options):
        asked.append(options)
        return partial(function)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return asked


SETTERS = {
    "optimizer": lambda parts: parts.set_optimizer(SGD, {"lr": 0.5}, None),
    "scheduler": lambda parts: parts.set_scheduler(StepLR, {"step_size": 2}, "step", None),
    "loss": lambda parts: parts.set_loss(nn.HuberLoss, True, {"delta": 2.0}),
}


@pytest.mark.parametrize("order", list(permutations(SETTERS)))
def test_setters_can_be_called_in_any_order(order):
    parts = make()
    for name in order:
        SETTERS[name](parts)
    assert parts.scheduler.optimizer is parts.optimizer
    assert (parts.scheduler.step_size, parts.scheduler_interval) == (2, "step")
    assert (parts.loss.function.delta, parts.loss.kwargs) == (2.0, {})
    assert parts.loss.pass_epoch is True


def test_another_optimizer_gets_a_new_scheduler():
    parts = make()
    SETTERS["scheduler"](parts)
    assert parts.scheduler is None
    SETTERS["optimizer"](parts)
    first = parts.scheduler
    parts.set_optimizer(Adam, {}, None)
    assert parts.scheduler is not first
    assert parts.scheduler.optimizer is parts.optimizer


def test_a_ready_model_is_taken_as_it_is():
    module = nn.Linear(1, 1)
    ready = make(module)
    assert ready.model is ready.module is module
    assert ready.model_spec is None


@pytest.mark.parametrize(
    ("model", "steps", "is_own"),
    [
        (nn.Linear, {}, False),
        (TakesLabels(), {}, True),
        (TakesLabels(), {"train_step": print}, False),
        (TakesLabels(), {"loss": nn.MSELoss()}, False),
    ],
)
def test_whether_the_loss_is_the_model_s(model, steps, is_own):
    parts = make(model)
    parts.train_step = steps.get("train_step")
    if "loss" in steps:
        parts.set_loss(steps["loss"], False, {})
    assert parts.has_model_loss is is_own
    parts.set_optimizer(SGD, {"lr": 1.0}, lambda module: [nn.Parameter(torch.ones(1))])
    if is_own or steps:
        parts.require_trainable()
    else:
        with pytest.raises(ConfigurationError, match="no loss function is set"):
            parts.require_trainable()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: p.set_optimizer(SGD, {"lr": 1.0}, lambda m: []), "Linear has no parameters"),
        (lambda p: p.set_optimizer(LBFGS, {}, None), "LBFGS .* set_train_step"),
        (lambda p: p.set_scheduler("StepLR", {}, "epoch", None), "scheduler class .* a str"),
        (lambda p: p.set_scheduler(StepLR, {}, "epoch", None), "StepLR cannot be built"),
        (lambda p: p.set_scheduler(StepLR, {"step_size": 1}, "day", None), "'epoch'.*'day'"),
        (lambda p: p.set_scheduler(StepLR, {"step_size": 1}, "epoch", "loss"), "monitor"),
        (lambda p: p.set_loss(3, False, {}), "set_loss_fn expects a function .* a int"),
    ],
)
def test_a_setter_that_fails_leaves_what_is_in_use(call, sentence):
    parts = make()
    for setter in SETTERS.values():
        setter(parts)
    optimizer, loss = parts.optimizer, parts.loss
    with pytest.raises(ConfigurationError, match=sentence):
        call(parts)
    assert parts.optimizer is optimizer
    assert parts.loss is loss


def test_undo_puts_back_everything_that_was_set():
    parts = make()
    SETTERS["loss"](parts)
    parts.metrics["mean"] = len
    parts.set_optimizer(Adam, {"capturable": False}, None)
    before = {**vars(parts), "metrics": dict(parts.metrics)}
    undo = parts.make_undo()
    parts.optimizer.param_groups[0]["capturable"] = True
    parts.metrics["other"] = len
    for setter in SETTERS.values():
        setter(parts)
    undo()
    assert vars(parts) == before
    assert parts.optimizer.param_groups[0]["capturable"] is False


def test_what_is_needed_to_train():
    parts = make()
    for name in ("loss", "optimizer"):
        with pytest.raises(
            ConfigurationError, match=f"no {name}.* is set: call handler.set_{name}"
        ):
            parts.require_trainable()
        SETTERS[name](parts)
    parts.require_trainable()
    custom = make()
    custom.train_step = len
    custom.require_trainable()


def test_the_loss_that_was_set_goes_before_score_matching():
    parts = make()
    assert parts.loss_in_use is None
    parts.generative.set_sde(VPSDE, {}, divide_by_std=True, likelihood_weighting=False)
    assert parts.loss_in_use.function is parts.generative.matching
    SETTERS["loss"](parts)
    assert parts.loss_in_use is parts.loss


def test_a_learning_rate_that_is_a_tensor_stays_as_described():
    parts = make()
    assert parts.learning_rate() is None
    rate = torch.tensor(0.5)
    parts.set_optimizer(SGD, {"lr": rate}, lambda m: [{"params": [m.weight]}, {"params": [m.bias]}])
    parts.set_scheduler(LambdaLR, {"lr_lambda": lambda epoch: 0.5}, "epoch", None)
    assert parts.learning_rate() == 0.25
    assert parts.optimizer_spec.kwargs["lr"] == 0.5
    parts.set_scheduler(ReduceLROnPlateau, {}, "epoch", "loss")
    assert parts.scheduler_monitor == "loss"


def test_only_a_change_of_options_compiles_again(compiles):
    parts = make()
    parts.set_loss(nn.MSELoss, False, {})
    assert parts.compiled_loss is None
    parts.compile({"disable": True})
    model, loss = parts.model, parts.compiled_loss
    parts.compile({"disable": True})
    assert (parts.model, parts.compiled_loss) == (model, loss)
    assert compiles == [{"disable": True}] * 2
    value, outputs = loss(((BATCH[0],), {}), BATCH[1])
    assert torch.equal(outputs, parts.module(BATCH[0]))
    assert value == outputs.square().mean()
    parts.compile({"disable": True, "dynamic": False})
    assert parts.compiled_loss is not loss
    parts.set_loss(lambda outputs, targets, epoch: outputs.mean(), True, {})
    assert parts.compiled_loss is None


def test_a_compiled_optimizer_is_kept_until_there_is_another(compiles):
    parts = make()
    assert parts.compile_optimizer() is None
    parts.set_optimizer(Adam, {}, None)
    parts.compile({"disable": True})
    first = parts.compile_optimizer()
    assert parts.compile_optimizer() is first
    parts.set_optimizer(Adam, {}, None)
    assert parts.compile_optimizer().optimizer is parts.optimizer
    SETTERS["scheduler"](parts)
    assert parts.compile_optimizer() is None
