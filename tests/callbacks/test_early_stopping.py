import math

import pytest

from fitkit.callbacks.early_stopping import EarlyStopping
from fitkit.core.errors import ConfigurationError, MonitorError


def stopped(drive, values, *, validate_every=1, **arguments):
    stopper = EarlyStopping(**arguments)
    driver = drive(stopper).fit(values, validate_every=validate_every)
    return stopper, driver


@pytest.mark.parametrize(
    ("patience", "values", "epochs"),
    [
        (0, [3, 2, 1, 1, 0], 4),  # an equal value is not better
        (1, [3, 2, 1, 1, 0], 4),
        (2, [3, 2, 2, 2, 0], 4),
        (2, [3, 4, 2, 4, 3, 1], 5),  # an improvement resets the count
        (3, [1, 2, 3], 3),  # not yet
    ],
)
def test_patience_counts_checks(drive, patience, values, epochs):
    stopper, driver = stopped(drive, values, patience=patience)
    assert driver.state.epoch == epochs
    assert driver.state.stopping == (stopper.stopped_epoch is not None)
    assert stopper.stopped_epoch == (None if patience == 3 else epochs - 1)


def test_epochs_without_a_fresh_value_do_not_count(drive):
    nothing = {"loss": 1.0}
    values = [nothing, 1.0, nothing, 2.0, nothing, nothing, nothing, 2.0, nothing]
    stopper, driver = stopped(drive, values, patience=2, validate_every=2)
    assert driver.state.epoch == 8
    assert stopper.best_epoch == 1


def test_min_delta_must_be_exceeded(drive):
    stopper, driver = stopped(drive, [1.0, 0.75, 0.5], min_delta=0.25)
    assert driver.state.epoch == 2
    assert stopper.best == 1.0


@pytest.mark.parametrize(("name", "mode"), [("accuracy", "auto"), ("anything", "max")])
def test_higher_can_be_better(drive, name, mode):
    rows = [{name: value} for value in (0.1, 0.2, 0.3, 0.2)]
    stopper, driver = stopped(drive, rows, monitor=name, mode=mode)
    assert (driver.state.epoch, stopper.best, stopper.best_epoch) == (4, 0.3, 2)


def test_without_beating_the_baseline_patience_runs_out(drive):
    # the sequence of Keras's own test
    values = [0.9, 0.8, 0.7, 0.71, 0.72, 0.73]
    stopper, driver = stopped(drive, values, patience=5, baseline=0.5, restore_best_weights=True)
    assert driver.state.epoch == 5
    assert driver.handler.weight == 2
    assert "baseline 0.5" in driver.state.stop_reason
    assert stopper.best == 0.7


def test_beating_the_baseline_resets_the_count(drive):
    stopper, driver = stopped(drive, [0.9, 0.8, 0.4, 0.5, 0.5], patience=3, baseline=0.5)
    assert driver.state.epoch == 5
    assert stopper.wait == 2
    assert not driver.state.stopping


def test_early_epochs_are_not_judged(drive):
    stopper, driver = stopped(drive, [1, 9, 9, 5, 6], start_from_epoch=3)
    assert driver.state.epoch == 5
    assert (stopper.best, stopper.best_epoch) == (5, 3)


def test_best_weights_come_back_after_a_stop(drive):
    _, driver = stopped(drive, [0.2, 0.15, 0.1, 0.11, 0.12], patience=2, restore_best_weights=True)
    assert driver.handler.weight == 2


def test_best_weights_come_back_when_nothing_stopped(drive):
    stopper, driver = stopped(drive, [2.0, 1.0, 3.0], patience=9, restore_best_weights=True)
    assert driver.handler.weight == 1
    assert stopper.stopped_epoch is None


def test_weights_are_copies(drive):
    stopper = EarlyStopping(patience=9, restore_best_weights=True)
    driver = drive(stopper)
    driver.begin()
    driver.handler.set_weight(7)
    driver.epoch({"val_loss": 1.0})
    driver.handler.set_weight(8)
    assert stopper.best_weights["weight"].item() == 7


def test_without_being_asked_weights_stay_and_are_not_kept(drive):
    stopper, driver = stopped(drive, [1.0, 2.0])
    assert driver.handler.weight == 1
    assert stopper.best_weights is None


def test_best_weights_survive_a_resume(drive):
    first = drive(EarlyStopping(patience=2, restore_best_weights=True)).fit([2.0, 1.0, 3.0])
    first.handler.set_weight(5)
    stopper = EarlyStopping(patience=2, restore_best_weights=True)
    second = first.resume(stopper)
    assert (stopper.best, stopper.best_epoch, stopper.wait) == (1.0, 1, 1)
    second.epoch({"val_loss": 4.0})
    assert second.state.stopping
    assert stopper.stopped_epoch == 3
    second.end()
    assert second.handler.weight == 1


