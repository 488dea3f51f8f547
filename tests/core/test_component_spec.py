"""How components are built from their class and arguments."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from fitkit import ConfigurationError
from fitkit.core.component_spec import ComponentSpec, LossSpec, unwrap_partial


def test_building():
    layer = ComponentSpec(nn.Linear, {"out_features": 2, "bias": False}).build(3)
    assert (layer.in_features, layer.out_features, layer.bias) == (3, 2, None)


@pytest.mark.parametrize(
    ("arguments", "kwargs", "message"),
    [
        ((), {"in_feature": 1, "out_features": 1}, r"Did you mean 'in_features'\?"),
        ((), {"in_features": 1}, "'out_features'"),
        ((1,), {"in_features": 1, "out_features": 1}, "multiple values"),
        ((1, 2, True, None, None, 9), {}, r"the arguments none: too many"),
    ],
)
def test_arguments_that_the_class_does_not_take(arguments, kwargs, message):
    with pytest.raises(ConfigurationError, match="Linear cannot be built") as caught:
        ComponentSpec(nn.Linear, kwargs).build(*arguments)
    assert caught.match(message)
    assert caught.match(r"It takes 'bias', 'device', 'dtype', 'in_features', 'out_features'")


def test_parameters_are_not_among_what_the_user_may_pass():
    with pytest.raises(ConfigurationError, match=r"Did you mean 'momentum'\?") as caught:
        ComponentSpec(torch.optim.SGD, {"momentun": 0.9}).build([nn.Parameter(torch.ones(1))])
    assert "'params'" not in str(caught.value).partition("It takes")[2]


class Second:
    def __init__(self, parts, optimizer=None):
        self.parts, self.optimizer = parts, optimizer


class First:
    def __init__(self, opt, size=1):
        self.opt, self.size = opt, size


def test_a_value_is_passed_by_its_name_where_the_class_has_it():
    built = ComponentSpec(Second, {"parts": [1]}).build_for("optimizer", 5)
    assert (built.parts, built.optimizer) == ([1], 5)
    built = ComponentSpec(First, {"size": 2}).build_for("optimizer", 5)
    assert (built.opt, built.size) == (5, 2)
    assert ComponentSpec(dict, {"a": 1}).build_for("optimizer", [("b", 2)]) == {"b": 2, "a": 1}
    with pytest.raises(ConfigurationError, match=r"Second .* It takes 'parts'\."):
        ComponentSpec(Second, {}).build_for("optimizer", 5)


def test_errors_of_the_class_itself_stay_as_they_are():
    class Odd:
        def __init__(self, size):
            raise TypeError("from inside")

    with pytest.raises(TypeError, match=r"^from inside$"):
        ComponentSpec(Odd, {"size": 1}).build()


def test_a_class_without_a_signature_is_just_called():
    assert ComponentSpec(dict, {"a": 1}).build([("b", 2)]) == {"b": 2, "a": 1}


def test_specifications_cannot_be_changed_and_share_no_default():
    spec = ComponentSpec(nn.Linear)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.cls = nn.ReLU
    assert spec.kwargs is not ComponentSpec(nn.Linear).kwargs


def loss(outputs, targets, weight=1, epoch=None):
    return outputs, targets, weight, epoch


def test_a_loss_without_extras_is_the_function_itself():
    assert LossSpec(loss).bound(lambda: 3) is loss


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kwargs": {"weight": 5}}, (1, 2, 5, None)),
        ({"pass_epoch": True}, (1, 2, 1, 7)),
        ({"pass_epoch": True, "kwargs": {"weight": 5}}, (1, 2, 5, 7)),
    ],
)
def test_a_loss_with_its_arguments(options, expected):
    assert LossSpec(loss, **options).bound(lambda: 7)(1, 2) == expected


def test_the_epoch_is_read_at_each_call():
    epochs = iter(range(3))
    bound = LossSpec(loss, pass_epoch=True).bound(lambda: next(epochs))
    assert [bound(0, 0)[3] for _ in range(3)] == [0, 1, 2]


def test_arguments_of_partials_are_those_of_the_outermost():
    inner = partial(max, key=1, default=2)
    assert unwrap_partial(partial(inner, key=3), {"default": 4}) == (max, {"key": 3, "default": 4})
    assert unwrap_partial(max, {"key": 1}) == (max, {"key": 1})
    by_position = partial(max, 1)
    assert unwrap_partial(by_position, {}) == (by_position, {})
