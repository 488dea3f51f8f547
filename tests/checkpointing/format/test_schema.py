"""What a full checkpoint must hold."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fitkit import CheckpointError, DamagedCheckpointError, NNHandler
from fitkit.checkpointing.format import schema

VALID = NNHandler(nn.Linear, in_features=1, out_features=1, seed=0).get_state_dict()


def test_a_state_of_a_handler_is_valid_and_given_back():
    assert schema.validate(VALID, "m.pth") is VALID
    assert schema.run_position(VALID) == (0, 0, 0, 0)


@pytest.mark.parametrize("key", schema.KEYS)
def test_every_key_is_required_and_has_a_type(key):
    missing = {name: value for name, value in VALID.items() if name != key}
    for state in (missing, {**VALID, key: {1, 2}}):
        with pytest.raises(DamagedCheckpointError, match=rf"'m\.pth'.*{key}"):
            schema.validate(state, "m.pth")


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None])
def test_a_version_that_is_none(version):
    with pytest.raises(DamagedCheckpointError, match="no valid format_version"):
        schema.validate({**VALID, "format_version": version}, "m.pth")


def test_a_newer_version_is_not_damage():
    state = {**VALID, "format_version": schema.FORMAT_VERSION + 1, "fitkit_version": "99.0"}
    with pytest.raises(CheckpointError, match=r"fitkit 99\.0\): upgrade fitkit") as caught:
        schema.validate(state, "m.pth")
    assert not isinstance(caught.value, DamagedCheckpointError)


@pytest.mark.parametrize("state", [None, [], 3, {}, {"weight": 1}, {1: torch.ones(1)}])
def test_what_is_no_checkpoint(state):
    assert not schema.is_weights(state)
    with pytest.raises(DamagedCheckpointError, match="is not a checkpoint of fitkit"):
        schema.validate(state, "m.pth")


def test_weights_are_told_from_a_full_checkpoint():
    weights = {"weight": torch.ones(1), "head._extra_state": {"count": 3}}
    assert schema.is_weights(weights)
    with pytest.raises(CheckpointError, match="holds weights only"):
        schema.validate(weights, "m.pth")


NAMES = sorted(
    set(VALID["progress"]["state"]) - {"phase", "stop_reason", "epoch_logs", "contributed"}
)


@given(st.sampled_from(NAMES), st.sampled_from([None, -1, 0.5, "1", [], {}]))
def test_progress_has_counters_that_a_run_can_have(name, value):
    state = copy.deepcopy(VALID)
    state["progress"]["state"][name] = value
    with pytest.raises(DamagedCheckpointError, match=rf"cannot be read: '{name}' of a wrong"):
        schema.run_position(state)


def test_a_rate_inside_an_epoch_is_a_number():
    state = copy.deepcopy(VALID)
    state["progress"]["state"] |= {"phase": "test", "epoch_logs": {"lr": "1"}}
    with pytest.raises(DamagedCheckpointError, match="'last_lr' of a wrong"):
        schema.run_position(state)
    state["progress"]["state"]["epoch_logs"] = {"lr": 0.1}
    schema.run_position(state)


LISTENER = {"name": "Mine", "identity": "", "config": {}, "waits": True}


@pytest.mark.parametrize(
    ("event", "is_valid"),
    [
        (None, True),
        ({"event": "on_epoch_end", "args": [], "waiting": []}, True),
        ({"event": "on_epoch_end", "args": [], "waiting": [["Mine", ""]]}, True),
        ({"event": "on_epoch_end", "args": [], "waiting": [["Mine"]]}, False),
        ({"event": "on_epoch_end", "args": [], "waiting": [3]}, False),
        ({"event": "on_epoch_end", "args": [], "listeners": []}, True),
        ({"event": "on_epoch_end", "args": [], "listeners": [LISTENER]}, True),
        ({"event": "on_epoch_end", "args": [], "listeners": LISTENER}, False),
        ({"event": "on_epoch_end", "args": [], "listeners": [{**LISTENER, "waits": 1}]}, False),
        ({"event": "on_epoch_end", "args": [], "listeners": [{**LISTENER, "config": 1}]}, False),
        ({"event": "on_epoch_end", "args": [], "listeners": [{"name": "Mine"}]}, False),
        ({"event": "on_lunch", "args": [], "waiting": []}, False),
        ({"event": "on_epoch_end", "args": (), "waiting": []}, False),
        ({"event": "on_epoch_end", "args": []}, False),
        ([], False),
    ],
)
def test_the_pending_event(event, is_valid):
    state = copy.deepcopy(VALID)
    state["progress"]["unheard"] = event
    if is_valid:
        schema.run_position(state)
        return
    with pytest.raises(DamagedCheckpointError, match="its event is not one of fitkit"):
        schema.run_position(state)
