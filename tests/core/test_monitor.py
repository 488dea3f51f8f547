import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitkit.core.errors import ConfigurationError, MonitorError
from fitkit.core.monitor import Monitor, resolve_mode


@pytest.mark.parametrize("prefix", ["", "val_", "train_", "test_"])
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("loss", "min"),
        ("total_loss", "min"),
        ("focalloss", "min"),
        ("rmse", "min"),
        ("mean_absolute_error", "min"),
        ("perplexity", "min"),
        ("accuracy", "max"),
        ("acc", "max"),
        ("top_5_accuracy", "max"),
        ("f1_score", "max"),
        ("AUC", "max"),
        ("dice", "max"),
        ("dice_loss", "min"),
        ("log_likelihood", "max"),
        ("negative_log_likelihood", "min"),
        ("neg_mean_squared_error", "max"),
    ],
)
def test_auto_knows_common_names(prefix, name, mode):
    assert resolve_mode(prefix + name, "auto") == mode


@pytest.mark.parametrize("name", ["lr", "val_", "thing", "gross", "negative", "x"])
def test_auto_asks_about_other_names(name):
    with pytest.raises(MonitorError, match=f"{name!r} is better: pass mode='min' or mode='max'"):
        resolve_mode(name, "auto")


def test_a_mode_given_wins_over_the_name():
    assert resolve_mode("loss", "max") == "max"
    assert resolve_mode("thing", "min") == "min"


@pytest.mark.parametrize(
    ("mode", "hint"), [("mins", "Did you mean 'min'"), ("best", ""), (None, "None"), (1, "1")]
)
def test_an_unknown_mode_is_an_error(mode, hint):
    with pytest.raises(MonitorError, match=f"'auto', 'min' or 'max', received .*{hint}"):
        resolve_mode("loss", mode)


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_monitor_needs_a_name(name):
    with pytest.raises(MonitorError, match="name of a logged value such as 'val_loss', received"):
        Monitor(name)


@pytest.mark.parametrize("delta", [None, "0", True, math.nan, math.inf])
def test_min_delta_must_be_a_number(delta):
    with pytest.raises(ConfigurationError, match="min_delta must be a finite number, received"):
        Monitor("loss", min_delta=delta)


finite = st.floats(-1e6, 1e6)


@given(finite, finite, st.floats(0, 1e3), st.sampled_from(["min", "max"]))
def test_better_is_strict_and_never_mutual(one, other, delta, mode):
    monitor = Monitor("x", mode, delta)
    assert not monitor.is_better(one, one)
    assert not (monitor.is_better(one, other) and monitor.is_better(other, one))
    if monitor.is_better(one, other):
        assert monitor.sort_key(one) < monitor.sort_key(other)
        assert abs(one - other) >= delta * (1 - 1e-9) - 1e-9
    assert monitor.is_better(one, None)


@pytest.mark.parametrize(("mode", "sign"), [("min", -1), ("max", 1)])
def test_min_delta_must_be_exceeded(mode, sign):
    monitor = Monitor("x", mode, min_delta=-0.5)  # its sign does not matter, as in Keras
    assert not monitor.is_better(1.0 + sign * 0.5, 1.0)
    assert monitor.is_better(1.0 + sign * 0.75, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_not_finite_is_never_better(value, mode):
    assert not Monitor("x", mode).is_better(value, None)
    assert not Monitor("x", mode).is_better(value, 0.0)


def test_read_gives_the_fresh_value():
    assert Monitor("val_loss").read({"val_loss": 2.0}, {"validation": True}, "Me") == 2.0


def test_read_waits_for_a_validation_that_is_to_come():
    assert Monitor("val_loss").read({"loss": 1.0}, {"validation": True}, "Me") is None


@pytest.mark.parametrize(
    ("name", "logs", "params", "message"),
    [
        ("val_loss", {"loss": 1.0}, {"validation": False}, "Me monitors 'val_loss', which is not"),
        ("val_los_error", {"val_loss": 1.0}, {"validation": True}, "logged are 'val_loss'"),
        ("accuracy", {"val_accuracy": 1.0}, {"validation": True}, "Did you mean 'val_accuracy'"),
        ("lss_loss", {}, {}, "logged are none"),
    ],
)
def test_read_of_a_name_that_cannot_come_is_an_error(name, logs, params, message):
    with pytest.raises(MonitorError, match=message):
        Monitor(name).read(logs, params, "Me")


def test_check_possible_fails_before_the_first_batch():
    with pytest.raises(MonitorError, match=r"no validation: pass .* another of 'acc', 'loss'"):
        Monitor("val_loss").check_possible({"validation": False, "metrics": ["acc"]}, "Me")
    Monitor("val_loss").check_possible({"validation": True}, "Me")
    Monitor("val_loss").check_possible({}, "Me")
    Monitor("loss").check_possible({"validation": False}, "Me")
