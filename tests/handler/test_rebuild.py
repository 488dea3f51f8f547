"""Components rebuilt from the config in a checkpoint, and configs that cannot be used."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, StepLR

from fitkit import CheckpointError, NNHandler
from fitkit.checkpointing.model_source.collect import HEADING
from fitkit.generative import VPSDE
from fitkit.handler.rebuild import find_model, rebuild_parts
from fitkit.handler.state_dict import SkipParts

SIZES = {"in_features": 2, "out_features": 1}


def make():
    return NNHandler(nn.Linear, "cpu", **SIZES)


@pytest.fixture
def state():
    """The state of a handler with every part that can be rebuilt."""
    handler = make()
    handler.set_optimizer(SGD, lr=0.5, momentum=0.9)
    handler.set_scheduler(StepLR, interval="step", step_size=3)
    handler.set_loss_fn(nn.HuberLoss, True, delta=2.0)
    options = {"divide_by_std": True, "likelihood_weighting": False}
    handler.parts.generative.set_sde(VPSDE, {"beta_max": 5.0}, **options)
    return handler.get_state_dict()


def rebuilt(state, **skip):
    handler = make()
    rebuild_parts(handler, state, SkipParts(**skip))
    return handler.parts


def find(state, given=None, trust_code=False):
    return find_model(state, "run/a.pth", given, trust_code=trust_code)


def test_all_parts_are_as_they_were(state):
    parts = rebuilt(state)
    assert type(parts.optimizer) is SGD
    assert parts.optimizer.defaults["momentum"] == 0.9
    assert (parts.scheduler.step_size, parts.scheduler_interval) == (3, "step")
    assert (type(parts.loss.function), parts.loss.function.delta) == (nn.HuberLoss, 2.0)
    assert parts.loss.pass_epoch is True
    assert parts.generative.sde.beta_max == 5.0


@pytest.mark.parametrize(
    ("skip", "missing"),
    [
        ({"optimizer": True}, {"optimizer", "scheduler"}),
        ({"scheduler": True}, {"scheduler"}),
        ({"sampler_sde": True}, {"sde"}),
    ],
)
def test_parts_that_are_skipped(state, skip, missing):
    parts = rebuilt(state, **skip)
    found = {name: getattr(parts, name) for name in ("optimizer", "scheduler", "loss")}
    found["sde"] = parts.generative.sde
    assert {name for name, part in found.items() if part is None} == missing


@pytest.mark.parametrize("empty", [{"loss": None}, {"loss": {"class": "a:B"}}])
def test_a_loss_that_was_not_stored(state, empty):
    assert rebuilt({**state, **empty}).loss is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"optimizer_class": "no.module:SGD"}, "'no.module' is not imported.*skip_optimizer=True"),
        ({"optimizer_class": "torch.nn.modules.linear:Linear"}, "where a Optimizer is needed"),
        ({"optimizer_kwargs": None}, "arguments of the optimizer could not be stored.*skip_opt"),
        ({"optimizer_kwargs": {"rate": 1.0}}, r"built .*\(ConfigurationError\).*skip_optimizer"),
        ({"optimizer_kwargs": {"lr": -1.0}}, r"built .*Invalid learning.*\(ValueError\).*skip_opt"),
        ({"scheduler_class": "torch.optim.sgd:SGD"}, "LRScheduler is needed.*skip_scheduler=True"),
        (
            {"scheduler_class": "torch.optim.lr_scheduler:MultiStepLR"}
            | {"scheduler_kwargs": {"milestones": 5}},
            "the scheduler cannot be built.*skip_scheduler",
        ),
    ],
)
def test_a_config_that_cannot_be_used(state, change, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        rebuilt({**state, **change})


def test_a_loss_that_cannot_be_built(state):
    loss = {**state["loss"], "kwargs": {"width": 1.0}}
    with pytest.raises(CheckpointError, match=r"the loss cannot be built.*call set_loss_fn after"):
        rebuilt({**state, "loss": loss})


def test_a_scheduler_with_a_function_is_left_to_the_user(state):
    handler = make()
    handler.set_optimizer(SGD, lr=0.5)
    handler.set_scheduler(LambdaLR, lr_lambda=lambda epoch: 0.5)
    with pytest.warns(UserWarning, match=r"LambdaLR' could not be stored: call set_scheduler"):
        parts = rebuilt(handler.get_state_dict())
    assert parts.scheduler is None


def test_older_files_say_nothing_of_the_scheduler_s_interval(state):
    del state["scheduler_interval"], state["scheduler_monitor"]
    assert rebuilt(state).scheduler_interval == "epoch"


def test_the_model_is_found_or_given(state):
    assert find(state) == (nn.Linear, SIZES)
    assert find(state, nn.Bilinear) == (nn.Bilinear, SIZES)
    ready = nn.Linear(9, 9)
    assert find(state, ready) == (ready, {})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_class": None}, "'run/a.pth' was saved with a ready module.*pass model_class="),
        ({"model_class": "gone:Net"}, "pass model_class=.$"),
        ({"model_class": "gone:Net", "model_code": "x"}, "or trust_code=True, which runs"),
        ({"model_kwargs": None}, "Linear' could not be stored.*model_class=<a ready module>"),
    ],
)
def test_a_model_that_cannot_be_found(state, change, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        find({**state, **change})


def test_stored_source_runs_only_where_it_is_trusted_and_needed(state):
    code = f"{HEADING}fitkit_stored_model\nimport torch\n\nclass Net(torch.nn.Linear):\n    pass\n"
    stored = {**state, "model_class": "fitkit_stored_model:Net", "model_code": code}
    with pytest.raises(CheckpointError, match="trust_code=True"):
        find(stored)
    cls, kwargs = find(stored, trust_code=True)
    assert (cls.__name__, cls.__module__, kwargs) == ("Net", "fitkit_stored_model", SIZES)
    bad = {**state, "model_code": f"{HEADING}fitkit_stored_model\nraise ValueError\n"}
    assert find(bad, trust_code=True)[0] is nn.Linear  # the program has the class
    with pytest.raises(CheckpointError, match=r"cannot be run.*ValueError"):
        find({**stored, "model_code": bad["model_code"]}, trust_code=True)
    assert isinstance(cls(2, 1)(torch.ones(1, 2)), torch.Tensor)
