"""The time line: what is told is what happened, and what cannot be told is not guessed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

import fitkit
from fitkit.core.logs import Logs
from fitkit.core.state import FitState
from fitkit.reporting.curve_data import Curves
from fitkit.reporting.timeline import lanes


def state_of(callback=None, epochs_done=0, first_epoch=0, reason=None, rates=()):
    progress = FitState()
    progress.epoch, progress.first_epoch, progress.stop_reason = epochs_done, first_epoch, reason
    entry = None
    if callback is not None:
        entry = {"config": callback.config(), "state": callback.state_dict()}
    return {
        "progress": {"state": progress.state_dict()},
        "callback_states": {} if entry is None else {"EarlyStopping": entry},
        "optimizer_state_dict": {"param_groups": [{"lr": rate} for rate in rates]},
    }


def judge(callback, values):
    """Let a callback hear the ends of epochs until it stops; where the run stands then."""
    state = FitState()
    callback.handler = SimpleNamespace(state=state)
    for epoch, value in enumerate(values):
        state.advance_epoch()
        callback.on_epoch_end(epoch, Logs({"val_loss": value}))
        if state.stopping:
            break
    return state


def lane(found, label):
    return next((one["marks"] for one in found if one["label"] == label), [])


def stopped(values, **options):
    callback = fitkit.EarlyStopping("val_loss", **options)
    progress = judge(callback, values)
    done = progress.epoch
    curves = Curves(list(range(done)), {"val_loss": values[:done]})
    state = state_of(callback, done, reason=progress.stop_reason)
    return callback, lane(lanes(state, curves, []), "EarlyStopping")


def test_every_check_of_early_stopping():
    callback, marks = stopped([3.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.1, 0.5], patience=3)
    assert [mark["kind"][0] for mark in marks] == list("bbwbwws")
    assert marks[-1]["epoch"] == callback.stopped_epoch + 1 == 7
    assert "did not improve on 1.0000" in marks[-1]["text"]
    assert [mark["share"] for mark in marks if mark["kind"] == "wait"] == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 2, "baseline": 0.4},
        {"patience": 2, "start_from_epoch": 2},
        {"patience": 3, "min_delta": 0.3},
        {"patience": 3, "mode": "max"},
        {"patience": 9, "stopping_threshold": 0.6},
        {"patience": 9, "divergence_threshold": 1.4},
    ],
)
def test_a_replay_ends_in_the_state_that_was_saved(options):
    values = [1.0, 0.9, 1.3, 0.8, 1.5, 0.7, 0.6, 0.5]
    callback, marks = stopped(values, **options)
    best = [mark["epoch"] for mark in marks if mark["kind"] == "best"]
    judged = [mark for mark in marks if "share" in mark]
    assert judged
    if callback.stopped_epoch != callback.best_epoch:
        assert best[-1] == callback.best_epoch + 1


def test_a_replay_that_does_not_agree_is_left_out():
    callback = fitkit.EarlyStopping("val_loss", patience=5)
    judge(callback, [3.0, 2.0, 2.5])
    other = Curves([0, 1, 2], {"val_loss": [1.0, 1.5, 2.0]})
    marks = lane(lanes(state_of(callback, 3), other, []), "EarlyStopping")
    assert [(mark["epoch"], mark["kind"]) for mark in marks] == [(2, "best")]


def test_a_second_call_of_fit_is_judged_from_its_own_beginning():
    callback = fitkit.EarlyStopping("val_loss", patience=5)
    judge(callback, [2.0, 2.5])
    callback.best_epoch += 3  # three epochs were trained by an earlier call
    curves = Curves(list(range(5)), {"val_loss": [0.1, 0.1, 0.1, 2.0, 2.5]})
    marks = lane(lanes(state_of(callback, 5, first_epoch=3), curves, []), "EarlyStopping")
    assert [(mark["epoch"], mark["kind"]) for mark in marks] == [(4, "best"), (5, "wait")]


@pytest.mark.parametrize(
    "changed",
    [None, {}, {"monitor": 3}, {"mode": "up"}, {"patience": None}, {"start_from_epoch": "x"}],
)
def test_a_configuration_that_says_nothing(changed):
    callback = fitkit.EarlyStopping("val_loss")
    config = {**callback.config(), **changed} if changed else changed
    state = state_of(callback, 1)
    state["callback_states"]["EarlyStopping"]["config"] = config
    assert lanes(state, Curves([0], {"val_loss": [1.0]}), []) == []


def test_changes_of_the_learning_rate_the_coming_one_included():
    curves = Curves([0, 1, 2, 3], {"lr": [0.1, 0.1, math.nan, 0.01]})
    marks = lane(lanes(state_of(epochs_done=4, rates=[0.001]), curves, []), "Learning rate")
    assert [mark["epoch"] for mark in marks] == [4, 5]
    assert "0.1 → 0.01" in marks[0]["text"]
    assert "0.01 → 0.001, from epoch 5 on" in marks[1]["text"]


def test_a_schedule_that_moves_all_the_time_is_no_list_of_events():
    curves = Curves(list(range(100)), {"lr": [0.9**epoch for epoch in range(100)]})
    assert lanes(state_of(epochs_done=100), curves, []) == []


def test_saves_are_a_lane_of_their_own():
    saves = [{"epoch": 1, "text": "saved a", "is_best": False}]
    saves.append({"epoch": 2.5, "text": "saved b", "is_best": True})
    marks = lane(lanes({}, Curves(), saves), "Checkpoints")
    assert [(mark["epoch"], mark["kind"]) for mark in marks] == [(1, "plain"), (2.5, "best")]
