"""Evaluations and passes over data that are built from a handler."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from fitkit import ConfigurationError, NNHandler
from fitkit.core.types import Share
from fitkit.distributed.world import World
from fitkit.runtime.precision import Precision
from fitkit.training.build_evaluation import (
    HandlerEvaluator,
    evaluation_forward,
    evaluation_specs,
    forward_of,
    make_data_pass,
)

X = torch.arange(20.0).reshape(10, 2)
DATA = (X, torch.zeros(10, 1))
FP32 = Precision(torch.device("cpu"))


def four(batch, given):
    return Share(4, 4)


@pytest.fixture
def handler():
    handler = NNHandler(nn.Linear, "cpu", model_type="regression", in_features=2, out_features=1)
    handler.set_loss_fn(nn.MSELoss())
    return handler


def rank(number, size=2):
    world = World()
    world.rank, world.size = number, size
    return world


def evaluation_passes(handler, data, batch_size, steps):
    specs = evaluation_specs(handler, data, batch_size, steps)
    return {name: make_data_pass(handler, spec, limit=steps) for name, spec in specs.items()}


def rows(data_pass):
    return [batch[0][:, 0].tolist() for batch in data_pass.batches()]


def test_the_validation_data_is_the_default_with_its_options(handler):
    with pytest.raises(
        ConfigurationError, match=r"no data to evaluate: pass it, or call .*set_val"
    ):
        evaluation_passes(handler, None, None, None)[""]
    handler.set_val_loader(DATA, batch_size=4)
    for size, batches in ((None, [4, 4, 2]), (5, [5, 5])):
        data_pass = evaluation_passes(handler, None, size, None)[""]
        assert [len(batch) for batch in rows(data_pass)] == batches
        assert list(chain(*rows(data_pass))) == X[:, 0].tolist()
    other = evaluation_passes(handler, (X[:3], X[:3]), None, None)[""]
    assert rows(other) == [[0.0, 2.0, 4.0]]


@pytest.mark.parametrize(("steps", "batches"), [(None, 4), (1, 1), (4, 4), (9, 4)])
def test_steps_limit_the_pass(handler, steps, batches):
    data_pass = evaluation_passes(handler, DATA, 3, steps)[""]
    assert (len(rows(data_pass)), data_pass.num_batches) == (batches, batches)


@pytest.mark.parametrize("steps", [0, -1, 1.0, True, "2"])
def test_steps_that_are_no_count(handler, steps):
    with pytest.raises(ConfigurationError, match=r"steps must be a whole number .* or None"):
        evaluation_passes(handler, DATA, None, steps)[""]


def test_only_training_data_is_shuffled(handler):
    spec = evaluation_spec(handler)
    in_order = [X[i : i + 4, 0].tolist() for i in range(0, 10, 4)]
    assert rows(make_data_pass(handler, spec)) == in_order
    assert rows(make_data_pass(handler, spec, in_order=True)) == in_order
    shuffled = rows(make_data_pass(handler, spec, training=True))
    assert shuffled != in_order
    assert sorted(chain(*shuffled)) == list(chain(*in_order))


def evaluation_spec(handler):
    handler.set_val_loader((X.numpy(), np.zeros((10, 1))), batch_size=4)
    return handler.parts.validation_data[""]


def test_arrays_become_tensors_of_the_model_s_type(handler):
    handler.module.double()
    batch = next(make_data_pass(handler, evaluation_spec(handler)).batches())
    assert [part.dtype for part in batch] == [torch.float64] * 2


def test_which_step_evaluates(handler):
    def train_step(handler, batch):
        return torch.tensor(1.0)

    def evaluation_step(handler, batch):
        return torch.tensor(2.0)

    def loss():
        return float(evaluation_forward(handler, FP32)(DATA, four)[0].loss.detach())

    own = float(handler.module(X).detach().square().mean())
    assert loss() == own
    handler.set_train_step(train_step)
    assert loss() == own  # the loss that was set goes first
    handler.set_train_step(train_step, evaluation_step)
    assert loss() == 2.0
    handler.parts.loss = None
    handler.set_train_step(train_step)
    assert loss() == 1.0


def test_a_forward_uses_the_epoch_of_the_handler(handler):
    handler.set_loss_fn(lambda outputs, targets, epoch: outputs.sum() * 0 + epoch, True)
    forward = forward_of(handler, FP32, None)
    for epoch in (0, 3):
        handler.state.epoch = epoch
        assert forward(DATA, four)[0].loss == epoch


def test_a_compiled_loss_is_for_one_rank_only(handler, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    handler.parts.compile({})
    assert forward_of(handler, FP32, None).compiled is not None
    handler.world = rank(0)
    assert forward_of(handler, FP32, None).compiled is None


def test_an_evaluator_gives_the_model_in_evaluation_mode_with_its_averages(handler):
    evaluator = HandlerEvaluator(handler)
    weight = handler.module.weight.detach().clone()
    handler.weights.start_ema(0.5)
    torch.nn.init.zeros_(handler.module.weight)
    assert (evaluator.dtype, evaluator.shows_progress) == (torch.float32, True)
    with evaluator.evaluating("bf16") as model:
        assert not model.training
        assert torch.equal(model.weight, weight)
        assert model(X).dtype is torch.bfloat16
    assert handler.module.training
    assert not handler.module.weight.any()
    assert evaluator.next_seed() != evaluator.next_seed()
