from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

from fitkit.core.errors import DataError
from fitkit.core.types import ModelType
from fitkit.data.split_batch import (
    INPUT_KEYS,
    TARGET_KEYS,
    call_model,
    describe,
    make_split,
    split_inputs,
    split_supervised,
)

X, Y = torch.zeros(2, 3), torch.ones(2)
Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize("model_type", [ModelType.CLASSIFICATION, ModelType.REGRESSION])
@pytest.mark.parametrize("batch", [(X, Y), [X, Y], Pair(X, Y), {"x": X, "y": Y}])
def test_a_supervised_batch_is_a_pair_or_a_mapping(model_type, batch):
    inputs, targets = make_split(model_type)(batch)
    assert inputs is X
    assert targets is Y


@pytest.mark.parametrize("input_key", INPUT_KEYS)
@pytest.mark.parametrize("target_key", TARGET_KEYS)
def test_every_known_key_is_found(input_key, target_key):
    assert split_supervised({target_key: Y, input_key: X}) == (X, Y)


def test_other_keys_of_a_mapping_are_inputs_by_name():
    batch = OrderedDict(labels=Y, ids=X, mask=X)
    inputs, targets = split_supervised(batch)
    assert inputs == {"ids": X, "mask": X}
    assert targets is Y
    assert list(batch) == ["labels", "ids", "mask"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"received a tensor of shape \(2, 3\)\. .*model_type='generative'"),
        ((X,), "received a tuple of 1 elements"),
        ([X, X, Y], r"received a list of 3 elements\. For several inputs make the batch \(\(first"),
        (None, "received a NoneType"),
        ("ab", "received a str"),
        ({"x": X}, r"exactly one of .* received the keys 'x'\. Rename the key"),
        ({"x": X, "y": Y, "label": Y}, "exactly one of .*'label', 'x', 'y'"),
        ({1: X, "b": Y}, "received the keys '1', 'b'"),
    ],
)
def test_a_batch_that_cannot_be_split_says_what_it_is(batch, message):
    with pytest.raises(DataError, match=message):
        split_supervised(batch)


@pytest.mark.parametrize("batch", [X, (X,), [X, Y], {"x": X}, {"x": X, "y": Y}])
def test_generative_targets_are_the_inputs(batch):
    inputs, targets = make_split(ModelType.GENERATIVE)(batch)
    assert inputs is X
    assert targets is X


@pytest.mark.parametrize("batch", [X, (X, Y), [X, Y, Y], {"a": X}])
def test_a_score_based_batch_is_all_inputs(batch):
    assert make_split(ModelType.SCORE_BASED)(batch) == (batch, None)


def test_a_score_based_batch_must_hold_tensors():
    with pytest.raises(DataError, match="must hold tensors, received a int"):
        make_split(ModelType.SCORE_BASED)(3)


def test_inputs_for_prediction():
    assert split_inputs({"ids": X, "labels": Y, "y": Y}) == {"ids": X}
    assert split_inputs(((X, Y),)) == (X, Y)
    for batch in ((X, Y, Y), (), None, 3):
        with pytest.raises(DataError, match="a batch to predict must be inputs"):
            split_inputs(batch)


def test_call_model_by_position_and_by_name():
    class Model(nn.Module):
        def forward(self, a, b=0):
            return a, b

    assert call_model(Model(), X) == (X, 0)
    assert call_model(Model(), (X, Y)) == (X, Y)
    assert call_model(Model(), [X, Y]) == (X, Y)
    assert call_model(Model(), {"b": Y, "a": X}) == (X, Y)
    assert call_model(Model(), "text") == ("text", 0)


def test_describe():
    assert describe({"b": 1, "a": 2}) == "a mapping with the keys 'a', 'b'"
    assert describe(3.0) == "a float"
