"""Model and loss as one: each parameter once, and names that no model can have."""

from __future__ import annotations

import torch
from torch import nn

from fitkit.core.trained_modules import TrainedModules


class Loss(nn.Module):
    """Has a parameter and a buffer, and knows the model."""

    def __init__(self, model=None):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))
        self.model = model


def test_without_a_loss_there_is_the_model_alone():
    model = nn.BatchNorm1d(2)
    modules = TrainedModules(model)
    assert list(modules) == [model]
    assert list(modules.named_parameters()) == ["weight", "bias"]
    assert len(modules.parameters()) == 2
    assert len(modules.buffers()) == 3
    assert modules.loss_parameters() == modules.loss_buffers() == []
    assert modules.shared_with_model() == set()


def test_names_of_the_loss_are_none_of_a_module():
    model, loss = nn.Linear(2, 1), Loss()
    modules = TrainedModules(model, loss)
    assert list(modules) == [model, loss]
    assert list(modules.named_parameters()) == ["weight", "bias", ".loss.scale"]
    assert modules.named_parameters()[".loss.scale"] is loss.scale
    assert modules.buffers() == [loss.mean]


def test_what_the_loss_shares_with_the_model_is_there_once():
    model = nn.BatchNorm1d(2)
    modules = TrainedModules(model, Loss(model))
    assert list(modules.named_parameters()) == ["weight", "bias", ".loss.scale"]
    assert len(modules.parameters()) == 3
    assert len(modules.buffers()) == 4
    assert modules.shared_with_model() == {f"model.{name}" for name in model.state_dict()}
