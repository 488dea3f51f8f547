import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fitkit.core.errors import CheckpointError
from fitkit.core.state import FitState, Phase


def test_progress_of_two_epochs():
    state = FitState()
    state.begin_call()
    places = [state.position()]
    for _ in range(2):
        state.enter(Phase.TRAIN)
        places.append(state.position())
        for size in (4, 3):
            state.advance_batch(size)
            places.append(state.position())
        state.enter(Phase.VALIDATE)
        places.append(state.position())
        state.enter(Phase.END)
        places.append(state.position())
        state.advance_epoch()
        places.append(state.position())
    assert places == sorted(set(places)), "a later place must be greater"
    assert (state.epoch, state.batch, state.global_step, state.samples_seen) == (2, 0, 4, 14)
    assert state.phase is Phase.BEGIN


def test_a_further_call_begins_where_the_first_ended():
    state = FitState()
    state.begin_call()
    state.advance_batch(1)
    state.advance_epoch()
    state.stop("enough")
    before = state.position()
    state.begin_call()
    assert (state.call, state.first_epoch, state.first_step) == (2, 1, 1)
    assert not state.stopping
    assert state.position() > before


def test_the_first_reason_to_stop_is_kept_and_non_finite_is_not_forgotten():
    state = FitState()
    assert not state.stopping
    state.stop("first")
    state.stop("second", non_finite=True)
    state.stop("third")
    assert state.stopping
    assert state.stop_reason == "first"
    assert state.stopped_non_finite
    state.clear_stop()
    assert (state.stop_reason, state.stopped_non_finite) == (None, False)


def test_a_stop_that_is_final_outweighs_one_that_is_not():
    state = FitState()
    state.stop("the limit", final=False)
    assert not state.stop_is_final
    state.clear_stop()
    state.stop("patience")
    state.stop("the limit", final=False)
    assert state.stop_is_final


@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5)])
def test_the_rate_of_the_last_step_is_logged_at_the_end_of_the_epoch(rate):
    state, other = FitState(), FitState()
    state.last_lr = rate
    state.enter(Phase.TEST)
    state.epoch_logs = {"loss": 1.0}
    other.load_state_dict(state.state_dict())
    assert (other.last_lr, other.epoch_logs) == (0.5, {"loss": 1.0})
    state.epoch_logs["lr"] = 0.25  # what the loop logs
    state.advance_epoch()
    other.load_state_dict(state.state_dict())
    assert (other.last_lr, other.epoch_logs) == (None, {"loss": 1.0, "lr": 0.25})


@given(st.integers(0, 9), st.sampled_from(list(Phase)), st.none() | st.text(max_size=5))
def test_state_round_trip_through_plain_types(number, phase, reason):
    state = FitState()
    state.epoch, state.batch, state.global_step = number, number + 1, number + 2
    state.phase, state.stop_reason = phase, reason
    state.epoch_logs = {"loss": 0.5}
    state.logged = {"x": torch.tensor(2.0)}
    saved = json.loads(json.dumps(state.state_dict()))
    other = FitState()
    other.load_state_dict(saved)
    assert other.state_dict() == state.state_dict()
    assert other.phase is phase
    other.epoch_logs["loss"] = 1.0
    assert saved["epoch_logs"] == {"loss": 0.5}


def test_every_plain_attribute_is_saved():
    state = FitState()
    state.evaluation_set, state.validated = "noisy", ["clean"]  # which files of most runs lack
    state.unshared = {"mine": 1.0}  # of several ranks
    public = {name for name in vars(state) if not name.startswith("_")}
    keys = {"logged": "contributed"}  # the key of a checkpoint is older than the attribute
    public.remove("last_lr")  # inside an epoch it is among its logs
    assert {keys.get(name, name) for name in public} == set(state.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("epoch"), "missing 'epoch', unknown none"),
        (lambda s: s.update(new=1), "missing none, unknown 'new'"),
        (
            lambda s: s.update(phase="lunch"),
            "its phase must be one of 'begin', .* received 'lunch'",
        ),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    saved = FitState().state_dict()
    saved["global_step"] = 7
    change(saved)
    state = FitState()
    with pytest.raises(CheckpointError, match=message):
        state.load_state_dict(saved)
    assert state.state_dict() == FitState().state_dict()


def test_live_logs_show_what_is_logged_later():
    state = FitState()
    state.epoch_logs = {"loss": 0.5}
    logs = state.live_logs()
    state.log("extra", 2)
    assert dict(logs) == {"loss": 0.5, "extra": 2.0}


def test_what_a_rank_logs_is_not_in_the_logs_before_it_is_shared():
    state = FitState()
    state.unshared = {}
    state.log("mine", 1.0)
    assert dict(state.live_logs()) == {}
    state.logged["mine"] = 2.0  # of rank 0, in an earlier exchange
    assert dict(state.live_logs()) == {"mine": 2.0}
    state.clear_logs()
    assert (state.unshared, state.logged) == ({}, {})


def test_values_that_are_not_shared_yet_are_so_after_a_resume():
    state = FitState()
    state.unshared = {}
    state.logged |= {"before": 1.0, "again": 3.0}
    state.log("since", torch.tensor(2.0))
    state.log("again", 4.0)
    saved = json.loads(json.dumps(state.state_dict()))
    several, single = FitState(), FitState()
    several.unshared = {}
    several.load_state_dict(saved)
    assert several.logged == {"before": 1.0, "again": 3.0}
    assert several.unshared == {"since": 2.0, "again": 4.0}
    single.load_state_dict(saved)
    assert single.logged == {"before": 1.0, "since": 2.0, "again": 4.0}
    assert single.unshared is None
