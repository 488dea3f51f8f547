"""What a rank says of itself; ``test_compare_ranks.py`` compares it."""

from __future__ import annotations

import pickle

import torch
from torch import nn

import fitkit
from fitkit import NNHandler
from fitkit.data.spec import DataSpec
from fitkit.training.options import FitOptions
from fitkit.training.rank_facts import by_pass, evaluation_facts, fit_facts, model_digest

DATA = (torch.ones(8, 2), torch.ones(8, 1))


def make(model=nn.Linear, **kwargs):
    handler = NNHandler(model, "cpu", seed=0, **({"in_features": 2, "out_features": 1} | kwargs))
    handler.set_optimizer(torch.optim.SGD, lr=torch.tensor(0.5), momentum=0.5)
    handler.set_scheduler(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1.0)
    return handler


def facts(handler, **options):
    return fit_facts(handler, FitOptions(DATA, **options), DataSpec(DATA), {"a": DataSpec(DATA)})


def test_facts_are_small_and_equal_for_equal_handlers():
    first, second = facts(make()), facts(make())
    assert first == second
    assert len(pickle.dumps(first)) < 5000


def test_settings_hold_what_training_computes():
    settings = facts(make(), epochs=3, drop_last=True)["settings"]
    assert settings["epochs"] == 3
    assert settings["drop_last"] is True
    assert settings["lr of parameter group 0"] == "0.5"
    assert settings["scheduler"] == "LambdaLR(lr_lambda=<function>)"
    assert "seed" not in settings


def test_only_callbacks_that_all_ranks_need_are_compared():
    handler = make()
    for callback in (
        fitkit.ProgressBar(),
        fitkit.CSVLogger("a.csv"),
        fitkit.ModelCheckpoint("there/last.pth", save_freq=2),
        fitkit.LambdaCallback(),
    ):
        handler.add_callback(callback)
    (saver,) = facts(handler)["callbacks"]
    assert saver["class"] == "ModelCheckpoint"
    assert saver["config"]["save_freq"] == 2
    assert "filepath" not in saver["config"]


def test_models_are_told_by_names_shapes_types_and_what_is_trained():
    frozen = make()
    frozen.module.bias.requires_grad_(False)
    others = [make(out_features=2), make(bias=False), frozen, make(dtype=torch.float64)]
    assert len({model_digest(handler) for handler in (make(), make(), *others)}) == 5


def test_passes_by_name():
    one = DataSpec(DATA)
    assert list(by_pass(one, {"": one})) == ["train", "validation"]
    assert list(by_pass(None, {"b": one, "a": one})) == ["validation b", "validation a"]
    handler = make()
    found = evaluation_facts(handler, handler.callbacks, {"b": one})
    assert list(found["data"]) == ["validation b"]
    assert found["data_seed"] == 0
