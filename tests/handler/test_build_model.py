"""The model of a handler: from a class or ready."""

from __future__ import annotations

import pytest
from torch import nn
from torch.optim import SGD

from fitkit import ConfigurationError
from fitkit.handler.build_model import build_model


def test_a_model_from_a_class_or_ready():
    spec, module = build_model(nn.Linear, {"in_features": 2, "out_features": 1})
    assert spec.cls is nn.Linear
    assert spec.kwargs == {"in_features": 2, "out_features": 1}
    assert module.in_features == 2
    assert build_model(module, {}) == (None, module)


def test_the_place_decides_where_it_is_built():
    def place(build):
        return nn.Sequential(build())

    spec, module = build_model(nn.Linear, {"in_features": 2, "out_features": 1}, place)
    assert spec.cls is nn.Linear
    assert type(module) is nn.Sequential
    assert build_model(module, {}, place)[1][0] is module


@pytest.mark.parametrize(
    ("model", "arguments", "sentence"),
    [
        (nn.ReLU(), {"inplace": True}, "ready ReLU, .*received 'inplace'. Pass the class"),
        (nn.ReLU, {"in_place": True}, "Did you mean 'inplace'"),
        (SGD, {}, "must be a torch.nn.Module subclass or a ready module, received the class SGD"),
        ("Linear", {}, "received a str"),
    ],
)
def test_what_is_no_model(model, arguments, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        build_model(model, arguments)
