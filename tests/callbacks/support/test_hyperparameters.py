from types import SimpleNamespace

import torch
from torch import nn

import fitkit
from fitkit.callbacks.support.hyperparameters import flatten, hyperparameters


def test_nested_mappings_get_names_with_dots():
    given = {"a": 1, "b": {"c": None, "d": {"e": True}}, 3: 0.5}
    assert flatten(given) == {"a": 1, "b.c": None, "b.d.e": True, "3": 0.5}


def test_what_is_not_plain_becomes_short_text():
    found = flatten({"cls": nn.Linear, "sizes": [1, 2], "tensor": torch.zeros(10_000)})
    assert found["cls"] == "Linear"
    assert found["sizes"] == "[1, 2]"
    assert len(flatten({"long": "x" * 1000})["long"]) == 500


def test_what_the_handler_is_made_of():
    handler = fitkit.NNHandler(nn.Linear, in_features=2, out_features=1, seed=5)
    handler.set_optimizer(torch.optim.SGD, lr=0.5, momentum=0.9)
    handler.set_scheduler(torch.optim.lr_scheduler.StepLR, step_size=3)
    handler.set_loss_fn(nn.functional.huber_loss, delta=0.5)
    found = hyperparameters(handler, {"epochs": 3, "resumed": True, "batch_size": 4})
    assert found == {
        "model": "Linear",
        "model.in_features": 2,
        "model.out_features": 1,
        "optimizer": "SGD",
        "optimizer.lr": 0.5,
        "optimizer.momentum": 0.9,
        "scheduler": "StepLR",
        "scheduler.step_size": 3,
        "loss": "huber_loss",
        "loss.delta": 0.5,
        "seed": 5,
        "epochs": 3,
        "batch_size": 4,
    }


def test_a_ready_module_and_a_step_of_the_user_s_own():
    parts = SimpleNamespace(model_spec=None, optimizer_spec=None, scheduler_spec=None, loss=None)
    handler = SimpleNamespace(parts=parts, module=nn.Linear(1, 1), seed=None)
    assert hyperparameters(handler, {}) == {"model": "Linear", "seed": None}