def test_a_reused_stopper_grants_patience_again(drive):
    stopper = EarlyStopping(patience=3)
    driver = drive(stopper)
    driver.fit([1.0, 2.0, 2.0, 2.0, 2.0])
    assert driver.state.epoch == 4
    driver.fit([5.0, 5.0, 5.0, 5.0, 5.0])
    assert driver.state.epoch == 8  # the old best does not count against the new fit
    assert stopper.best == 5.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stops(drive, value):
    stopper, driver = stopped(drive, [1.0, value], patience=9)
    assert driver.state.stopped_non_finite
    assert stopper.best == 1.0
    assert str(value) in driver.state.stop_reason


def test_a_value_that_is_not_finite_stops_also_in_epochs_that_are_not_judged(drive):
    _, driver = stopped(drive, [math.nan], patience=9, start_from_epoch=5)
    assert driver.state.stopped_non_finite


def test_unchecked_nan_is_never_best(drive):
    stopper, driver = stopped(
        drive, [math.nan, 2.0, math.nan, 3.0], patience=2, check_finite=False,
        restore_best_weights=True,
    )  # fmt: skip
    assert not driver.state.stopped_non_finite
    assert (stopper.best, driver.handler.weight, driver.state.epoch) == (2.0, 1, 4)


def test_nothing_but_nan_runs_out_of_patience(drive):
    _, driver = stopped(drive, [math.nan] * 5, patience=2, check_finite=False)
    assert driver.state.epoch == 2
    assert "not a finite number" in driver.state.stop_reason


@pytest.mark.parametrize(
    ("arguments", "values", "epochs", "reason"),
    [
        ({"stopping_threshold": 0.5}, [1.0, 0.5, 0.4, 0.3], 3, "better than"),
        ({"divergence_threshold": 5.0}, [1.0, 5.0, 5.5, 1.0], 3, "worse than"),
        ({"divergence_threshold": 5.0, "min_delta": 1.0}, [1.0, 5.5, 1.0], 2, "worse than"),
    ],
)
def test_thresholds(drive, arguments, values, epochs, reason):
    stopper, driver = stopped(drive, values, patience=9, **arguments)
    assert driver.state.epoch == epochs
    assert reason in driver.state.stop_reason
    assert stopper.stopped_epoch == epochs - 1


def test_the_value_that_reaches_the_threshold_is_the_best(drive):
    stopper, driver = stopped(
        drive, [1.0, 0.1], patience=9, stopping_threshold=0.5, restore_best_weights=True
    )
    assert (stopper.best, driver.handler.weight) == (0.1, 1)


def test_divergence_of_a_score(drive):
    rows = [{"accuracy": value} for value in (0.5, 0.05)]
    _, driver = stopped(drive, rows, monitor="accuracy", patience=9, divergence_threshold=0.1)
    assert driver.state.stopping


def test_the_reason_names_the_callback_the_value_and_the_best_epoch(drive):
    _, driver = stopped(drive, [0.25, 1.0])
    assert driver.state.stop_reason == (
        "EarlyStopping: 'val_loss' did not improve on 0.2500 (epoch 1) in 1 check"
    )


def test_stopped_epoch_is_none_when_somebody_else_stopped(drive):
    stopper = EarlyStopping(patience=3)
    driver = drive(stopper)
    driver.begin()
    driver.state.stop("enough")
    driver.epoch({"val_loss": 1.0})
    driver.end()
    assert stopper.stopped_epoch is None


def test_a_name_that_is_not_logged_is_an_error_that_lists_what_is(drive):
    with pytest.raises(MonitorError, match=r"'val_los'.*'loss', 'val_loss'.*Did you mean"):
        stopped(drive, [1.0], monitor="val_los", mode="min")


def test_a_validation_name_without_validation_fails_before_training(drive):
    with pytest.raises(MonitorError, match="no validation"):
        drive(EarlyStopping()).begin(validation=False)


@pytest.mark.parametrize(
    "arguments",
    [
        {"patience": -1},
        {"patience": 1.5},
        {"patience": True},
        {"start_from_epoch": -1},
        {"baseline": math.nan},
        {"stopping_threshold": "low"},
        {"min_delta": math.inf},
        {"mode": "best"},
        {"monitor": "something"},
        {"monitor": ""},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ConfigurationError, match=r"received|mode="):
        EarlyStopping(**arguments)


def test_two_stoppers_get_their_own_states_whatever_the_order(drive):
    def make():
        return EarlyStopping(patience=5), EarlyStopping("loss", patience=7)

    first = drive(*make())
    first.fit([{"loss": 1.0, "val_loss": 5.0}, {"loss": 2.0, "val_loss": 4.0}])
    on_val, on_loss = make()
    first.resume(on_loss, on_val)
    assert (on_val.best, on_loss.best) == (4.0, 1.0)


def test_a_changed_patience_keeps_the_progress(drive):
    first = drive(EarlyStopping(patience=5)).fit([1.0, 2.0, 2.0])
    stopper = EarlyStopping(patience=3)
    second = first.resume(stopper)
    assert (stopper.wait, stopper.patience) == (2, 3)
    second.epoch({"val_loss": 2.0})
    assert second.state.stopping
