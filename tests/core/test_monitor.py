import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitkit import Callback, EarlyStopping, LambdaCallback, ReduceLROnPlateau
from fitkit.core.callback_list import CallbackList
from fitkit.core.errors import ConfigurationError, MonitorError
from fitkit.core.monitor import Monitor, MonitoredValue, resolve_mode


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


# ---- names that only some epochs log ------------------------------------------------------------


class Watched:
    """What a monitor asks of a handler."""

    def __init__(self, *callbacks, logged=()):
        self.callbacks = CallbackList(callbacks)
        self.history = SimpleNamespace(history=dict.fromkeys(logged))
        self.lines = []
        self.logger = SimpleNamespace(warning=lambda text, *args: self.lines.append(text % args))


WITHOUT = {"validation": False}


def test_without_strict_any_name_is_waited_for():
    monitor = MonitoredValue("fid", strict=False)
    assert monitor.read({"loss": 1.0}, WITHOUT, "Me", Watched()) is None
    assert monitor.read({"loss": 1.0, "fid": 3.0}, WITHOUT, "Me", Watched()) == 3.0
    MonitoredValue("val_loss", strict=False).check_possible(WITHOUT, "Me")


def test_a_name_that_an_earlier_epoch_logged_is_waited_for():
    handler = Watched(logged=["loss", "fid"])
    assert MonitoredValue("fid").read({"loss": 1.0}, WITHOUT, "Me", handler) is None
    assert not handler.lines
    with pytest.raises(MonitorError, match=r"monitors 'other', which is not logged.*strict=False"):
        MonitoredValue("other").read({"loss": 1.0}, WITHOUT, "Me", handler)


def test_a_callback_of_the_user_may_still_log_the_name():
    handler, monitor = Watched(EarlyStopping(), Callback()), MonitoredValue("fid")
    for _ in range(2):
        assert monitor.read({"loss": 1.0}, WITHOUT, "Me", handler) is None
    assert handler.lines == [
        "Me monitors 'fid', which no epoch has logged so far: it waits for a callback to log it "
        "(strict=False: it waits without this line)"
    ]


@pytest.mark.parametrize(
    ("name", "callbacks"),
    [
        ("fid", [EarlyStopping(), ReduceLROnPlateau()]),  # none of fitkit's logs it
        ("fid", []),
        ("val_los", [Callback()]),  # misspelled
        ("losss", [LambdaCallback()]),
    ],
)
def test_a_name_that_nobody_can_log_is_an_error_after_the_first_epoch(name, callbacks):
    logs = {"loss": 1.0, "val_loss": 1.0}
    with pytest.raises(MonitorError, match=f"monitors '{name}', which is not logged"):
        MonitoredValue(name).read(logs, {"validation": True}, "Me", Watched(*callbacks))


def test_an_epoch_in_which_only_a_callback_logs_a_val_name_has_no_validation():
    logs = {"loss": 1.0, "val_fid": 2.0}
    assert Monitor("val_loss").read(logs, {"validation": True}, "Me", Watched()) is None


@pytest.mark.parametrize(
    ("name", "is_possible"),
    [
        ("val_loss", False),
        ("val_acc", False),
        ("val_a_loss", True),
        ("val_b_acc", True),
        ("val_fid", True),
        ("loss", True),
    ],
)
def test_values_that_named_sets_do_not_have(name, is_possible):
    params = {"validation": True, "validation_sets": {"a": 1, "b": 2}, "metrics": ["acc"]}
    if is_possible:
        MonitoredValue(name).check_possible(params, "Me")
        return
    names = "'val_a_acc', 'val_a_loss', 'val_b_acc', 'val_b_loss'"
    with pytest.raises(MonitorError, match=f"Me monitors '{name}', .* monitor one of {names}"):
        MonitoredValue(name).check_possible(params, "Me")
    params["validation_sets"][""] = 3
    MonitoredValue(name).check_possible(params, "Me")
