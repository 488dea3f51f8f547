import math

import pytest

from fitkit.callbacks.support.logged_steps import LoggedSteps


def test_what_is_there_is_left_out_by_step_and_name():
    logged = LoggedSteps({3: {"loss": 0.5}}, "a run")
    assert logged.new_values(3, {"loss": 0.5, "val_loss": 1.0}) == {"val_loss": 1.0}
    assert logged.new_values(4, {"loss": 0.5}) == {"loss": 0.5}


@pytest.mark.parametrize("value", [0.5, 0.501, math.nan, math.inf])
def test_the_same_training_is_not_worth_a_word(value):
    assert LoggedSteps({3: {"loss": 0.5}}, "a run").new_values(3, {"loss": value}) == {}


def test_another_training_is_told_once():
    logged = LoggedSteps({3: {"loss": 0.5, "speed": 1.0}, 4: {"batch/loss": 0.5}}, "a run")
    assert logged.new_values(3, {"speed": 9.0}) == {}
    with pytest.warns(UserWarning, match="a run already has 'loss' = 0.5 at step 3"):
        assert logged.new_values(3, {"loss": 0.6}) == {}
    assert logged.new_values(4, {"batch/loss": 0.6}) == {}
