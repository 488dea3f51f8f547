"""Components as class name and arguments, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fitkit import CheckpointError
from fitkit.checkpointing.format.component_config import (
    as_build_error,
    decode_kwargs,
    encode_class,
    encode_kwargs,
    loss_config,
)
from fitkit.core.component_spec import ComponentSpec, LossSpec

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
ARGUMENTS = st.dictionaries(
    st.text(min_size=1),
    PLAIN | st.binary() | st.lists(PLAIN) | st.tuples(PLAIN, PLAIN) | st.dictionaries(PLAIN, PLAIN),
)


@given(ARGUMENTS)
def test_arguments_come_back_with_their_types(kwargs):
    stored = encode_kwargs(ComponentSpec(nn.Linear, kwargs))
    decoded = decode_kwargs({"model_kwargs": stored, "model_class": "a:B"}, "model")
    assert repr(decoded) == repr(kwargs)


def test_a_class_among_the_arguments_is_stored_by_its_name():
    stored = encode_kwargs(ComponentSpec(nn.Linear, {"act": nn.ReLU, "size": 2}))
    assert "ReLU" in stored["act"]["name"]
    decoded = decode_kwargs({"model_kwargs": stored, "model_class": "a:B"}, "model")
    assert decoded == {"act": nn.ReLU, "size": 2}


def test_a_stored_class_that_is_no_module_is_refused():
    stored = encode_kwargs(ComponentSpec(nn.Linear, {"act": nn.ReLU}))
    stored["act"]["name"] = "torch.optim.sgd:SGD"
    with pytest.raises(CheckpointError, match="pass model_class=<a ready module>"):
        decode_kwargs({"model_kwargs": stored}, "model")


@pytest.mark.parametrize("value", [lambda x: x, object(), torch.optim.SGD, [object()]])
def test_one_argument_that_cannot_be_stored_leaves_out_all(value):
    stored = encode_kwargs(ComponentSpec(nn.Linear, {"size": 2, "odd": value}))
    assert stored is None
    state = {"model_kwargs": None, "model_class": "a:B", "optimizer_kwargs": None}
    with pytest.raises(CheckpointError, match=r"'a:B' could not be stored.*a ready module"):
        decode_kwargs(state, "model")
    with pytest.raises(CheckpointError, match="pass skip_optimizer=True and call set_optimizer"):
        decode_kwargs(state, "optimizer")


def test_no_component():
    assert (encode_class(None), encode_kwargs(None), loss_config(None)) == (None, None, None)


def test_a_loss_of_torch_has_its_settings():
    loss = LossSpec(nn.HuberLoss(delta=0.25), pass_epoch=True, kwargs={"scale": 2})
    config = loss_config(loss)
    assert (config["kwargs"]["delta"], config["kwargs"]["reduction"]) == (0.25, "mean")
    assert (config["pass_epoch"], config["call_kwargs"]) == (True, {"scale": 2})
    assert config["class"] == encode_class(ComponentSpec(nn.HuberLoss))
    assert nn.HuberLoss(**config["kwargs"]).delta == 0.25


def test_other_losses_are_left_to_the_program():
    class Mine(nn.MSELoss):
        pass

    for function in (Mine(), nn.functional.mse_loss, lambda outputs, targets: 0):
        assert loss_config(LossSpec(function)) is None


def test_an_error_of_building_says_what_to_do():
    expected = pytest.raises(CheckpointError, match=r"the model cannot be built.*odd.*try this\.")
    with expected, as_build_error("model", "try this"):
        raise ValueError("odd")
