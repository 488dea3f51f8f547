"""Access to checkpoints whose content may be anything."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fitkit import NNHandler
from fitkit.reporting.checkpoint_state import (
    as_count,
    as_mapping,
    callback_entries,
    learning_rates,
    progress_of,
)

KEYS = st.sampled_from(["progress", "state", "callback_states", "config", "param_groups", "lr"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, ANYTHING, max_size=4))
def test_any_content_gives_the_promised_types(state):
    assert isinstance(progress_of(state), dict)
    for key, callback_state, config in callback_entries(state):
        assert isinstance(key, str)
        assert isinstance(callback_state, dict)
        assert isinstance(config, dict)
    assert all(type(rate) is float for rate in learning_rates(state))


@pytest.mark.parametrize("value", [None, 3, "text", [("a", 1)], {"a"}])
def test_what_is_no_mapping_is_an_empty_one(value):
    assert as_mapping(value) == {}
    assert progress_of({"progress": value}) == {}
    assert callback_entries({"callback_states": value}) == []
    assert callback_entries({"callback_states": {"a": value}}) == [("a", {}, {})]
    assert learning_rates(value) == []
    assert learning_rates({"param_groups": value}) == []


def test_a_mapping_is_given_as_it_is():
    for value in ({"a": 1}, OrderedDict(a=1)):
        assert as_mapping(value) is value


@pytest.mark.parametrize("value", [True, 1.0, "1", None, torch.tensor(1)])
def test_only_a_whole_number_is_a_count(value):
    assert as_count(value) is None
    assert (as_count(0), as_count(7)) == (0, 7)


def test_callbacks_in_the_order_of_their_keys():
    entries = {"b": {"state": {"n": 1}, "config": {"x": 2}}, "a": {"config": None}, 3: {}}
    expected = [("3", {}, {}), ("a", {}, {}), ("b", {"n": 1}, {"x": 2})]
    assert callback_entries({"callback_states": entries}) == expected


def test_the_state_of_a_handler():
    handler = NNHandler(nn.Linear, in_features=1, out_features=1)
    handler.set_optimizer(
        torch.optim.SGD,
        params=lambda module: [{"params": [module.weight], "lr": 1}, {"params": [module.bias]}],
        lr=0.25,
    )
    handler.state.global_step = 9
    state = handler.get_state_dict()
    assert progress_of(state)["global_step"] == 9
    assert learning_rates(state["optimizer_state_dict"]) == [1.0, 0.25]
    assert learning_rates({"param_groups": [{"lr": "0.1"}, {}, 3, {"lr": 2}]}) == [2.0]
